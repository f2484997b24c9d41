#include "worker/train/loop/run_state.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "worker/train/model/tensor_view.h"

namespace lemo::train {
namespace {

constexpr const char* kTrainables = "trainables";
constexpr const char* kOptimizer = "optimizer";
constexpr const char* kFirst = "exp_avg.";
constexpr const char* kSecond = "exp_avg_sq.";

// JSON has no NaN; null stands for it.
nlohmann::json Number(double value) {
  return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json(nullptr);
}

double NumberOr(const nlohmann::json& object, const char* key) {
  const nlohmann::json& value = object.at(key);
  return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
}

// Pairs each tensor of the engine with the one of the file, checking names, shapes and types.
absl::Status Match(const SafetensorsFile& file, const std::string& name, const at::Tensor& live,
                   std::vector<std::pair<at::Tensor, TensorView>>* pairs) {
  const auto found = file.tensors().find(name);
  if (found == file.tensors().end()) {
    return absl::InvalidArgumentError(absl::StrCat(file.path().string(), " has no tensor ", name));
  }
  if (found->second.shape != live.sizes().vec() ||
      ScalarTypeOf(found->second.type) != live.scalar_type()) {
    return absl::InvalidArgumentError(absl::StrCat(file.path().string(), ": ", name,
                                                   " has another shape or type than this run's"));
  }
  pairs->emplace_back(live, found->second);
  return absl::OkStatus();
}

}  // namespace

CheckpointContents MakeCheckpoint(Engine& engine, const RunState& state,
                                  std::vector<at::Tensor>* tensors) {
  CheckpointContents contents;
  contents.step = state.step;
  const auto add = [&](const char* file, const std::string& name, const at::Tensor& tensor) {
    tensors->push_back(tensor.detach().to(at::kCPU).contiguous());
    contents.tensors[file][name] = AsView(tensors->back());
  };
  const Trainables& trainables = engine.trainables();
  for (size_t i = 0; i < trainables.size(); ++i) {
    add(kTrainables, trainables[i].name, trainables[i].master);
    add(kOptimizer, kFirst + trainables[i].name, engine.optimizer().first_moments()[i]);
    add(kOptimizer, kSecond + trainables[i].name, engine.optimizer().second_moments()[i]);
  }
  contents.state_json = nlohmann::json{
      {"step", state.step},
      {"epoch", state.cursor.epoch},
      {"sequence", state.cursor.sequence},
      {"tokens", state.tokens},
      {"labelled_tokens", state.labelled_tokens},
      {"train_seconds", state.train_seconds},
      {"train_loss", Number(state.train_loss)},
      {"eval_before", Number(state.eval_before)},
      {"best_eval", Number(state.best_eval)},
      {"report", state.report},
      {"fingerprint",
       state.fingerprint}}.dump(1);
  return contents;
}

absl::StatusOr<RunState> RestoreCheckpoint(const LoadedCheckpoint& checkpoint,
                                           const std::string& fingerprint, Engine& engine) {
  RunState state;
  try {
    const nlohmann::json json = nlohmann::json::parse(checkpoint.state_json);
    state.step = json.at("step");
    state.cursor = {json.at("epoch"), json.at("sequence")};
    state.tokens = json.at("tokens");
    state.labelled_tokens = json.at("labelled_tokens");
    state.train_seconds = json.at("train_seconds");
    state.train_loss = NumberOr(json, "train_loss");
    state.eval_before = NumberOr(json, "eval_before");
    state.best_eval = NumberOr(json, "best_eval");
    state.report = json.at("report");
    state.fingerprint = json.at("fingerprint");
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.path.string(), "/state.json: ", error.what()));
  }
  if (state.fingerprint != fingerprint) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.path.string(),
                     " was written by a run with another spec, model or data than this one"));
  }
  std::vector<std::pair<at::Tensor, TensorView>> pairs;
  const auto match = [&](const char* file, const std::string& name,
                         const at::Tensor& live) -> absl::Status {
    const auto found = checkpoint.files.find(file);
    if (found == checkpoint.files.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(checkpoint.path.string(), " has no ", file, ".safetensors"));
    }
    return Match(found->second, name, live, &pairs);
  };
  Trainables& trainables = engine.trainables();
  for (size_t i = 0; i < trainables.size(); ++i) {
    const std::string& name = trainables[i].name;
    for (const absl::Status& status :
         {match(kTrainables, name, trainables[i].master),
          match(kOptimizer, kFirst + name, engine.optimizer().first_moments()[i]),
          match(kOptimizer, kSecond + name, engine.optimizer().second_moments()[i])}) {
      if (!status.ok()) return status;
    }
  }
  const at::NoGradGuard no_grad;
  for (auto& [live, view] : pairs) live.copy_(AsTensor(view));
  RefreshValues(trainables);
  engine.optimizer().Restore(state.step);
  return state;
}

}  // namespace lemo::train
