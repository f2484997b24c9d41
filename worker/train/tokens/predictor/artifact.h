// A trained predictor on disk: a directory with predictor.safetensors and card.json.
//
// The card says what the predictor was made for, and with which result. Everything that would make
// it rank by nonsense (another base model, other blocks, rotated scores or not) is compared before
// it is used. Weights and card each hold a hash of the other, so neither can be changed alone.
//
// Heads, by name: `layers.3` for the choice of layer 3 by itself, `above.3` for one choice at layer
// 3 for it and all layers above (scope nested), `stack` for a choice from the embedded rows for all
// layers. Tensors: `<head>.q.w1` ... `<head>.k.w3`, and `mlp.<layer>.w1`, `.w2`, `.bias`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/train/model/family/decoder_config.h"
#include "worker/train/tokens/allocation.h"
#include "worker/train/tokens/predictor/network.h"
#include "worker/train/tokens/predictor/quality.h"

namespace lemo::train {

std::string LayerHead(int64_t layer);
std::string AboveHead(int64_t layer);
inline constexpr const char* kStackHead = "stack";

// The model that a predictor belongs to.
struct PredictorBase {
  std::string fingerprint;  // WeightsFingerprint; empty: not compared
  std::string family;
  int64_t layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0;
};

PredictorBase MakePredictorBase(const DecoderConfig& config, std::string fingerprint);

struct PredictorCard {
  PredictorBase base;
  PredictorShape shape;  // the widths that training began with
  std::string combine = "symmetric";
  bool score_rope = false;
  bool elastic = false;

  std::string data_fingerprint;  // of the training data
  int64_t sequence_length = 0;   // tokens
  int64_t steps = 0;
  bool held_out = true;  // quality was measured on data that was not trained on
  std::map<std::string, HeadQuality> quality;          // by head, MLP ones too
  std::vector<std::pair<int64_t, double>> loss_curve;  // (step, mean loss of the heads)
  AllocatedShares allocated;                           // `keep` empty without any
  std::string created;                                 // UTC, RFC 3339
  std::string lemo_version;
};

struct Predictor {
  PredictorCard card;
  std::map<std::string, AttentionPredictor> heads;
  std::map<int64_t, MlpPredictor> mlp;  // by layer
};

// At most this many points of a loss curve are kept.
inline constexpr int64_t kLossCurvePoints = 200;
// Every so many of the losses of the steps after step `before`, and the last one.
std::vector<std::pair<int64_t, double>> ThinnedCurve(const std::vector<double>& losses,
                                                     int64_t before = 0);

// Writes `dir`, whole or not at all; a predictor that is there is replaced. Tensors are on any
// device. Errors carry the path.
absl::Status WritePredictor(const Predictor& predictor, const std::filesystem::path& dir);

// Reads and checks everything that the directory says of itself: format, hashes, names and shapes.
// NotFound when there is none, InvalidArgument with path and reason. Tensors are fp32 on the CPU.
absl::StatusOr<Predictor> ReadPredictor(const std::filesystem::path& dir);

// What a run wants of a predictor.
struct PredictorUse {
  PredictorBase base;
  int64_t block = 64;
  // `combine` and `score_rope` of the spec where they were given; empty: as the predictor has it.
  std::string combine;
  std::string score_rope;
  std::vector<std::string> heads;  // that the choices of the run need
  std::vector<int64_t> mlp;        // layers whose MLP chooses by itself
  // What its card must have measured; for the run's rows of the MLP.
  enum class Allocated { kNothing, kShares, kThresholds } allocated = Allocated::kNothing;
  std::string allocated_mlp;
};

// FailedPrecondition with every field that differs: what the predictor has, and what is wanted.
absl::Status CheckFits(const Predictor& predictor, const PredictorUse& use);

// The newest directory under `dir` that fits; an empty path when there is none. Why others were
// passed over is added to `reasons`.
absl::StatusOr<std::filesystem::path> FindPredictor(const std::filesystem::path& dir,
                                                    const PredictorUse& use,
                                                    std::vector<std::string>* reasons);

}  // namespace lemo::train
