#include "worker/train/loop/publisher.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/train/loop/device.h"
#include "worker/train/loop/device_batch.h"
#include "worker/train/model/family/family.h"
#include "worker/train/model/tensor_view.h"
#include "worker/train/publish/full_model.h"
#include "worker/train/publish/peft_adapter.h"
#include "worker/train/spec/spec.h"
#include "worker/train/tuner/lora.h"

namespace lemo::train {
namespace {

// What the views of an export look at: contiguous, on the CPU.
class HostTensors {
 public:
  TensorView Add(const at::Tensor& tensor) {
    tensors_.push_back(tensor.detach().to(at::kCPU).contiguous());
    return AsView(tensors_.back());
  }

 private:
  std::vector<at::Tensor> tensors_;
};

// NaN when either has one, so that a bound is never met by accident.
double MaxDifference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

absl::Status CheckDifference(const std::filesystem::path& dir, double difference, double bound) {
  if (difference <= bound) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat(dir.string(), " was written and loaded again, but its logits differ by ",
                   difference, " from the live model's; at most ", bound, " is rounding"));
}

ExportExtras MakeExtras(const Inputs& inputs,
                        std::vector<std::pair<std::string, std::string>> summary) {
  ExportExtras extras;
  extras.model_dir = inputs.spec.model().path();
  if (inputs.text->chat_template()) {
    extras.chat_template = inputs.text->chat_template()->source();
    extras.chat_template_hash = inputs.text->chat_template()->hash();
  }
  extras.run_spec_json = RunSpecToJson(inputs.spec);
  extras.lemo_version = kLemoVersion;
  extras.summary = std::move(summary);
  return extras;
}

LoraExport MakeLoraExport(Engine& engine, const LoraTuner& tuner, const Inputs& inputs,
                          HostTensors* host) {
  const lemo::v1::LoraSpec& spec = tuner.spec();
  LoraExport adapter;
  adapter.base_model_name_or_path = inputs.spec.model().path();
  adapter.rank = spec.rank();
  adapter.alpha = spec.alpha();
  adapter.dropout = spec.dropout();
  adapter.rslora = spec.rslora();
  adapter.target_modules = {spec.targets().begin(), spec.targets().end()};
  adapter.rank_pattern = {spec.rank_pattern().begin(), spec.rank_pattern().end()};
  adapter.alpha_pattern = {spec.alpha_pattern().begin(), spec.alpha_pattern().end()};
  for (const Trainable& trainable : engine.trainables()) {
    adapter.tensors[trainable.name] = host->Add(trainable.master);
  }
  return adapter;
}

// Logits of the engine with the adapter that lies in `dir` in place of its own, which it gets back.
absl::StatusOr<at::Tensor> LogitsOfAdapter(Engine& engine, const LoraTuner& tuner,
                                           const std::filesystem::path& dir,
                                           const MicroBatch& held_out) {
  LEMO_ASSIGN_OR_RETURN(const LoraImport import, ReadPeftAdapter(dir));
  for (const LoraModule& module : tuner.modules()) {
    const auto found = import.modules.find(module.name);
    if (found == import.modules.end() || found->second.scale != module.scale) {
      return absl::InternalError(absl::StrCat(dir.string(), " was written, but read back without ",
                                              module.name, " or with another scale"));
    }
  }
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> live;
  for (Trainable& trainable : engine.trainables()) {
    live.push_back(trainable.master.clone());
    trainable.master.copy_(AsTensor(import.tensors.at(trainable.name)));
  }
  RefreshValues(engine.trainables());
  const at::Tensor logits = engine.Logits(held_out);
  for (size_t i = 0; i < live.size(); ++i) engine.trainables()[i].master.copy_(live[i]);
  RefreshValues(engine.trainables());
  return logits;
}

// Logits of the whole model that lies in `dir`, without any tuner.
absl::StatusOr<at::Tensor> LogitsOfModel(const std::filesystem::path& dir, const Decoder& live,
                                         const MicroBatch& held_out) {
  LEMO_ASSIGN_OR_RETURN(const DecoderConfig config, LoadDecoderConfig(dir));
  LEMO_ASSIGN_OR_RETURN(const ModelWeights weights,
                        LoadWeights(dir, config, live.type, live.device));
  const Decoder decoder(config, weights);
  Trainables none;
  Tape tape(decoder, none, {.policies = std::vector<StoragePolicy>(config.layers)},
            RowBounds::Dense(config.layers, held_out.rows()));
  CrossEntropyObjective objective(decoder, none, /*segment_rows=*/0);
  const DeviceBatch device = ToDevice(held_out, decoder);
  return objective.Logits(
      tape.Forward(device.tokens, device.space, nullptr, {}, /*for_backward=*/false));
}

// Every parameter of the live model by name, a tuner's additions merged into the weights in fp32.
std::map<std::string, at::Tensor> MergedTensors(Engine& engine, const LoraTuner* lora) {
  const at::NoGradGuard no_grad;
  std::map<std::string, at::Tensor> adapter;
  for (const Trainable& trainable : engine.trainables()) adapter[trainable.name] = trainable.master;
  std::map<std::string, const LoraModule*> modules;
  if (lora != nullptr) {
    for (const LoraModule& module : lora->modules()) modules[module.name + ".weight"] = &module;
  }
  std::map<std::string, at::Tensor> merged;
  engine.decoder().VisitParameters(
      [&](const std::string& name, int64_t, Stage, at::Tensor& tensor) {
        const auto found = modules.find(name);
        if (found == modules.end()) {
          merged[name] = tensor;
          return;
        }
        const LoraModule& module = *found->second;
        const at::Tensor& a = adapter.at(LoraKey(module.name, "A"));
        const at::Tensor& b = adapter.at(LoraKey(module.name, "B"));
        merged[name] =
            (tensor.to(a.scalar_type()) + at::matmul(b, a) * module.scale).to(tensor.scalar_type());
      });
  return merged;
}

}  // namespace

absl::StatusOr<Published> Publish(Engine& engine, const Inputs& inputs, const MicroBatch& held_out,
                                  std::vector<std::pair<std::string, std::string>> summary) {
  const std::filesystem::path out = inputs.spec.output().dir();
  const ExportExtras extras = MakeExtras(inputs, std::move(summary));
  const auto* lora = dynamic_cast<const LoraTuner*>(&engine.tuner());
  const at::Tensor live = engine.Logits(held_out);
  const double largest = live.abs().max().item<double>();
  Published published;
  if (lora != nullptr) {
    HostTensors host;
    published.adapter_dir = out / kAdapterDirectory;
    LEMO_RETURN_IF_ERROR(WritePeftAdapter(published.adapter_dir,
                                          MakeLoraExport(engine, *lora, inputs, &host), extras));
    LEMO_ASSIGN_OR_RETURN(const at::Tensor logits,
                          LogitsOfAdapter(engine, *lora, published.adapter_dir, held_out));
    published.max_logit_difference = MaxDifference(live, logits);
    LEMO_RETURN_IF_ERROR(
        CheckDifference(published.adapter_dir, published.max_logit_difference, 1e-6 * largest));
  }
  if (lora == nullptr || inputs.spec.output().merge()) {
    HostTensors host;
    FullModelExport model;
    model.base_model_name_or_path = inputs.spec.model().path();
    model.dtype = TypeName(engine.decoder().type);
    model.tied_embeddings = inputs.config.tied_embeddings;
    if (lora != nullptr) model.title = "Merged adapter";
    for (const auto& [name, tensor] : MergedTensors(engine, lora)) {
      model.tensors[name] = host.Add(tensor);
    }
    published.model_dir = out / kModelDirectory;
    LEMO_RETURN_IF_ERROR(
        WriteModelDirectory(published.model_dir, inputs.spec.model().path(), model, extras));
    LEMO_ASSIGN_OR_RETURN(const at::Tensor logits,
                          LogitsOfModel(published.model_dir, engine.decoder(), held_out));
    const double difference = MaxDifference(live, logits);
    // A merged weight is rounded once to the compute type (eps is half a unit); through the layers
    // that grows to some tens of units of the largest logit. The rest must be equal.
    const double epsilon = engine.decoder().type == at::kBFloat16 ? 0x1p-8
                           : engine.decoder().type == at::kHalf   ? 0x1p-11
                                                                  : 0x1p-24;
    const double bound = lora != nullptr ? 64 * epsilon * largest : 1e-6 * largest;
    LEMO_RETURN_IF_ERROR(CheckDifference(published.model_dir, difference, bound));
    published.max_logit_difference = std::max(published.max_logit_difference, difference);
  }
  return published;
}

}  // namespace lemo::train
