#include "worker/train/loop/publisher.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "worker/train/loop/device.h"
#include "worker/train/loop/device_batch.h"
#include "worker/train/model/family/family.h"
#include "worker/train/model/model_split.h"
#include "worker/train/model/tensor_view.h"
#include "worker/train/parallel/shards.h"
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

LoraExport MakeLoraExport(const Engine& engine, const std::vector<at::Tensor>& masters,
                          const LoraTuner& tuner, const Inputs& inputs, HostTensors* host) {
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
  for (size_t i = 0; i < masters.size(); ++i) {
    adapter.tensors[engine.trainables()[i].name] = host->Add(masters[i]);
  }
  return adapter;
}

// The adapter that lies in `dir`, in the order of the trainables.
absl::StatusOr<std::vector<at::Tensor>> ReadAdapter(const Engine& engine, const LoraTuner& tuner,
                                                    const std::filesystem::path& dir) {
  LEMO_ASSIGN_OR_RETURN(const LoraImport import, ReadPeftAdapter(dir));
  for (const LoraModule& module : tuner.modules()) {
    const auto found = import.modules.find(module.name);
    if (found == import.modules.end() || found->second.scale != module.scale) {
      return absl::InternalError(absl::StrCat(dir.string(), " was written, but read back without ",
                                              module.name, " or with another scale"));
    }
  }
  std::vector<at::Tensor> tensors;
  for (const Trainable& trainable : engine.trainables()) {
    tensors.push_back(AsTensor(import.tensors.at(trainable.name)).clone());
  }
  return tensors;
}

// Writes the adapter, reads it again, and answers the largest difference of the logits that the
// model then has with it in place of its own tensors, which it gets back.
absl::StatusOr<double> PublishAdapter(Engine& engine, Gang& gang, const Inputs& inputs,
                                      const LoraTuner& tuner, const std::filesystem::path& dir,
                                      const ExportExtras& extras, const MicroBatch& held_out,
                                      const at::Tensor& live) {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> masters = engine.WholeMasters();
  std::vector<at::Tensor> loaded;
  const auto write = [&]() -> absl::Status {
    HostTensors host;
    LEMO_RETURN_IF_ERROR(
        WritePeftAdapter(dir, MakeLoraExport(engine, masters, tuner, inputs, &host), extras));
    LEMO_ASSIGN_OR_RETURN(loaded, ReadAdapter(engine, tuner, dir));
    return absl::OkStatus();
  };
  LEMO_RETURN_IF_ERROR(Agree(gang.world(), gang.leads() ? write() : absl::OkStatus()));
  std::vector<at::Tensor> own;
  for (const at::Tensor& master : masters) own.push_back(master.clone());
  for (size_t i = 0; i < masters.size(); ++i) {
    if (!gang.leads()) loaded.push_back(at::empty(masters[i].sizes(), masters[i].scalar_type()));
    gang.world().Broadcast(loaded[i], 0).Wait();
  }
  engine.SetMasters(loaded);
  const at::Tensor logits = engine.Logits(held_out);
  engine.SetMasters(own);
  return MaxDifference(live, logits);
}

// A model that lies in a directory, without any tuner; of a tensor group's ranks each has the part
// that it has of the live one.
struct WrittenModel {
  DecoderConfig config;
  std::optional<ModelSplit> split;
  std::optional<ModelWeights> weights;
};

absl::StatusOr<WrittenModel> LoadModel(const std::filesystem::path& dir, const Decoder& live) {
  WrittenModel model;
  LEMO_ASSIGN_OR_RETURN(model.config, LoadDecoderConfig(dir));
  if (live.split) {
    LEMO_ASSIGN_OR_RETURN(model.split,
                          ModelSplit::Make(model.config, live.split->rank, live.split->ranks));
    model.split->shares_rows = live.split->shares_rows;
  }
  LEMO_ASSIGN_OR_RETURN(model.weights, LoadWeights(dir, model.config, live.type, live.device,
                                                   model.split ? &*model.split : nullptr));
  return model;
}

at::Tensor LogitsOf(const WrittenModel& model, const Decoder& live, const MicroBatch& held_out) {
  const Decoder decoder = model.split ? Decoder(*model.split, *model.weights, *live.tensor)
                                      : Decoder(model.config, *model.weights);
  Trainables none;
  Tape tape(decoder, none, {.policies = std::vector<StoragePolicy>(model.config.layers)},
            RowBounds::Dense(model.config.layers, held_out.rows()));
  CrossEntropyObjective objective(decoder, none, /*segment_rows=*/0);
  const DeviceBatch device = ToDevice(held_out, decoder);
  return objective.Logits(
      tape.Forward(device.tokens, device.space, nullptr, {}, /*for_backward=*/false));
}

// Every parameter of the live model by name, a tuner's additions merged into the weights in fp32.
// All ranks call; the first one gets the tensors.
std::map<std::string, at::Tensor> MergedTensors(Engine& engine, Gang& gang, const LoraTuner* lora) {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> masters = engine.WholeMasters();
  std::map<std::string, at::Tensor> trained;
  for (size_t i = 0; i < masters.size(); ++i) trained[engine.trainables()[i].name] = masters[i];
  std::map<std::string, const LoraModule*> modules;
  if (lora != nullptr) {
    for (const LoraModule& module : lora->modules()) modules[module.name + ".weight"] = &module;
  }
  if (gang.data().rank() != 0) return {};
  const Decoder& decoder = engine.decoder();
  const auto whole = [&decoder](const std::string& name, const at::Tensor& part) {
    return decoder.tensor != nullptr ? GatherWhole(part, decoder.ShardOf(name), *decoder.tensor)
                                     : part;
  };
  std::map<std::string, at::Tensor> merged;
  engine.decoder().VisitParameters(
      [&](const std::string& name, int64_t, Stage, at::Tensor& tensor) {
        at::Tensor value;
        const auto full = trained.find(name);
        const auto found = modules.find(name);
        if (full != trained.end()) {
          value = full->second.to(decoder.type);
        } else {
          value = whole(name, tensor);
        }
        if (!gang.leads()) return;
        if (found != modules.end()) {
          const LoraModule& module = *found->second;
          const at::Tensor& a = trained.at(LoraKey(module.name, "A"));
          const at::Tensor& b = trained.at(LoraKey(module.name, "B"));
          value = (value.to(a.scalar_type()) + at::matmul(b, a) * module.scale).to(decoder.type);
        }
        merged[name] = value;
      });
  return merged;
}

}  // namespace

absl::StatusOr<Published> Publish(Engine& engine, Gang& gang, const Inputs& inputs,
                                  const MicroBatch& held_out,
                                  std::vector<std::pair<std::string, std::string>> summary) {
  const std::filesystem::path out = inputs.spec.output().dir();
  const ExportExtras extras = MakeExtras(inputs, std::move(summary));
  const auto* lora = dynamic_cast<const LoraTuner*>(&engine.tuner());
  const at::Tensor live = engine.Logits(held_out);
  const double largest = live.abs().max().item<double>();
  Published published;
  if (lora != nullptr) {
    published.adapter_dir = out / kAdapterDirectory;
    LEMO_ASSIGN_OR_RETURN(
        published.max_logit_difference,
        PublishAdapter(engine, gang, inputs, *lora, published.adapter_dir, extras, held_out, live));
    LEMO_RETURN_IF_ERROR(
        CheckDifference(published.adapter_dir, published.max_logit_difference, 1e-6 * largest));
  }
  if (lora == nullptr || inputs.spec.output().merge()) {
    published.model_dir = out / kModelDirectory;
    const std::map<std::string, at::Tensor> tensors = MergedTensors(engine, gang, lora);
    const auto write = [&]() -> absl::Status {
      HostTensors host;
      FullModelExport model;
      model.base_model_name_or_path = inputs.spec.model().path();
      model.dtype = TypeName(engine.decoder().type);
      model.tied_embeddings = inputs.config.tied_embeddings;
      if (lora != nullptr) model.title = "Merged adapter";
      for (const auto& [name, tensor] : tensors) model.tensors[name] = host.Add(tensor);
      return WriteModelDirectory(published.model_dir, inputs.spec.model().path(), model, extras);
    };
    LEMO_RETURN_IF_ERROR(Agree(gang.world(), gang.leads() ? write() : absl::OkStatus()));
    // The ranks beside the one that wrote read it again.
    const bool reads = gang.data().rank() == 0;
    WrittenModel model;
    const auto load = [&]() -> absl::Status {
      LEMO_ASSIGN_OR_RETURN(model, LoadModel(published.model_dir, engine.decoder()));
      return absl::OkStatus();
    };
    LEMO_RETURN_IF_ERROR(Agree(gang.world(), reads ? load() : absl::OkStatus()));
    double difference = 0;
    if (reads) difference = MaxDifference(live, LogitsOf(model, engine.decoder(), held_out));
    // A merged weight is rounded once to the compute type (eps is half a unit); through the layers
    // that grows to some tens of units of the largest logit. The rest must be equal.
    const double epsilon = engine.decoder().type == at::kBFloat16 ? 0x1p-8
                           : engine.decoder().type == at::kHalf   ? 0x1p-11
                                                                  : 0x1p-24;
    const double bound = lora != nullptr ? 64 * epsilon * largest : 1e-6 * largest;
    LEMO_RETURN_IF_ERROR(
        Agree(gang.world(), CheckDifference(published.model_dir, difference, bound)));
    published.max_logit_difference = std::max(published.max_logit_difference, difference);
  }
  return published;
}

}  // namespace lemo::train
