#include "worker/train/loop/inputs.h"

#include <algorithm>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "worker/train/loop/predictor_run.h"
#include "worker/train/model/family/family.h"
#include "worker/train/model/family/run_length.h"
#include "worker/train/model/model_split.h"
#include "worker/train/model/weights.h"
#include "worker/train/publish/peft_pattern.h"
#include "worker/train/tokens/settings.h"

namespace lemo::train {
namespace {

void AddStatus(const std::string& field, const absl::Status& status, Violations* violations) {
  for (const absl::string_view line : absl::StrSplit(status.message(), '\n')) {
    violations->Add(field, std::string(line));
  }
}

// That documents may have the positions of `length` tokens.
void CheckLength(const DecoderConfig& config, const std::string& field, int64_t length,
                 Violations* violations) {
  const absl::Status status = CheckRunLength(config, length);
  if (status.ok()) return;
  for (const absl::string_view line : absl::StrSplit(status.message(), '\n')) {
    violations->Add(field, std::string(absl::StripPrefix(line, "max_length: ")));
  }
}

// Targets are checked against the names that the config implies, so that a typing mistake is found
// before gigabytes of weights are read.
void CheckTargets(const Inputs& inputs, Violations* violations) {
  if (!inputs.spec.tuner().has_lora()) return;
  const std::vector<std::string> modules = LinearModules(inputs.config);
  std::vector<std::string> last_names;
  for (const std::string& module : modules) {
    const std::string last = module.substr(module.rfind('.') + 1);
    if (std::find(last_names.begin(), last_names.end(), last) == last_names.end()) {
      last_names.push_back(last);
    }
  }
  const auto& targets = inputs.spec.tuner().lora().targets();
  for (int i = 0; i < targets.size(); ++i) {
    const std::string& target = targets[i];
    if (target == "all-linear") continue;
    if (std::any_of(modules.begin(), modules.end(), [&target](const std::string& module) {
          return MatchesPeftTarget(module, target);
        })) {
      continue;
    }
    std::string names;
    for (const std::string& name : last_names)
      absl::StrAppend(&names, names.empty() ? "" : ", ", name);
    violations->Add(absl::StrCat("tuner.lora.targets[", i, "]"),
                    absl::StrCat("this model has no linear module called \"", target, "\"; it has ",
                                 names, " (or use all-linear)"));
  }
}

}  // namespace

void OpenModel(Inputs* inputs, Violations* violations) {
  lemo::v1::RunSpec& spec = inputs->spec;
  absl::StatusOr<DecoderConfig> config = LoadDecoderConfig(spec.model().path());
  if (!config.ok()) {
    AddStatus("model.path", config.status(), violations);
    return;
  }
  inputs->config = *std::move(config);
  MakeTokenSettings(spec.tokens(), inputs->config.layers, violations);
  if (!spec.data().has_max_length()) {
    int64_t longest = MaxPositions(inputs->config);
    for (const int64_t window : inputs->config.sliding_window) {
      if (window > 0) longest = std::min(longest, window);
    }
    spec.mutable_data()->set_max_length(static_cast<int32_t>(longest));
  }
  CheckLength(inputs->config, "data.max_length", spec.data().max_length(), violations);
  if (spec.data().has_skip_positions()) {
    CheckLength(inputs->config, "data.skip_positions.target", spec.data().skip_positions().target(),
                violations);
  }
  if (!spec.train().has_micro_batch_tokens()) {
    spec.mutable_train()->set_micro_batch_tokens(spec.data().max_length());
  }
  for (int i = 0; i < spec.memory().layers_size(); ++i) {
    if (spec.memory().layers(i).last() >= inputs->config.layers) {
      violations->Add(absl::StrCat("memory.layers[", i, "].last"),
                      absl::StrCat(spec.memory().layers(i).last(), " is beyond the last layer, ",
                                   inputs->config.layers - 1));
    }
  }
  if (spec.parallel().tensor() > 1) {
    if (absl::Status status = CheckSplit(inputs->config, spec.parallel().tensor()); !status.ok()) {
      AddStatus(
          "parallel.tensor",
          absl::Status(status.code(), absl::StripPrefix(status.message(), "parallel.tensor: ")),
          violations);
    }
  }
  CheckTargets(*inputs, violations);
  if (!spec.model().has_random_init()) {
    if (absl::Status status = CheckWeights(spec.model().path(), inputs->config); !status.ok()) {
      AddStatus("model.path", status, violations);
    }
  }
  absl::StatusOr<text::ModelText> text = text::ModelText::Load(spec.model().path());
  if (!text.ok()) {
    AddStatus("model.path", text.status(), violations);
    return;
  }
  inputs->text = *std::move(text);
}

absl::Status OpenData(Inputs* inputs, const std::string& cache_dir, bool want_train,
                      Violations* violations) {
  const lemo::v1::DataSpec& data = inputs->spec.data();
  const auto open = [&](const auto& files, const std::string& field,
                        std::optional<Dataset>* dataset) -> absl::Status {
    if (files.empty()) return absl::OkStatus();
    DatasetOptions options;
    options.max_length = data.max_length();
    options.overlong = OverlongFromName(data.overlong()).value_or(Overlong::kAuto);
    options.loss_on = LossOnFromName(data.loss_on()).value_or(LossOn::kAuto);
    options.cache_dir = cache_dir;
    options.vocabulary = static_cast<int32_t>(inputs->config.vocabulary);
    options.field = field;
    DataCounts counts;
    const int64_t before = violations->total();
    absl::StatusOr<Dataset> opened =
        Dataset::Open({files.begin(), files.end()}, *inputs->text, options, &counts, violations);
    if (opened.ok()) {
      *dataset = *std::move(opened);
    } else if (violations->total() == before) {
      return opened.status();
    }
    return absl::OkStatus();
  };
  if (want_train) LEMO_RETURN_IF_ERROR(open(data.train(), "data.train", &inputs->train));
  return open(data.eval(), "data.eval", &inputs->eval);
}

std::string ExistingCache(const lemo::v1::RunSpec& spec) {
  std::error_code ignored;
  return std::filesystem::is_directory(spec.data().cache_dir(), ignored) ? spec.data().cache_dir()
                                                                         : "";
}

absl::Status Validate(const lemo::v1::RunSpec& spec, Inputs* inputs, Violations* violations) {
  inputs->spec = spec;
  OpenModel(inputs, violations);
  if (!inputs->text) return violations->ToStatus();
  LEMO_RETURN_IF_ERROR(OpenData(inputs, ExistingCache(spec), /*want_train=*/true, violations));
  const lemo::v1::TokensSpec& tokens = spec.tokens();
  if (tokens.policy() == "predictor" && tokens.predictor() != "auto") {
    constexpr const char* kField = "tokens.predictor";
    const absl::Status found = NamedPredictor(spec, inputs->config).status();
    if (!found.ok()) {
      violations->Add(kField,
                      std::string(absl::StripPrefix(found.message(), absl::StrCat(kField, ": "))));
    }
  }
  return violations->ToStatus();
}

absl::Status InField(const std::string& field, const absl::Status& status) {
  if (status.ok() || absl::StartsWith(status.message(), field)) return status;
  return absl::Status(status.code(), absl::StrCat(field, ": ", status.message()));
}

}  // namespace lemo::train
