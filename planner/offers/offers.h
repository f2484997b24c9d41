// What a job can be run as: candidates, their price in memory, time and rows left out, and the
// choice among them (design section 3, step 2).
//
// Pure and deterministic: the same request gives the same offers, in the same order, with the same
// ids, on every machine.
//
// A candidate fixes everything that decides bytes and seconds: window, kept rows, ranks and their
// split, micro-batch, loss segment, and what every layer stores. The last is not enumerated but
// solved: from the fastest choice (everything kept) layers step down one at a time, always the step
// that loses the fewest seconds for a byte saved, so that every point of that path is the fastest
// run of its size or near it (layer_mix.h).
//
// Quality is the share of rows that a sub-block computes, which is known, and what a caller says
// was measured for it. Nothing here invents a loss.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "planner/cost_model.h"
#include "planner/memory/learning.h"
#include "planner/memory/memory.h"
#include "planner/operators.h"

namespace lemo::planner {

// So many documents of so many tokens.
struct LengthCount {
  int64_t length = 0;
  int64_t count = 0;
};

// The tokenised data: its histogram, not its maximum alone.
struct DataShape {
  std::vector<LengthCount> documents;
  bool packing = true;  // several documents share a sequence of the window's length
};

// Data that is evaluated beside: rows of all of it, and of its longest document. No rows: none is.
struct Evaluated {
  int64_t rows = 0;
  int64_t longest = 0;
  double pairs = 0;   // of a row and one that it sees
  int64_t times = 0;  // in the run
  // Of a run that leaves rows out: whether each time it also passes with those that are kept, and
  // how often a sample does both ways, of so many rows.
  bool sparse = false;
  int64_t shadows = 0;
  int64_t shadow_rows = 0;
};

// kLayer: rows come back, be it behind one layer or behind a group of them.
enum class Scope { kDense, kLayer, kNested, kStack };

// One way of leaving rows out that the job allows.
struct TokenChoice {
  Scope scope = Scope::kDense;
  // Share of a document's blocks that each layer computes: one entry a layer, falling with kNested,
  // equal with kStack. Empty for all.
  std::vector<double> keep;
  // What the run spec has to say for it in the place of its own tokens.keep; empty: that is it.
  std::vector<double> spec_keep;
  bool mlp_off = false;  // kLayer: the MLP computes all rows
  bool mlp_own = false;  // kLayer: it computes rows of its own choice
  // kLayer: attention sees keys and values of all rows.
  bool kv_all = false;
  // kLayer: how many blocks are kept is known when they have been chosen. Seconds are of `keep`,
  // bytes of all of them.
  bool any_share = false;
  int64_t block = 64;
  RowChooser chooser;
  Lessons lessons;                  // one rank alone has any
  double lessons_a_step = 0;        // in the mean
  std::optional<ScoredRows> table;  // made before the run; its rows are not said
  // Share of the steps that compute all rows: those at the beginning and the end, and half of those
  // between.
  double dense_share = 0;
  // What was measured for it: loss above the dense run's, in nats, where there is such a number,
  // and in words what is known. Both absent: not measured.
  std::optional<double> loss_gap;
  std::string evidence;

  bool separate() const { return mlp_off || mlp_own; }
};

// What a sum over so many ranks takes: `latency_seconds`, and the bytes that a ring sends.
struct LinkRate {
  int64_t ranks = 2;
  double latency_seconds = 0;
  double bytes_per_second = 0;
};

// What a rank of several on one machine does while the others compute: they share its memory.
struct SharedRates {
  int64_t ranks = 2;
  Rates compute;  // as in DeviceRates
  OperatorRates operators;
  double layer_seconds = 0;
  double step_seconds = 0;
};

// What earlier runs of so many ranks took over what was foretold of them (correction.h).
struct TimeRatio {
  int64_t ranks = 1;
  double ratio = 1;
};

// A device and what connects it, by measured rates. A rate of 0, and an operator without one, is
// not known: what it would price costs no time.
struct DeviceRates {
  std::string type;  // part of an offer's identity: "cpu-epyc"
  Rates compute;     // above 0; of products and attention where `operators` has none of their own
  OperatorRates operators;
  std::string measured;  // names those rates, which are not compared one by one; "" for none
  double copy_bytes_per_second = 0;  // between device and host, for offloaded boundaries
  std::vector<LinkRate> links;       // by rising ranks
  // Of a number of ranks that is not here each has the device for itself.
  std::vector<SharedRates> shared;
  bool own_memory = false;  // apart from the host's, to which boundaries can be offloaded
  int64_t threads = 1;      // that compute; each has scratch in attention
  bool packs_keys = false;  // as MemoryOptions has it
  // Beside the operators: of a layer's forward and backward pass in every micro-batch, whatever its
  // rows, and of a step.
  double layer_seconds = 0;
  double step_seconds = 0;

  // The link between so many ranks: theirs, else that of the most ranks below them, else of the
  // fewest above. All of it 0 where none is known.
  LinkRate LinkOf(int64_t ranks) const;
};

// Bounds that an offer must keep. 0 for none.
struct OfferBounds {
  int64_t memory_bytes_max = 0;   // of one rank, by the forecast's high end
  double finish_seconds_max = 0;  // of the whole run
  double keep_min = 0;            // share of the rows, in [0, 1]
  double device_seconds_max = 0;
};

enum class Preference { kFastest, kSmallest, kMostExact };

// A run that trains a predictor for the frozen model, in place of a tuner. By one rank, on all
// rows; its micro-batches alone are left to choose.
struct Learning {
  LearningHeads heads;
  bool allocates = false;  // as LearningOptions has it
};

struct OfferRequest {
  ModelShape shape;
  int64_t element_bytes = 4;
  MemoryTuning tuning;
  std::optional<Learning> learning;  // `tuning` is then of nothing
  DataShape data;
  int64_t window = 0;                  // rows of a sequence at most
  std::vector<int64_t> short_windows;  // others that the job allows
  int64_t batch_sequences = 1;         // of one optimizer step
  int64_t steps = 1;
  double labelled_share = 1;  // of the rows; the rest carries no loss
  Evaluated evaluated;
  bool checkpoints = false;

  std::vector<TokenChoice> tokens;  // beside dense, which is always a choice
  bool may_offload = true;          // where the device has memory of its own
  std::vector<int64_t> world_sizes = {1};
  bool may_split_tensors = true;
  bool sequence = false;  // tensor groups share the rows of the residual stream, too
  std::vector<Sharding> shardings = {Sharding::kNone};  // of gangs
  std::vector<int64_t> loss_segments = {0};             // 0: as the trainer chooses
  std::vector<int64_t> micro_batch_sequences = {1};
  int64_t mix_points = 8;  // points of a path of policies, its ends included; at least 2

  DeviceRates device;
  // By ranks; 1 where there is none. Not in an offer's identity: that the times become better known
  // makes it no other run.
  std::vector<TimeRatio> time_ratios;
  OfferBounds bounds;
  Preference preference = Preference::kFastest;
  int64_t offers_max = 24;  // of a front that is longer, evenly spread ones; 0 for all
};

// Seconds of one step, by what takes them. Communication and copies are taken as not overlapped.
struct StepSeconds {
  double forward = 0;    // with the copies of what is kept
  double replay = 0;     // what backward computes again
  double backward = 0;   // of layers
  double head = 0;       // head and loss, both ways
  double selection = 0;  // choosing rows
  double optimizer = 0;
  double communication = 0;
  double offload = 0;
  double overhead = 0;
  double ratio = 1;         // of the request's time_ratios
  double Foretold() const;  // the sum of the parts
  double Total() const;     // and by how much earlier runs say it is off
};

// One operator's part of a step.
struct OperatorSeconds {
  std::string name;   // OperatorName, `sums` (bytes between ranks) or `copies` (bytes to the host)
  double amount = 0;  // as in operators.h
  double seconds = 0;
};

struct LayerStorage {
  Stored stored = Stored::kAttentionOut;
  bool offload = false;
  bool operator==(const LayerStorage&) const = default;
};

struct Offer {
  std::string id;  // 32 hexadecimal digits of its content

  // What it runs.
  int64_t window = 0;
  int token_choice = -1;  // in the request's; -1 for dense
  int64_t tensor_ranks = 1;
  int64_t data_ranks = 1;
  Sharding sharding = Sharding::kNone;
  int64_t micro_batch_sequences = 1;  // its rows are those of so many windows
  int64_t loss_segment_rows = 0;
  std::vector<LayerStorage> storage;  // one a layer

  // What it takes.
  MemoryForecast memory;                   // of one rank, the one that writes
  StepSeconds step;                        // of the mean step
  std::vector<OperatorSeconds> operators;  // of it
  double tokens_per_second = 0;            // of data, whether its rows were computed or left out
  double finish_seconds = 0;               // of all steps, and what is beside them:
  double evaluation_seconds = 0;           // all evaluations
  double shadow_seconds = 0;
  double rehearsal_seconds = 0;  // the largest micro-batch, before the first step
  double scoring_seconds = 0;    // a table of blocks, likewise
  double device_seconds = 0;
  // Share of the rows of the whole window that sub-blocks compute, in (0, 1]: the mean over layers,
  // rows that a shorter window cuts off counted as left out.
  double kept_share = 1;

  int64_t ranks() const { return tensor_ranks * data_ranks; }
};

// Whether `a` is no worse than `b` in memory, time and rows kept, and better in one of them. A
// choice of rows and a shorter window leave out others, so that of these neither is no worse than
// the other.
bool Dominates(const Offer& a, const Offer& b);

// Whether the preference likes `a` more.
bool Prefers(Preference preference, const Offer& a, const Offer& b);

// One bound of a wish that cannot be met.
struct BoundAdvice {
  std::string bound;  // `memory_bytes_max`, as in OfferBounds
  double asked = 0;
  // What it would have to become, the other bounds as they are; absent where this bound alone is
  // not enough.
  std::optional<double> needed;
};

struct Offers {
  // The front within the bounds, smallest first. No offer on it is dominated by any candidate
  // within the bounds.
  std::vector<Offer> front;
  std::optional<size_t> preferred;  // in `front`
  // Where nothing is within the bounds: the candidates that miss them least (by the bound that is
  // missed most, relative to it), nearest first, and what to change.
  std::vector<Offer> nearest;
  std::vector<BoundAdvice> advice;
  int64_t candidates = 0;
};

// Every violation of the request; empty when it can be planned.
std::vector<std::string> FaultsOf(const OfferRequest& request);

// `request` has no faults.
Offers MakeOffers(const OfferRequest& request);

// One way of running the request, whether or not it would be offered: what `run` says of what it
// runs (window, token_choice, ranks, sharding, micro-batch, segment, storage), with what it takes
// filled in. `request` has no faults and a choice of that number; a window of `run` that is not its
// own is priced as a shorter one.
Offer PriceRun(const OfferRequest& request, const Offer& run);

// Runs whose times are off alike, for the correction by earlier ones: `width 256, window 4096,
// adapters`. Width and window are rounded to powers of two.
std::string ShapeClassOf(const OfferRequest& request);

// Candidates within the bounds whose id begins with `prefix`. Whatever bounds and preference an
// offer was made under, it is found: all points of every path are looked at, not those of a front.
// `request` has no faults.
std::vector<Offer> OffersNamed(const OfferRequest& request, std::string_view prefix);

}  // namespace lemo::planner
