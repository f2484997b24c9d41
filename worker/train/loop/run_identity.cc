#include "worker/train/loop/run_identity.h"

#include <torch/version.h>

#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/train/data/content_hash.h"
#include "worker/train/loop/publisher.h"
#include "worker/train/model/weights.h"
#include "worker/train/spec/spec.h"

namespace lemo::train {
namespace {

nlohmann::json SpecIdentity(lemo::v1::RunSpec spec) {
  spec.clear_output();
  spec.clear_device();
  spec.clear_checkpoint();
  spec.clear_parallel();
  spec.mutable_memory()->clear_budget_bytes();
  spec.mutable_data()->clear_cache_dir();
  spec.mutable_model()->clear_path();
  spec.mutable_model()->clear_bases_dir();
  spec.mutable_model()->clear_weights_digest();
  for (auto* files : {spec.mutable_data()->mutable_train(), spec.mutable_data()->mutable_eval()}) {
    for (lemo::v1::DataFile& file : *files) file.clear_path();
  }
  if (spec.tuner().has_lora()) spec.mutable_tuner()->mutable_lora()->clear_init_from();
  const std::string predictor = spec.tokens().predictor();
  if (!predictor.empty() && predictor != "auto") spec.mutable_tokens()->clear_predictor();
  if (spec.has_tokens()) spec.mutable_tokens()->clear_predictors_dir();
  return nlohmann::json::parse(RunSpecToJson(spec));
}

}  // namespace

absl::StatusOr<std::string> RunIdentity(const Inputs& inputs) {
  nlohmann::json identity = SpecIdentity(inputs.spec);
  const std::string predictor = inputs.spec.tokens().predictor();
  const std::filesystem::path model = inputs.spec.model().path();
  if (inputs.spec.model().has_random_init()) {
    LEMO_ASSIGN_OR_RETURN(identity["content"]["config.json"], HashFile(model / "config.json"));
  } else {
    LEMO_ASSIGN_OR_RETURN(identity["model_fingerprint"], WeightsFingerprint(model));
  }
  if (!inputs.spec.tuner().lora().init_from().empty()) {
    const std::filesystem::path adapter = inputs.spec.tuner().lora().init_from();
    const absl::StatusOr<std::string> hash = HashFile(adapter / "adapter_model.safetensors");
    if (!hash.ok()) return InField("tuner.lora.init_from", hash.status());
    identity["content"]["init_from"] = *hash;
  }
  if (!predictor.empty() && predictor != "auto") {
    const absl::StatusOr<std::string> hash =
        HashFile(std::filesystem::path(predictor) / "predictor.safetensors");
    if (!hash.ok()) return InField("tokens.predictor", hash.status());
    identity["content"]["predictor"] = *hash;
  }
  identity["tokenizer_sha256"] = inputs.text->tokenizer_hash();
  if (inputs.text->chat_template()) {
    identity["template_sha256"] = inputs.text->chat_template()->hash();
  }
  for (const auto& [name, files] : {std::pair{"data.train", &inputs.spec.data().train()},
                                    std::pair{"data.eval", &inputs.spec.data().eval()}}) {
    for (int i = 0; i < files->size(); ++i) {
      const std::string field = absl::StrCat(name, "[", i, "]");
      const absl::StatusOr<std::string> hash = HashFile(files->Get(i).path());
      if (!hash.ok()) return InField(field, hash.status());
      identity["content"][field] = *hash;
    }
  }
  return identity.dump();
}

std::string RankFacts(const std::string& identity, const lemo::v1::RunSpec& spec,
                      const Compute& compute) {
  nlohmann::json facts = nlohmann::json::parse(identity);
  facts.update(SpecIdentity(spec));
  facts["parallel"] =
      nlohmann::json::parse(RunSpecToJson(spec)).value("parallel", nlohmann::json::object());
  facts["memory.budget_bytes"] = spec.memory().budget_bytes();
  facts["compute_type"] = TypeName(compute.type);
  facts["device_type"] = c10::DeviceTypeName(compute.device.type());
  facts["versions"] = {{"lemo", kLemoVersion}, {"torch", TORCH_VERSION}};
  return facts.dump();
}

}  // namespace lemo::train
