#include "planner/offers/step_time.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "planner/memory/parameters.h"

namespace lemo::planner {
namespace {

constexpr double kMasterBytes = 4;
// Sums of a gang's step beside those of layers and gradients: loss, gradients' norm, and what ranks
// tell one another before it.
constexpr double kSmallSums = 4;
// Of one segment of the loss over divided words: statistics and the rows' gradient.
constexpr double kSumsOfHead = 4;
// Parameters whose gradients are summed at a time: RunSpec.parallel.bucket_bytes.
constexpr double kBucketBytes = 32.0 * (1 << 20);
constexpr Stored kStored[] = {Stored::kInput, Stored::kAttentionOut, Stored::kMlp, Stored::kAll};

// A rate that is not known prices nothing.
double Priced(double amount, double rate) { return rate > 0 ? amount / rate : 0; }

// Bytes that a ring sends for the sum of `bytes` over so many ranks.
double SumBytes(double bytes, int64_t ranks) {
  return 2 * bytes * static_cast<double>(ranks - 1) / static_cast<double>(ranks);
}

Tuning TuningOf(const MemoryTuning& tuning) {
  // Adapters of one sub-block are priced alike; what differs between them is a product in hundreds.
  const AdapterRanks& r = tuning.adapters;
  return {.full = tuning.full,
          .attention_rank = (r.q + r.k + r.v + r.o + 3) / 4,
          .mlp_rank = std::max({r.gate, r.up, r.down})};
}

SharedRates RatesOf(const DeviceRates& device, int64_t ranks) {
  for (const SharedRates& shared : device.shared) {
    if (shared.ranks == ranks) return shared;
  }
  return {.ranks = ranks,
          .compute = device.compute,
          .operators = device.operators,
          .layer_seconds = device.layer_seconds,
          .step_seconds = device.step_seconds};
}

std::vector<OperatorWork> Joined(const std::vector<std::vector<OperatorWork>>& lists) {
  std::vector<OperatorWork> all;
  for (const auto& list : lists) all.insert(all.end(), list.begin(), list.end());
  return all;
}

bool Alike(const LayerRows& a, const LayerRows& b) {
  return a.attention == b.attention && a.mlp == b.mlp && a.pairs == b.pairs &&
         a.separate == b.separate && a.indexed == b.indexed;
}

}  // namespace

LinkRate DeviceRates::LinkOf(int64_t ranks) const {
  if (links.empty()) return {.ranks = ranks};
  const auto above = std::find_if(links.begin(), links.end(),
                                  [ranks](const LinkRate& link) { return link.ranks > ranks; });
  return above == links.begin() ? links.front() : *(above - 1);
}

double StepSeconds::Foretold() const {
  return forward + replay + backward + head + selection + optimizer + communication + offload +
         overhead;
}

double StepSeconds::Total() const { return ratio * Foretold(); }

StepClock::StepClock(const OfferRequest& request, const Workload& workload, const RankSplit& split,
                     const TokenChoice* choice)
    : request_(request),
      workload_(workload),
      choice_(choice),
      split_(split),
      rates_(RatesOf(request.device, split.tensor_ranks * split.data_ranks)),
      tuning_(TuningOf(request.tuning)) {
  for (const TimeRatio& of : request.time_ratios) {
    if (of.ranks == rates_.ranks) ratio_ = of.ratio;
  }
  sequences_ = (request.batch_sequences + split.data_ranks - 1) / split.data_ranks;
  // The workload is of all data; a step of the fullest rank is this part of it, and a rank of a
  // tensor group computes its share of that.
  of_data_ = static_cast<double>(sequences_) / static_cast<double>(workload.sequences);
  pass_ = {.passes = static_cast<double>(workload.sequences), .tensor_ranks = split.tensor_ranks};
  const double row_bytes =
      static_cast<double>(request.shape.hidden * request.element_bytes) * of_data_;
  const bool down_trains = request.tuning.full || request.tuning.adapters.down > 0;
  double forward = 0, backward = 0;  // of one layer
  for (size_t l = 0; l < workload.layers.size(); ++l) {
    const LayerRows& rows = workload.layers[l];
    if (l > 0 && Alike(rows, workload.layers[l - 1])) {
      layers_.push_back(layers_.back());
    } else {
      const LayerOperators operators = OfLayer(rows);
      forward = of_data_ * Price(operators.forward);
      backward = of_data_ * Price(operators.backward);
      Layer layer;
      for (const Stored stored : kStored) {
        const int i = static_cast<int>(stored);
        layer.kept[i] = of_data_ * Price(operators.kept[i]);
        layer.replay[i] = of_data_ * Price(operators.replay[i]);
        if (request.device.copy_bytes_per_second > 0) {
          const LayerMemory kept{.stored = stored,
                                 .stream = rows.attention,
                                 .attention = rows.attention,
                                 .mlp = rows.mlp,
                                 .separate = rows.separate};
          const auto bytes = static_cast<double>(
              SavedBytes(request.shape, kept, request.element_bytes, down_trains));
          layer.copies[i] = 2 * of_data_ * bytes / static_cast<double>(split.tensor_ranks);
        }
      }
      if (split.tensor_ranks > 1) {
        // Rows of both sub-blocks, on the way up and on the way down; attention's once more where
        // what the MLP read is rebuilt.
        const double attention = static_cast<double>(rows.attention) * row_bytes;
        const double mlp = static_cast<double>(rows.mlp) * row_bytes;
        // Of shared rows a sum is scattered once they were gathered, which is as much as one that
        // all get; on the way down what was normed is gathered again. A sum alone is half of it.
        const double ways = request.sequence ? 2.5 : 2, again = request.sequence ? 0.5 : 1;
        layer.sums[0] = SumBytes(ways * (attention + mlp), split.tensor_ranks);
        layer.sums[1] = SumBytes(again * attention, split.tensor_ranks);
      }
      layers_.push_back(layer);
    }
    forward_ += forward;
    backward_ += backward;
  }
  if (ScoresLastAlone()) forward_ += of_data_ * Price(QueriesAndKeys()) - forward;
  selection_ = of_data_ * Price(Selection());
  if (request.learning) {
    backward_ = of_data_ * Price(Learning());
  } else {
    head_ = of_data_ * Price(Head());
  }
}

double StepClock::Price(const std::vector<OperatorWork>& work) const {
  return planner::Seconds(work, rates_.operators, rates_.compute);
}

LayerOperators StepClock::OfLayer(const LayerRows& rows) const {
  return OperatorsOf(request_.shape, tuning_, rows, pass_);
}

bool StepClock::ScoresLastAlone() const {
  return request_.learning && !request_.learning->heads.mlp;
}

std::vector<OperatorWork> StepClock::QueriesAndKeys() const {
  return QueryKeyOperators(request_.shape, tuning_, static_cast<double>(workload_.rows), pass_);
}

std::vector<OperatorWork> StepClock::Head() const {
  return HeadOperators(request_.shape, tuning_, workload_.head_rows, workload_.rows, pass_);
}

std::vector<OperatorWork> StepClock::Selection() const {
  if (request_.learning) {
    double rows = 0, pairs = 0;
    for (const LayerRows& layer : workload_.layers) {
      rows += static_cast<double>(layer.attention);
      pairs += layer.pairs;
    }
    return ScoreOperators(request_.shape, rows, pairs);
  }
  if (choice_ == nullptr) return {};
  if (choice_->chooser.by == RowChooser::By::kScores) {
    return Joined({QueryKeyOperators(request_.shape, tuning_, workload_.score_rows, pass_),
                   ScoreOperators(request_.shape, workload_.score_rows, workload_.score_pairs),
                   OfLayer(workload_.passed).forward});
  }
  return SelectionOperators(request_.shape, workload_.scored_rows, choice_->chooser.first_width,
                            choice_->chooser.by != RowChooser::By::kPlace, pass_);
}

std::vector<OperatorWork> StepClock::Learning() const {
  const LearningHeads& heads = request_.learning->heads;
  const auto rows = static_cast<double>(workload_.rows);
  const auto layers = static_cast<double>(request_.shape.layers);
  std::vector<OperatorWork> work = LearningOperators(
      request_.shape, rows * (layers + static_cast<double>(heads.joint)), 2 * heads.r1, pass_);
  if (!heads.mlp) return work;
  return Joined({work, LearningOperators(request_.shape, rows * layers, kMlpHeadNeurons, pass_)});
}

std::vector<OperatorWork> StepClock::Lessons(int64_t micro_batches) const {
  if (choice_ == nullptr || choice_->lessons_a_step <= 0) return {};
  const planner::Lessons& lessons = choice_->lessons;
  const auto rows = static_cast<double>(workload_.rows);
  std::vector<OperatorWork> work;
  const auto add = [&work](std::vector<OperatorWork> parts, double times) {
    for (OperatorWork& part : parts) part.amount *= times;
    work.insert(work.end(), parts.begin(), parts.end());
  };
  // One micro-batch of a step is learnt from, in a pass through the layers that are guessed at; of
  // the last of them queries and keys alone.
  const double lesson = choice_->lessons_a_step * of_data_ / static_cast<double>(micro_batches);
  const auto layers = static_cast<double>(lessons.layers);
  add(QueriesAndKeys(), lesson * layers);
  add(ScoreOperators(request_.shape, rows, workload_.pairs), lesson * layers);
  if (lessons.layers > 1) {
    const LayerRows all{
        .attention = workload_.rows, .mlp = workload_.rows, .pairs = workload_.pairs};
    add(OfLayer(all).forward, lesson * (layers - 1));
  }
  // A layer's own network learns beside that for all above it.
  const double heads = choice_->scope == Scope::kNested ? 2 : 1;
  add(LearningOperators(request_.shape, rows, 2 * lessons.heads.r1, pass_), lesson * heads);
  const auto parameters = static_cast<double>(lessons.heads.ParametersOfOne(request_.shape));
  work.push_back({Operator::kUpdate, choice_->lessons_a_step * heads * parameters, parameters, 0});
  return work;
}

std::vector<OperatorWork> StepClock::Update(int64_t micro_batches) const {
  if (request_.learning) {
    const auto parameters =
        static_cast<double>(request_.learning->heads.Parameters(request_.shape));
    return {{Operator::kUpdate, parameters, parameters, 0}};
  }
  const double parameters = static_cast<double>(CountTrainable(request_.shape, request_.tuning)) /
                            static_cast<double>(split_.tensor_ranks);
  const double updated = split_.sharding == Sharding::kNone
                             ? parameters
                             : parameters / static_cast<double>(split_.data_ranks);
  std::vector<OperatorWork> work = {{Operator::kUpdate, updated, updated, 0}};
  // A product that makes a gradient is added to it, in every micro-batch.
  work.push_back({Operator::kCopy, parameters * static_cast<double>(micro_batches),
                  parameters / static_cast<double>(2 * request_.shape.layers), 0});
  return work;
}

bool StepClock::SumsAgain(int64_t layer, const LayerStorage& storage) const {
  return storage.stored < Stored::kMlp && !workload_.layers[layer].separate;
}

double StepClock::StorageSeconds(int64_t layer, const LayerStorage& storage) const {
  const Layer& of = layers_[layer];
  const int i = static_cast<int>(storage.stored);
  double seconds = of.kept[i] + of.replay[i];
  if (SumsAgain(layer, storage) && split_.tensor_ranks > 1) {
    seconds += Priced(of.sums[1], request_.device.LinkOf(split_.tensor_ranks).bytes_per_second);
  }
  if (storage.offload) seconds += Priced(of.copies[i], request_.device.copy_bytes_per_second);
  return seconds;
}

StepClock::Sums StepClock::SumsOf(std::span<const LayerStorage> storage,
                                  int64_t micro_batches) const {
  Sums sums;
  const auto rounds = static_cast<double>(micro_batches);
  if (split_.tensor_ranks > 1) {
    for (size_t l = 0; l < storage.size(); ++l) {
      const bool again = SumsAgain(static_cast<int64_t>(l), storage[l]);
      sums.tensor_bytes += layers_[l].sums[0] + (again ? layers_[l].sums[1] : 0);
      sums.tensor_count += rounds * (again ? 5 : 4);
    }
    sums.tensor_count += rounds * kSumsOfHead;
  }
  if (split_.data_ranks > 1) {
    const double parameters = static_cast<double>(CountTrainable(request_.shape, request_.tuning)) /
                              static_cast<double>(split_.tensor_ranks);
    const double gradients = SumBytes(parameters * kMasterBytes, split_.data_ranks);
    const double values =
        SumBytes(parameters * static_cast<double>(request_.element_bytes), split_.data_ranks) / 2;
    const double buckets = std::ceil(parameters * kMasterBytes / kBucketBytes);
    const auto layers = static_cast<double>(request_.shape.layers);
    switch (split_.sharding) {
      case Sharding::kNone:
        sums.bytes = gradients;
        sums.count = buckets;
        break;
      case Sharding::kOptimizer:  // scattered, and the new values gathered
        sums.bytes = gradients / 2 + values;
        sums.count = 2 * buckets;
        break;
      case Sharding::kGradients:  // scattered after every micro-batch
        sums.bytes = rounds * gradients / 2 + values;
        sums.count = (rounds + 1) * buckets;
        break;
      case Sharding::kParameters:  // and values gathered on the way up and on the way down
        sums.bytes = rounds * (gradients / 2 + 2 * values);
        sums.count = 3 * rounds * layers;
        break;
    }
  }
  if (split_.tensor_ranks * split_.data_ranks > 1) sums.count += kSmallSums;
  return sums;
}

double StepClock::Seconds(const Sums& sums) const {
  if (split_.tensor_ranks * split_.data_ranks == 1) return 0;
  // A sum over a group takes what one over so many ranks takes; the small ones are of all.
  const LinkRate tensor = request_.device.LinkOf(split_.tensor_ranks);
  const LinkRate data =
      request_.device.LinkOf(split_.data_ranks > 1 ? split_.data_ranks : split_.tensor_ranks);
  return Priced(sums.tensor_bytes, tensor.bytes_per_second) +
         sums.tensor_count * tensor.latency_seconds + Priced(sums.bytes, data.bytes_per_second) +
         sums.count * data.latency_seconds;
}

StepSeconds StepClock::Step(std::span<const LayerStorage> storage, int64_t micro_batches) const {
  StepSeconds step{.forward = forward_,
                   .backward = backward_,
                   .head = head_,
                   .selection = selection_ + Price(Lessons(micro_batches)),
                   .ratio = ratio_};
  for (size_t l = 0; l < storage.size() && !request_.learning; ++l) {
    const int i = static_cast<int>(storage[l].stored);
    step.forward += layers_[l].kept[i];
    step.replay += layers_[l].replay[i];
    if (storage[l].offload) {
      step.offload += Priced(layers_[l].copies[i], request_.device.copy_bytes_per_second);
    }
  }
  step.optimizer = Price(Update(micro_batches));
  step.communication = Seconds(SumsOf(storage, micro_batches));
  step.overhead =
      rates_.layer_seconds * static_cast<double>(request_.shape.layers * micro_batches) +
      rates_.step_seconds;
  return step;
}

double StepClock::DensePass(double rows, double pairs, int64_t micro_batch_sequences,
                            bool loss) const {
  const auto layers = static_cast<double>(request_.shape.layers);
  const auto whole = static_cast<int64_t>(std::ceil(rows));
  const PassShape pass{
      .passes = std::ceil(rows / static_cast<double>(micro_batch_sequences * workload_.window)),
      .tensor_ranks = split_.tensor_ranks};
  const LayerRows all{.attention = whole, .mlp = whole, .pairs = pairs};
  // Of what a layer takes beside its operators one way of two.
  double seconds = layers * (Price(OperatorsOf(request_.shape, tuning_, all, pass).forward) +
                             pass.passes * rates_.layer_seconds / 2);
  if (loss) {
    const auto labelled = static_cast<int64_t>(std::ceil(rows * request_.labelled_share));
    seconds += Price(LossOperators(request_.shape, labelled, whole, pass));
  }
  if (split_.tensor_ranks > 1) {
    const LinkRate link = request_.device.LinkOf(split_.tensor_ranks);
    const double bytes =
        2 * rows * static_cast<double>(request_.shape.hidden * request_.element_bytes);
    seconds += layers * (Priced(SumBytes(bytes, split_.tensor_ranks), link.bytes_per_second) +
                         2 * pass.passes * link.latency_seconds);
  }
  return ratio_ * seconds;
}

double StepClock::DenseLoss(double share, int64_t micro_batch_sequences) const {
  share /= static_cast<double>(split_.data_ranks);
  const double rows = share * static_cast<double>(request_.evaluated.rows);
  // Longer text than a window is cut as the training data is.
  const double pairs = std::min(share * request_.evaluated.pairs,
                                rows * (static_cast<double>(workload_.window) + 1) / 2);
  return DensePass(rows, pairs, micro_batch_sequences, /*loss=*/true);
}

double StepClock::Evaluation(int64_t micro_batch_sequences) const {
  if (request_.evaluated.rows == 0 || request_.learning) return 0;
  // With some rows a pass takes about their share of it.
  const bool sparse = choice_ != nullptr && request_.evaluated.sparse;
  return (1 + (sparse ? workload_.kept_share : 0)) * DenseLoss(1, micro_batch_sequences);
}

double StepClock::Shadow(int64_t micro_batch_sequences) const {
  const Evaluated& of = request_.evaluated;
  if (choice_ == nullptr || of.rows == 0) return 0;
  return (1 + workload_.kept_share) *
         DenseLoss(static_cast<double>(of.shadow_rows) / static_cast<double>(of.rows),
                   micro_batch_sequences);
}

double StepClock::Scoring(int64_t micro_batch_sequences) const {
  if (choice_ == nullptr || !choice_->table) return 0;
  const double seen = std::min(1.0, static_cast<double>(request_.steps * request_.batch_sequences) /
                                        static_cast<double>(workload_.sequences));
  const double rows = seen * static_cast<double>(workload_.rows), pairs = seen * workload_.pairs;
  const bool by_attention = choice_->table->by == ScoredRows::By::kAttention;
  double seconds = DensePass(rows, pairs, micro_batch_sequences, /*loss=*/!by_attention);
  if (by_attention) {
    seconds += ratio_ * static_cast<double>(request_.shape.layers) *
               Price(ScoreOperators(request_.shape, rows, pairs));
  }
  return seconds;
}

std::vector<OperatorSeconds> StepClock::Operators(std::span<const LayerStorage> storage,
                                                  int64_t micro_batches) const {
  std::map<Operator, OperatorSeconds> of;
  const auto add = [&](const std::vector<OperatorWork>& work, double share) {
    for (const OperatorWork& part : work) {
      OperatorSeconds& sum = of[part.op];
      sum.amount += share * part.amount;
      sum.seconds += share * planner::Seconds(part, rates_.operators, rates_.compute);
    }
  };
  double offloaded = 0;
  for (size_t l = 0; l < storage.size(); ++l) {
    const int i = static_cast<int>(storage[l].stored);
    const LayerOperators layer = OfLayer(workload_.layers[l]);
    if (request_.learning) {
      const bool scored = ScoresLastAlone() && l + 1 == storage.size();
      add(scored ? QueriesAndKeys() : layer.forward, of_data_);
      continue;
    }
    for (const auto* work : {&layer.forward, &layer.kept[i], &layer.replay[i], &layer.backward}) {
      add(*work, of_data_);
    }
    if (storage[l].offload) offloaded += layers_[l].copies[i];
  }
  add(request_.learning ? Learning() : Head(), of_data_);
  add(Selection(), of_data_);
  add(Lessons(micro_batches), 1);
  add(Update(micro_batches), 1);
  std::vector<OperatorSeconds> operators;
  for (auto& [op, sum] : of) {
    sum.name = OperatorName(op);
    operators.push_back(std::move(sum));
  }
  const Sums sums = SumsOf(storage, micro_batches);
  if (sums.bytes + sums.tensor_bytes > 0) {
    operators.push_back({"sums", sums.bytes + sums.tensor_bytes, Seconds(sums)});
  }
  if (offloaded > 0) {
    operators.push_back(
        {"copies", offloaded, Priced(offloaded, request_.device.copy_bytes_per_second)});
  }
  return operators;
}

}  // namespace lemo::planner
