#include "planner/offers/offers.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string_view>
#include <utility>

#include "planner/offers/front.h"
#include "planner/offers/identity.h"
#include "planner/offers/layer_mix.h"
#include "planner/offers/step_time.h"
#include "planner/offers/workload.h"

namespace lemo::planner {
namespace {

// Rows on which the trainer compares a published result with the live model.
constexpr int64_t kComparedRows = 256;
// What is shown where nothing is within the bounds.
constexpr size_t kNearestShown = 3;

constexpr Stored kStored[] = {Stored::kAll, Stored::kMlp, Stored::kAttentionOut, Stored::kInput};

// One candidate as far as choosing needs it; the rest is made again for those that are offered.
struct Candidate {
  size_t run = 0;    // what it has in common with others
  size_t steps = 0;  // of that run's path of policies
  Price price;
  double device_seconds = 0;
};

// What candidates have in common that differ in what layers store.
struct RunShape {
  size_t work = 0;  // in the enumeration's workloads
  RankSplit split;
  int64_t micro_batch_sequences = 1;
  int64_t loss_segment_rows = 0;
  int64_t micro_batches = 1;  // of a step and rank
};

// What a run takes in all, and what beside its steps.
struct RunSeconds {
  double steps = 0, evaluations = 0, shadows = 0, rehearsal = 0, scoring = 0;
  double Total() const { return steps + evaluations + shadows + rehearsal + scoring; }
};

// Of a step, of the rank that has `sequences` of it.
int64_t MicroBatches(const Workload& load, int64_t sequences, int64_t micro_batch_sequences) {
  const double rows = static_cast<double>(load.rows) / static_cast<double>(load.sequences) *
                      static_cast<double>(sequences);
  const double rounds = rows / static_cast<double>(micro_batch_sequences * load.window);
  return std::max<int64_t>(1, static_cast<int64_t>(std::ceil(rounds)));
}

class Enumeration {
 public:
  explicit Enumeration(const OfferRequest& request) : request_(request) {}

  Offers Make();
  std::vector<Offer> Named(std::string_view prefix);
  Offer OfRun(const Offer& run) const;

 private:
  struct Work {
    int64_t window = 0;
    int token_choice = -1;
    Workload load;
  };
  // A run shape with its path of policies and what prices it.
  struct Path {
    RunShape run;
    RunSeconds beside;
    MemoryOptions memory;
    LayerMix mix;
  };

  const TokenChoice* ChoiceOf(const Work& work) const {
    return work.token_choice < 0 ? nullptr : &request_.tokens[work.token_choice];
  }
  void Enumerate();  // all candidates
  void AddWorkloads();
  void AddPaths(size_t work, const RankSplit& split);
  void AddPath(size_t work, const StepClock& clock, const RankSplit& split,
               int64_t micro_batch_sequences, int64_t loss_segment_rows);
  // Adds the candidate that is `steps` along the path, and answers its bytes.
  int64_t AddCandidate(Path& path, const StepClock& clock, size_t steps);
  MemoryOptions MemoryOf(const Work& work, const RankSplit& split, int64_t micro_batch_sequences,
                         int64_t loss_segment_rows) const;
  std::vector<LayerStorage> StorageAfter(const Path& path, size_t steps) const;
  // What it runs, with its id; and with what it takes.
  Offer RunOf(const Candidate& candidate) const;
  Offer OfferOf(const Candidate& candidate) const;
  MemoryForecast ForecastOf(const MemoryOptions& memory, int64_t micro_batches) const;
  // Whatever layers store; and with the steps.
  RunSeconds BesideSteps(const StepClock& clock, int64_t micro_batch_sequences) const;
  RunSeconds WithSteps(RunSeconds beside, const StepSeconds& step, int64_t micro_batches) const;
  // Fills in what an offer takes, by what it runs.
  void Fill(const Work& work, MemoryOptions memory, int64_t micro_batches, Offer* offer) const;

  // How far a candidate misses the bounds: the largest ratio of what it takes to what it may take.
  double Missed(const Candidate& candidate) const;
  std::vector<BoundAdvice> Advice() const;

  const OfferRequest& request_;
  std::vector<LayerStorage> storages_;  // what a layer can choose from
  std::vector<Work> works_;
  std::vector<Path> paths_;
  std::vector<Candidate> candidates_;
};

void Enumeration::AddWorkloads() {
  const auto add = [this](int64_t window, int token_choice) {
    Work work{.window = window, .token_choice = token_choice};
    work.load = WorkloadOf(request_, window, ChoiceOf(work));
    works_.push_back(std::move(work));
  };
  add(request_.window, -1);
  for (size_t i = 0; i < request_.tokens.size(); ++i) add(request_.window, static_cast<int>(i));
  // Shorter windows are dense: the opponent that sparsity has to beat (lemo-spec section 19).
  for (const int64_t window : request_.short_windows) add(window, -1);
}

MemoryOptions Enumeration::MemoryOf(const Work& work, const RankSplit& split,
                                    int64_t micro_batch_sequences,
                                    int64_t loss_segment_rows) const {
  MemoryOptions memory;
  memory.shape = request_.shape;
  memory.element_bytes = request_.element_bytes;
  memory.tuning = request_.tuning;
  memory.tensor_ranks = split.tensor_ranks;
  memory.sequence = request_.sequence;
  memory.data_ranks = split.data_ranks;
  memory.sharding = split.sharding;
  memory.batch_rows = MostRows(request_, work.load, micro_batch_sequences);
  memory.layers = LargestLayers(request_, work.load, ChoiceOf(work), memory.batch_rows);
  const bool enters = ChoiceOf(work) != nullptr && ChoiceOf(work)->scope == Scope::kStack;
  memory.stream_rows = enters ? memory.layers.front().stream : memory.batch_rows;
  memory.rows_max = memory.batch_rows;
  memory.longest = std::min(memory.batch_rows, work.load.longest.front());
  memory.labelled = static_cast<int64_t>(
      std::ceil(static_cast<double>(memory.layers.back().stream) * request_.labelled_share));
  memory.documents =
      std::max<int64_t>(1, request_.data.packing ? memory.batch_rows / work.load.longest.back()
                                                 : micro_batch_sequences);
  memory.loss_segment_rows = loss_segment_rows;
  // A predictor is measured in any case: on its training data, if nothing is held out.
  Evaluated evaluated = request_.evaluated;
  if (request_.learning && evaluated.rows == 0) {
    evaluated = {work.load.rows, work.load.longest.front()};
  }
  if (evaluated.rows > 0) {
    // As many documents as a micro-batch may have rows, or one.
    const int64_t longest = std::min(evaluated.longest, work.window);
    const int64_t rows =
        std::max(longest, std::min(evaluated.rows, micro_batch_sequences * work.window));
    memory.evaluation = {.rows = rows, .longest = longest, .labelled = rows};
    memory.rows_max = std::max(memory.rows_max, rows);
  }
  if (const TokenChoice* choice = ChoiceOf(work)) {
    memory.chooser = choice->chooser;
    memory.lessons = choice->lessons;
    memory.chooser.own_stream |=
        request_.sequence && split.tensor_ranks > 1 && choice->chooser.by != RowChooser::By::kPlace;
    if (choice->table) {
      memory.scored = *choice->table;
      memory.scored.rows = memory.batch_rows;
      memory.scored.longest = work.load.longest.front();
    }
  }
  memory.publish_rows = std::min(kComparedRows, memory.rows_max);
  memory.checkpoints = request_.checkpoints;
  memory.threads = request_.device.threads;
  memory.packs_keys = request_.device.packs_keys;
  memory.own_memory = request_.device.own_memory;
  return memory;
}

std::vector<LayerStorage> Enumeration::StorageAfter(const Path& path, size_t steps) const {
  std::vector<LayerStorage> storage;
  for (const int64_t choice : path.mix.After(steps)) storage.push_back(storages_[choice]);
  return storage;
}

int64_t Enumeration::AddCandidate(Path& path, const StepClock& clock, size_t steps) {
  const std::vector<LayerStorage> storage = StorageAfter(path, steps);
  for (size_t l = 0; l < storage.size(); ++l) {
    path.memory.layers[l].stored = storage[l].stored;
    path.memory.layers[l].offload = storage[l].offload;
  }
  const RunSeconds seconds =
      WithSteps(path.beside, clock.Step(storage, path.run.micro_batches), path.run.micro_batches);
  Candidate candidate{.run = paths_.size(), .steps = steps};
  candidate.price = {.bytes = ForecastOf(path.memory, path.run.micro_batches).high.total,
                     .seconds = seconds.Total(),
                     .kept = works_[path.run.work].load.kept_share,
                     .chosen = works_[path.run.work].token_choice >= 0};
  candidate.device_seconds =
      candidate.price.seconds *
      static_cast<double>(path.run.split.tensor_ranks * path.run.split.data_ranks);
  candidates_.push_back(candidate);
  return candidate.price.bytes;
}

void Enumeration::AddPath(size_t work, const StepClock& clock, const RankSplit& split,
                          int64_t micro_batch_sequences, int64_t loss_segment_rows) {
  Path path;
  const Workload& load = works_[work].load;
  path.run = {
      .work = work,
      .split = split,
      .micro_batch_sequences = micro_batch_sequences,
      .loss_segment_rows = loss_segment_rows,
      .micro_batches = MicroBatches(load, clock.sequences_of_rank(), micro_batch_sequences)};
  path.memory = MemoryOf(works_[work], split, micro_batch_sequences, loss_segment_rows);
  path.beside = BesideSteps(clock, micro_batch_sequences);
  const bool down_trains = request_.tuning.full || request_.tuning.adapters.down > 0;
  std::vector<std::vector<StorageChoice>> layers;
  for (size_t l = 0; l < path.memory.layers.size(); ++l) {
    std::vector<StorageChoice> choices;
    for (const LayerStorage& storage : storages_) {
      LayerMemory layer = path.memory.layers[l];
      layer.stored = storage.stored;
      choices.push_back({.bytes = storage.offload ? 0
                                                  : SavedBytes(request_.shape, layer,
                                                               request_.element_bytes, down_trains),
                         .seconds = clock.StorageSeconds(static_cast<int64_t>(l), storage)});
    }
    layers.push_back(std::move(choices));
  }
  path.mix = MixOf(layers);

  const size_t end = path.mix.steps.size();
  // More than there are steps are the steps.
  const auto points =
      std::min(static_cast<size_t>(request_.mix_points), std::max<size_t>(end + 1, 2));
  size_t before = end + 1;
  for (size_t i = 0; i < points; ++i) {
    const size_t steps = end * i / (points - 1);
    if (steps != before) AddCandidate(path, clock, steps);
    before = steps;
  }
  // And where the path meets the bound, which evenly spread points only come near. Bytes fall along
  // the path but for temporaries of a policy's first layer, so the place is looked for by halves.
  if (const int64_t most = request_.bounds.memory_bytes_max; most > 0 && end > 0) {
    size_t low = 0, high = end;
    while (low < high) {
      const size_t middle = (low + high) / 2;
      if (AddCandidate(path, clock, middle) <= most) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
  }
  paths_.push_back(std::move(path));
}

void Enumeration::AddPaths(size_t work, const RankSplit& split) {
  const StepClock clock(request_, works_[work].load, split, ChoiceOf(works_[work]));
  std::vector<int64_t> seen;
  for (const int64_t wanted : request_.micro_batch_sequences) {
    // More than a rank has is the same as all that it has.
    const int64_t micro = std::min(wanted, clock.sequences_of_rank());
    if (std::find(seen.begin(), seen.end(), micro) != seen.end()) continue;
    seen.push_back(micro);
    for (const int64_t segment : request_.loss_segments) {
      AddPath(work, clock, split, micro, segment);
    }
  }
}

Offer Enumeration::RunOf(const Candidate& candidate) const {
  const Path& path = paths_[candidate.run];
  const Work& work = works_[path.run.work];
  Offer offer{.window = work.window,
              .token_choice = work.token_choice,
              .tensor_ranks = path.run.split.tensor_ranks,
              .data_ranks = path.run.split.data_ranks,
              .sharding = path.run.split.sharding,
              .micro_batch_sequences = path.run.micro_batch_sequences,
              .loss_segment_rows = path.run.loss_segment_rows,
              .storage = StorageAfter(path, candidate.steps)};
  offer.id = IdOf(request_, offer);
  return offer;
}

MemoryForecast Enumeration::ForecastOf(const MemoryOptions& memory, int64_t micro_batches) const {
  if (!request_.learning) return ForecastMemory(memory);
  return ForecastLearning({.shape = memory.shape,
                           .element_bytes = memory.element_bytes,
                           .heads = request_.learning->heads,
                           .rows = memory.batch_rows,
                           .longest = memory.longest,
                           .documents = memory.documents,
                           .micro_batches = micro_batches,
                           .measured = memory.evaluation,
                           .allocates = request_.learning->allocates,
                           .threads = memory.threads,
                           .packs_keys = memory.packs_keys});
}

RunSeconds Enumeration::BesideSteps(const StepClock& clock, int64_t micro_batch_sequences) const {
  const Evaluated& evaluated = request_.evaluated;
  return {
      .evaluations = static_cast<double>(evaluated.times) * clock.Evaluation(micro_batch_sequences),
      .shadows = static_cast<double>(evaluated.shadows) * clock.Shadow(micro_batch_sequences),
      .scoring = clock.Scoring(micro_batch_sequences)};
}

RunSeconds Enumeration::WithSteps(RunSeconds beside, const StepSeconds& step,
                                  int64_t micro_batches) const {
  beside.steps = static_cast<double>(request_.steps) * step.Total();
  // An offer is run with its bytes as a budget, which is tight, and then a micro-batch comes first.
  if (!request_.learning) beside.rehearsal = step.Total() / static_cast<double>(micro_batches);
  return beside;
}

Offer Enumeration::OfferOf(const Candidate& candidate) const {
  Offer offer = RunOf(candidate);
  const Path& path = paths_[candidate.run];
  Fill(works_[path.run.work], path.memory, path.run.micro_batches, &offer);
  return offer;
}

void Enumeration::Fill(const Work& work, MemoryOptions memory, int64_t micro_batches,
                       Offer* offer) const {
  for (size_t l = 0; l < offer->storage.size(); ++l) {
    memory.layers[l].stored = offer->storage[l].stored;
    memory.layers[l].offload = offer->storage[l].offload;
  }
  offer->memory = ForecastOf(memory, micro_batches);
  const StepClock clock(request_, work.load,
                        {offer->tensor_ranks, offer->data_ranks, offer->sharding}, ChoiceOf(work));
  offer->step = clock.Step(offer->storage, micro_batches);
  offer->operators = clock.Operators(offer->storage, micro_batches);
  const double rows = static_cast<double>(work.load.rows) /
                      static_cast<double>(work.load.sequences) *
                      static_cast<double>(request_.batch_sequences);
  offer->tokens_per_second = rows / offer->step.Total();
  const RunSeconds seconds =
      WithSteps(BesideSteps(clock, offer->micro_batch_sequences), offer->step, micro_batches);
  offer->finish_seconds = seconds.Total();
  offer->evaluation_seconds = seconds.evaluations;
  offer->shadow_seconds = seconds.shadows;
  offer->rehearsal_seconds = seconds.rehearsal;
  offer->scoring_seconds = seconds.scoring;
  offer->device_seconds = offer->finish_seconds * static_cast<double>(offer->ranks());
  offer->kept_share = work.load.kept_share;
}

Offer Enumeration::OfRun(const Offer& run) const {
  Work work{.window = run.window, .token_choice = run.token_choice};
  work.load = WorkloadOf(request_, work.window, ChoiceOf(work));
  const RankSplit split{run.tensor_ranks, run.data_ranks, run.sharding};
  Offer offer = run;
  const int64_t sequences =
      StepClock(request_, work.load, split, ChoiceOf(work)).sequences_of_rank();
  Fill(work, MemoryOf(work, split, run.micro_batch_sequences, run.loss_segment_rows),
       MicroBatches(work.load, sequences, run.micro_batch_sequences), &offer);
  offer.id = IdOf(request_, offer);
  return offer;
}

// Of each bound that is set: what the candidate has, what it may have, and which way is worse.
struct BoundUse {
  const char* name;
  double asked, has;
  bool at_least;  // `asked` is a least, not a most
  double Ratio() const { return at_least ? asked / has : has / asked; }
};

std::vector<BoundUse> UsesOf(const OfferBounds& bounds, const Candidate& candidate) {
  std::vector<BoundUse> uses;
  if (bounds.memory_bytes_max > 0) {
    uses.push_back({"memory_bytes_max", static_cast<double>(bounds.memory_bytes_max),
                    static_cast<double>(candidate.price.bytes), false});
  }
  if (bounds.finish_seconds_max > 0) {
    uses.push_back(
        {"finish_seconds_max", bounds.finish_seconds_max, candidate.price.seconds, false});
  }
  if (bounds.keep_min > 0) {
    uses.push_back({"keep_min", bounds.keep_min, candidate.price.kept, true});
  }
  if (bounds.device_seconds_max > 0) {
    uses.push_back(
        {"device_seconds_max", bounds.device_seconds_max, candidate.device_seconds, false});
  }
  return uses;
}

double Enumeration::Missed(const Candidate& candidate) const {
  double worst = 0;
  for (const BoundUse& use : UsesOf(request_.bounds, candidate)) {
    worst = std::max(worst, use.Ratio());
  }
  return worst;
}

std::vector<BoundAdvice> Enumeration::Advice() const {
  std::vector<BoundAdvice> advice;
  for (const BoundUse& use : UsesOf(request_.bounds, candidates_.front())) {
    advice.push_back({.bound = use.name, .asked = use.asked});
  }
  for (const Candidate& candidate : candidates_) {
    const std::vector<BoundUse> uses = UsesOf(request_.bounds, candidate);
    for (size_t i = 0; i < uses.size(); ++i) {
      bool others_hold = true;
      for (size_t k = 0; k < uses.size(); ++k) others_hold &= k == i || uses[k].Ratio() <= 1;
      std::optional<double>& needed = advice[i].needed;
      if (!others_hold) continue;
      if (!needed || (uses[i].at_least ? uses[i].has > *needed : uses[i].has < *needed)) {
        needed = uses[i].has;
      }
    }
  }
  return advice;
}

bool Prefers(Preference preference, const Price& a, const Price& b) {
  switch (preference) {
    case Preference::kFastest:
      if (a.seconds != b.seconds) return a.seconds < b.seconds;
      break;
    case Preference::kSmallest:
      if (a.bytes != b.bytes) return a.bytes < b.bytes;
      break;
    case Preference::kMostExact:
      if (a.kept != b.kept) return a.kept > b.kept;
      break;
  }
  // What is left is a matter of time, then of room.
  if (a.seconds != b.seconds) return a.seconds < b.seconds;
  return a.bytes < b.bytes;
}

// The first of `prices` that the preference likes best.
size_t PreferredOf(const std::vector<Price>& prices, Preference preference) {
  size_t best = 0;
  for (size_t i = 1; i < prices.size(); ++i) {
    if (Prefers(preference, prices[i], prices[best])) best = i;
  }
  return best;
}

void Enumeration::Enumerate() {
  for (const Stored stored : kStored) {
    // Where nothing goes backward, nothing is kept for it.
    if (request_.learning && stored != Stored::kInput) continue;
    storages_.push_back({stored, false});
    const bool offloads = request_.may_offload && request_.device.own_memory && !request_.learning;
    if (offloads) storages_.push_back({stored, true});
  }
  AddWorkloads();
  for (size_t work = 0; work < works_.size(); ++work) {
    for (const int64_t world : request_.world_sizes) {
      for (int64_t tensor = 1; tensor <= world; ++tensor) {
        if (world % tensor != 0 || (tensor > 1 && !request_.may_split_tensors)) continue;
        const int64_t data = world / tensor;
        if (!TensorRanksFit(request_.shape, tensor) || data > request_.batch_sequences) continue;
        // Each rank would teach a predictor of its own.
        const TokenChoice* choice = ChoiceOf(works_[work]);
        if (world > 1 && choice != nullptr && choice->lessons.parameters > 0) continue;
        for (const Sharding sharding : request_.shardings) {
          // One data parallel rank has nothing to divide.
          if (data == 1 && sharding != request_.shardings.front()) continue;
          AddPaths(work, {tensor, data, data == 1 ? Sharding::kNone : sharding});
        }
      }
    }
  }
}

std::vector<Offer> Enumeration::Named(std::string_view prefix) {
  Enumerate();
  std::vector<Offer> named;
  for (const Candidate& candidate : candidates_) {
    if (Missed(candidate) > 1) continue;
    const std::string id = RunOf(candidate).id;
    if (std::string_view(id).substr(0, prefix.size()) != prefix) continue;
    const bool known = std::any_of(named.begin(), named.end(),
                                   [&id](const Offer& other) { return other.id == id; });
    if (!known) named.push_back(OfferOf(candidate));
  }
  return named;
}

Offers Enumeration::Make() {
  Enumerate();
  Offers offers;
  offers.candidates = static_cast<int64_t>(candidates_.size());
  std::vector<size_t> within;
  std::vector<Price> prices;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    if (Missed(candidates_[i]) > 1) continue;
    within.push_back(i);
    prices.push_back(candidates_[i].price);
  }
  if (within.empty()) {
    std::vector<size_t> order(candidates_.size());
    std::vector<double> missed;
    for (size_t i = 0; i < order.size(); ++i) {
      order[i] = i;
      missed.push_back(Missed(candidates_[i]));
    }
    std::stable_sort(order.begin(), order.end(),
                     [&missed](size_t a, size_t b) { return missed[a] < missed[b]; });
    // Of equal candidates, which paths that cross have, one is enough.
    for (const size_t i : order) {
      if (offers.nearest.size() == kNearestShown) break;
      Offer offer = OfferOf(candidates_[i]);
      const bool shown = std::any_of(offers.nearest.begin(), offers.nearest.end(),
                                     [&offer](const Offer& other) { return other.id == offer.id; });
      if (!shown) offers.nearest.push_back(std::move(offer));
    }
    offers.advice = Advice();
    return offers;
  }

  const std::vector<size_t> front = FrontOf(prices);
  std::vector<Price> of_front;
  of_front.reserve(front.size());
  for (const size_t i : front) of_front.push_back(prices[i]);
  const size_t preferred = PreferredOf(of_front, request_.preference);
  // Both ends, what is preferred, and others evenly between them.
  std::vector<uint8_t> shown(front.size(), request_.offers_max == 0 ? 1 : 0);
  const auto most = static_cast<size_t>(request_.offers_max);
  for (size_t i = 0; i < most; ++i) {
    shown[most == 1 ? 0 : (front.size() - 1) * i / (most - 1)] = 1;
  }
  shown[preferred] = 1;
  for (size_t i = 0; i < front.size(); ++i) {
    if (!shown[i]) continue;
    if (i == preferred) offers.preferred = offers.front.size();
    offers.front.push_back(OfferOf(candidates_[within[front[i]]]));
  }
  return offers;
}

Price PriceOf(const Offer& offer) {
  return {offer.memory.high.total, offer.finish_seconds, offer.kept_share, offer.token_choice >= 0};
}

}  // namespace

bool Dominates(const Offer& a, const Offer& b) { return Dominates(PriceOf(a), PriceOf(b)); }

bool Prefers(Preference preference, const Offer& a, const Offer& b) {
  return Prefers(preference, PriceOf(a), PriceOf(b));
}

Offers MakeOffers(const OfferRequest& request) { return Enumeration(request).Make(); }

Offer PriceRun(const OfferRequest& request, const Offer& run) {
  return Enumeration(request).OfRun(run);
}

std::string ShapeClassOf(const OfferRequest& request) {
  const auto power = [](int64_t value) {
    return std::to_string(int64_t{1}
                          << static_cast<int>(std::lround(std::log2(static_cast<double>(value)))));
  };
  return "width " + power(request.shape.hidden) + ", window " + power(request.window) +
         (request.tuning.full ? ", full" : ", adapters");
}

std::vector<Offer> OffersNamed(const OfferRequest& request, std::string_view prefix) {
  OfferRequest all = request;
  all.mix_points = std::numeric_limits<int32_t>::max();
  return Enumeration(all).Named(prefix);
}

}  // namespace lemo::planner
