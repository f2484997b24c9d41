#include "worker/train/loop/run_state.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "nlohmann/json.hpp"
#include "worker/train/model/tensor_view.h"

namespace lemo::train {
namespace {

constexpr const char* kTrainables = "trainables";
constexpr const char* kOptimizer = "optimizer";
constexpr const char* kPredictor = "predictor";
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

// The file's tensor of that name, which must have this shape and type.
absl::StatusOr<TensorView> Find(const LoadedCheckpoint& checkpoint, const char* stem,
                                const std::string& name, const std::vector<int64_t>& shape,
                                at::ScalarType type) {
  const TensorView* found = checkpoint.Find(stem, name);
  if (found == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(checkpoint.path.string(), " has no tensor ", name, " in ", stem));
  }
  if (found->shape != shape || ScalarTypeOf(found->type) != type) {
    return absl::InvalidArgumentError(absl::StrCat(checkpoint.path.string(), ": ", name, " in ",
                                                   stem,
                                                   " has another shape or type than this run's"));
  }
  return *found;
}

// The tensors of a checkpoint: by file and name, and of which trainable. In this order.
struct Kind {
  const char* file;
  std::string prefix;
  std::vector<at::Tensor> pieces;
};

std::vector<Kind> KindsOf(Engine& engine) {
  std::vector<at::Tensor> masters;
  for (const OptimizerPiece& piece : engine.sharded().pieces()) masters.push_back(piece.master);
  return {{kTrainables, "", masters},
          {kOptimizer, kFirst, engine.optimizer().first_moments()},
          {kOptimizer, kSecond, engine.optimizer().second_moments()}};
}

// Which part has a trainable and its moments: the largest first, to the part with the fewest
// elements.
std::vector<int> PartsOf(const std::vector<Trainable>& trainables, int parts) {
  std::vector<size_t> order(trainables.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto elements = [&](size_t i) { return c10::multiply_integers(WholeShape(trainables[i])); };
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return elements(a) > elements(b); });
  std::vector<int> parts_of(trainables.size());
  std::vector<int64_t> filled(static_cast<size_t>(parts));
  for (const size_t i : order) {
    const auto least = std::min_element(filled.begin(), filled.end());
    *least += elements(i);
    parts_of[i] = static_cast<int>(least - filled.begin());
  }
  return parts_of;
}

// Of a predictor that learns; takes it over when it is whole.
absl::Status RestorePredictor(const LoadedCheckpoint& checkpoint, OnlinePolicy* online) {
  if (online == nullptr) return absl::OkStatus();
  std::map<std::string, at::Tensor> state;
  if (const auto file = checkpoint.files.find(kPredictor); file != checkpoint.files.end()) {
    for (const auto& [name, view] : file->second.tensors()) state[name] = AsTensor(view);
  }
  const absl::Status status = online->Restore(state);
  if (status.ok()) return status;
  return absl::Status(status.code(),
                      absl::StrCat(checkpoint.path.string(), ": ", status.message()));
}

absl::StatusOr<RunState> ParseState(const std::string& text) {
  RunState state;
  try {
    const nlohmann::json json = nlohmann::json::parse(text);
    state.step = json.at("step");
    state.cursor = {json.at("epoch"), json.at("sequence")};
    state.tokens = json.at("tokens");
    state.labelled_tokens = json.at("labelled_tokens");
    state.train_seconds = json.at("train_seconds");
    state.train_loss = NumberOr(json, "train_loss");
    state.eval_before = NumberOr(json, "eval_before");
    state.best_eval = NumberOr(json, "best_eval");
    state.keep_least = json.value("keep_least", 0.0);
    state.report = json.at("report");
    state.fingerprint = json.at("fingerprint");
  } catch (const nlohmann::json::exception& error) {
    return absl::InvalidArgumentError(absl::StrCat("state.json: ", error.what()));
  }
  return state;
}

}  // namespace

CheckpointContents MakeCheckpoint(Engine& engine, const RunState& state, int part, int parts,
                                  std::vector<at::Tensor>* tensors) {
  const at::NoGradGuard no_grad;
  CheckpointContents contents;
  contents.step = state.step;
  contents.part = part;
  contents.parts = parts;
  const std::vector<int> parts_of = PartsOf(engine.trainables(), parts);
  const std::vector<Kind> kinds = KindsOf(engine);
  for (size_t i = 0; i < engine.trainables().size(); ++i) {
    for (const Kind& kind : kinds) {
      const at::Tensor whole = engine.Whole(i, kind.pieces);
      if (parts_of[i] != part) continue;
      // A copy: steps go on while it is written.
      tensors->push_back(at::empty(whole.sizes(), whole.options().device(at::kCPU)));
      tensors->back().copy_(whole);
      contents.tensors[kind.file][kind.prefix + engine.trainables()[i].name] =
          AsView(tensors->back());
    }
  }
  if (engine.online() != nullptr && part == 0) {
    for (auto& [name, tensor] : engine.online()->State()) {
      tensors->push_back(std::move(tensor));
      contents.tensors[kPredictor][name] = AsView(tensors->back());
    }
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
      {"keep_least", state.keep_least},
      {"report", state.report},
      {"fingerprint",
       state.fingerprint}}.dump(1);
  return contents;
}

int64_t CheckpointBytes(Engine& engine, int part, int parts) {
  constexpr int64_t kBytes = 3 * 4;  // a master and its moments
  const std::vector<Trainable>& trainables = engine.trainables();
  const std::vector<int> parts_of = PartsOf(trainables, parts);
  int64_t elements = 0;
  for (size_t i = 0; i < trainables.size(); ++i) {
    if (parts_of[i] == part) elements += c10::multiply_integers(WholeShape(trainables[i]));
  }
  if (engine.online() != nullptr && part == 0) elements += engine.online()->parameters();
  return kBytes * elements;
}

absl::StatusOr<RunState> RestoreCheckpoint(const LoadedCheckpoint* checkpoint,
                                           const std::string& fingerprint, Engine& engine,
                                           Gang& gang) {
  const at::NoGradGuard no_grad;
  const std::vector<Kind> kinds = KindsOf(engine);
  const auto master_type = engine.decoder().type == at::kDouble ? at::kDouble : at::kFloat;
  // Everything is looked at before anything is changed.
  std::vector<TensorView> views;
  const auto look = [&]() -> absl::Status {
    const absl::StatusOr<RunState> state = ParseState(checkpoint->state_json);
    if (!state.ok()) {
      return absl::Status(state.status().code(),
                          absl::StrCat(checkpoint->path.string(), "/", state.status().message()));
    }
    if (state->fingerprint != fingerprint) {
      return absl::InvalidArgumentError(
          absl::StrCat(checkpoint->path.string(),
                       " was written by a run with another spec, model or data than this one"));
    }
    for (const Trainable& trainable : engine.trainables()) {
      for (const Kind& kind : kinds) {
        LEMO_ASSIGN_OR_RETURN(views.emplace_back(),
                              Find(*checkpoint, kind.file, kind.prefix + trainable.name,
                                   WholeShape(trainable), master_type));
      }
    }
    return RestorePredictor(*checkpoint, engine.online());
  };
  LEMO_RETURN_IF_ERROR(Agree(gang.world(), gang.leads() ? look() : absl::OkStatus()));
  const std::string text =
      BroadcastText(gang.world(), gang.leads() ? checkpoint->state_json : "", 0);
  LEMO_ASSIGN_OR_RETURN(const RunState restored, ParseState(text));
  for (size_t i = 0; i < engine.trainables().size(); ++i) {
    for (size_t k = 0; k < kinds.size(); ++k) {
      const at::Tensor whole = gang.leads()
                                   ? AsTensor(views[i * kinds.size() + k])
                                   : at::empty(WholeShape(engine.trainables()[i]), master_type);
      gang.world().Broadcast(whole, 0).Wait();
      engine.TakePart(i, whole, kinds[k].pieces);
    }
  }
  engine.sharded().SpreadValues();
  engine.optimizer().Restore(restored.step);
  return restored;
}

}  // namespace lemo::train
