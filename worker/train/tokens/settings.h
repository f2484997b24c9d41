// RunSpec.tokens, checked against the model and spelled out by layer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/violations.h"
#include "lemo/v1/run_spec.pb.h"
#include "worker/train/tokens/selection.h"

namespace lemo::train {

// Over which layers one choice of rows holds (lemo-spec section 19).
enum class Scope {
  kLayer,   // one layer
  kGroup,   // a run of sparse layers
  kNested,  // from a layer to the end: rows that leave do not come back
  kStack,   // all layers: rows that are not kept are not even embedded
};

enum class MlpRows { kAll, kShared, kOwn };

struct TokenSettings {
  std::string policy = "dense";
  Scope scope = Scope::kStack;
  // Share of a document's blocks, one a layer; 1 for a layer that computes all. Equal entries with
  // scope stack, never rising with scope nested.
  std::vector<double> keep;
  MlpRows mlp = MlpRows::kShared;
  bool loss_through = false;  // only rows that every sub-block computed carry loss
  bool keep_labels = true;
  int64_t warmup_steps = 0, anneal_steps = 0, cooldown_steps = 0;
  int64_t block = 64;
  int64_t group_layers = 2;
  bool kv_all = false;
  std::vector<double> threshold;  // one a layer; empty in ratio mode
  SelectOptions select;           // keep and threshold are set choice by choice
  lemo::v1::TokensSpec spec;      // effective: what concerns one policy alone

  bool dense() const { return policy == "dense"; }
  // Shares of the layers in step `step` (from 0) of `steps`: all rows while warming up and cooling
  // down, in between falling linearly to `keep`.
  std::vector<double> KeepAt(int64_t step, int64_t steps) const;
  // `shares` (KeepAt) with none above `most` in the layers that `keep` makes sparse, or in any
  // layer where it makes none.
  std::vector<double> Capped(std::vector<double> shares, double most) const;
  // `shares` with none below `least` in the layers that drop rows.
  std::vector<double> Raised(std::vector<double> shares, double least) const;
  // Whether a row that one sub-block leaves out can take part in a later one.
  bool RowsComeBack() const { return scope == Scope::kLayer || scope == Scope::kGroup; }
  // Whether this layer's choice is that of the layer before it.
  bool ContinuesGroup(int64_t layer) const;
  // First layers of the choices that a step makes of attention's rows, ascending.
  std::vector<int64_t> Choices() const;
  // The one of them that is compared with true scores in step `step` (from 0): one after another,
  // every `recall_every_steps`. A function of the step, so that a resumed run goes on with it.
  std::optional<int64_t> MeasuredAt(int64_t step) const;
};

// Value of TokensSpec.layers. Until the predictor is known, and its card with it, all layers are
// taken to be sparse.
inline constexpr const char* kAllocated = "allocated";

// Sets every optional field of a message that names a policy other than `dense`.
void FillTokenDefaults(lemo::v1::TokensSpec* spec);

// The same of the steps of all rows that a run of `steps` steps with tokens.online begins with.
// `fresh`: its predictor has learnt nothing yet, and needs some to learn from before it chooses.
void FillWarmup(int64_t steps, bool fresh, lemo::v1::TokensSpec* spec);

// What can be said without the model.
void ValidateTokens(const lemo::v1::TokensSpec& spec, Violations* violations);

// The settings for a model of `layers` layers. `spec` has its defaults. Faults are added to
// `violations` by field; the result is then not to be used.
TokenSettings MakeTokenSettings(const lemo::v1::TokensSpec& spec, int64_t layers,
                                Violations* violations);

}  // namespace lemo::train
