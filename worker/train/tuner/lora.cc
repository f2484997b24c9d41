#include "worker/train/tuner/lora.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/status_macros.h"
#include "common/violations.h"
#include "kernels/dropout/dropout.h"
#include "worker/train/memory/counting_allocator.h"
#include "worker/train/model/random_tensor.h"
#include "worker/train/model/tensor_view.h"
#include "worker/train/publish/peft_adapter.h"
#include "worker/train/publish/peft_pattern.h"

namespace lemo::train {
namespace {

constexpr const char* kAllLinear = "all-linear";

template <typename Map, typename Value>
Value ByPattern(const Map& patterns, const std::string& name, Value otherwise) {
  // std::map gives a fixed order, so that two keys that match one name always resolve alike.
  const std::map<std::string, Value> ordered(patterns.begin(), patterns.end());
  for (const auto& [key, value] : ordered) {
    if (MatchesPeftPattern(name, key)) return value;
  }
  return otherwise;
}

std::vector<std::string> LastNames(Decoder& decoder) {
  std::vector<std::string> names;
  for (const Projection* projection : decoder.layers.front().Projections()) {
    names.push_back(projection->name.substr(projection->name.rfind('.') + 1));
  }
  return names;
}

absl::Status CheckTargets(Decoder& decoder, const lemo::v1::LoraSpec& spec) {
  std::vector<std::string> unknown;
  for (const std::string& target : spec.targets()) {
    bool found = target == kAllLinear;
    for (DecoderLayer& layer : decoder.layers) {
      for (const Projection* projection : layer.Projections()) {
        found = found || MatchesPeftTarget(projection->name, target);
      }
    }
    if (!found) unknown.push_back(target);
  }
  if (unknown.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "tuner.lora.targets: no linear module of this model is called ", absl::StrJoin(unknown, ", "),
      "; it has ", absl::StrJoin(LastNames(decoder), ", "), " (or use all-linear)"));
}

bool IsTarget(const lemo::v1::LoraSpec& spec, const std::string& name) {
  return std::any_of(spec.targets().begin(), spec.targets().end(), [&name](const std::string& t) {
    return t == kAllLinear || MatchesPeftTarget(name, t);
  });
}

LoraModule ModuleOf(const lemo::v1::LoraSpec& spec, const std::string& name) {
  LoraModule module{.name = name,
                    .rank = ByPattern(spec.rank_pattern(), name, spec.rank()),
                    .alpha = ByPattern(spec.alpha_pattern(), name, spec.alpha())};
  const double rank = static_cast<double>(module.rank);
  module.scale = module.alpha / (spec.rslora() ? std::sqrt(rank) : rank);
  return module;
}

// Of the whole weight, whatever part of it is here.
std::vector<int64_t> WeightShape(const Projection& projection, const Decoder& decoder) {
  return WholeShape(projection.weight.sizes().vec(), decoder.ShardOf(projection.name + ".weight"));
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// That the adapter holds exactly the spec's modules, with its ranks, alphas and scales and the
// model's shapes. Looks before anything is made, so that a refused adapter changes nothing.
absl::Status CheckImport(Decoder& decoder, const lemo::v1::LoraSpec& spec,
                         const LoraImport& import) {
  Violations faults;
  const auto fault = [&](const std::string& module, const std::string& reason) {
    faults.Add({.field = "tuner.lora.init_from",
                .reason = absl::StrCat(module, " ", reason),
                .file = spec.init_from()});
  };
  std::map<std::string, ImportedModule> left = import.modules;
  for (DecoderLayer& layer : decoder.layers) {
    for (const Projection* projection : layer.Projections()) {
      const std::string& name = projection->name;
      if (!IsTarget(spec, name)) continue;
      const LoraModule wanted = ModuleOf(spec, name);
      const auto found = left.find(name);
      if (found == left.end()) {
        fault(name, "is a target of this spec, but the adapter does not have it");
        continue;
      }
      const ImportedModule had = found->second;
      left.erase(found);
      if (had.rank != wanted.rank) {
        fault(name, absl::StrCat("has rank ", had.rank, ", this spec gives ", wanted.rank));
      }
      if (had.alpha != wanted.alpha) {
        fault(name, absl::StrCat("has alpha ", had.alpha, ", this spec gives ", wanted.alpha));
      }
      if (had.rank != wanted.rank || had.alpha != wanted.alpha) continue;
      if (had.scale != wanted.scale) {
        fault(name, absl::StrCat("is scaled by ", had.scale, ", this spec gives ", wanted.scale,
                                 ": one of the two uses rsLoRA"));
      }
      const std::vector<int64_t> weight = WeightShape(*projection, decoder);
      const std::vector<int64_t> a = {wanted.rank, weight[1]};
      const std::vector<int64_t> b = {weight[0], wanted.rank};
      const std::vector<int64_t>& had_a = import.tensors.at(LoraKey(name, "A")).shape;
      const std::vector<int64_t>& had_b = import.tensors.at(LoraKey(name, "B")).shape;
      if (had_a != a || had_b != b) {
        fault(name, absl::StrCat("has A ", ShapeText(had_a), " and B ", ShapeText(had_b),
                                 ", this model needs ", ShapeText(a), " and ", ShapeText(b)));
      }
    }
  }
  for (const auto& [name, module] : left) fault(name, "is no target of this spec in this model");
  return faults.ToStatus();
}

Projection::Branch MakeBranch(const at::Tensor& a, const at::Tensor& b, double scale,
                              double dropout, int64_t stream, int64_t first_column) {
  return [a, b, scale, dropout, stream, first_column](
             const at::Tensor& x, const StageContext& context, const Output& output) {
    at::Tensor input = x;
    if (dropout > 0 && context.row_ids.defined()) {
      input = kernels::Dropout(
          x, dropout,
          {.seed = context.dropout_seed, .stream = stream, .first_column = first_column},
          context.row_ids);
    }
    // The scale goes where the tensor is small: [rows, rank].
    const at::Tensor low = LinearGraph(input, a, {}, Output::Compute()) * scale;
    return LinearGraph(low, b, {}, output);
  };
}

}  // namespace

absl::StatusOr<Trainables> LoraTuner::Attach(Decoder& decoder, uint64_t seed) {
  LEMO_RETURN_IF_ERROR(CheckTargets(decoder, spec_));
  LoraImport import;
  if (!spec_.init_from().empty()) {
    absl::StatusOr<LoraImport> read = ReadPeftAdapter(spec_.init_from());
    if (!read.ok()) {
      return absl::Status(read.status().code(),
                          absl::StrCat("tuner.lora.init_from: ", read.status().message()));
    }
    import = *std::move(read);
    LEMO_RETURN_IF_ERROR(CheckImport(decoder, spec_, import));
  }

  const ScopedMemoryCategory category(MemoryCategory::kTrainable);
  const auto master_type = decoder.type == at::kDouble ? at::kDouble : at::kFloat;
  Trainables trainables;

  // `start` is the whole tensor, of which this rank takes its part.
  const auto add = [&](const std::string& name, int64_t layer, Stage stage, const Shard& shard,
                       const at::Tensor& start) {
    Trainable trainable;
    trainable.name = name;
    trainable.layer = layer;
    trainable.stage = stage;
    trainable.shard = shard;
    // A part is copied, or it would hold the whole one's memory.
    const at::Tensor part =
        shard.cut() ? NarrowToShard(start, shard).clone(at::MemoryFormat::Contiguous) : start;
    trainable.master = part.to(decoder.device, master_type);
    if (const auto found = import.tensors.find(name); found != import.tensors.end()) {
      trainable.master.copy_(NarrowToShard(AsTensor(found->second), shard));
    }
    trainable.value =
        decoder.type == master_type ? trainable.master : trainable.master.to(decoder.type);
    trainable.value.set_requires_grad(true);
    trainable.grad = at::zeros_like(trainable.master);
    trainables.push_back(std::move(trainable));
    return trainables.back().value;
  };

  int64_t stream = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(decoder.layers.size()); ++i) {
    DecoderLayer& layer = decoder.layers[i];
    for (Projection* projection : layer.Projections()) {
      ++stream;  // counts all modules, so that adding a target changes no other module's dropout
      const std::string& name = projection->name;
      if (!IsTarget(spec_, name)) continue;
      LoraModule module = ModuleOf(spec_, name);
      const Stage stage =
          projection == &layer.o ? Stage::kOutput
          : projection == &layer.q || projection == &layer.k || projection == &layer.v
              ? Stage::kQkv
              : Stage::kMlp;
      const std::vector<int64_t> weight = WeightShape(*projection, decoder);
      const int64_t out = weight[0], in = weight[1];
      // A reads what the projection reads, B makes what it makes: they are cut where it is.
      const Shard cut = decoder.ShardOf(name + ".weight");
      const Shard cut_a = cut.dim == 1 ? cut : Shard{}, cut_b = cut.dim == 0 ? cut : Shard{};
      const std::string key_a = LoraKey(name, "A"), key_b = LoraKey(name, "B");
      const at::Tensor a = add(
          key_a, i, stage, cut_a,
          UniformTensor({module.rank, in}, 1.0 / std::sqrt(static_cast<double>(in)), seed, key_a));
      const at::Tensor b = add(key_b, i, stage, cut_b, at::zeros({out, module.rank}, at::kFloat));
      projection->branch =
          MakeBranch(a, b, module.scale, spec_.dropout(), stream, /*first_column=*/cut_a.first);
      modules_.push_back(std::move(module));
    }
  }
  return trainables;
}

}  // namespace lemo::train
