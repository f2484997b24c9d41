#include "worker/train/tokens/policy/online.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "worker/train/memory/counting_allocator.h"

namespace lemo::train {
namespace {

constexpr const char* kLosses = "losses";

// With each head that the choices want by name, and would take another in its place.
Predictor Completed(Predictor predictor, const TokenSettings& settings) {
  for (const int64_t layer : NestedChoices(settings)) {
    predictor.heads.try_emplace(AboveHead(layer), predictor.heads.at(LayerHead(layer)));
  }
  return predictor;
}

// The tensors of a head's state, and its numbers.
std::string Name(const AttentionHead& head, size_t matrix, const char* kind) {
  return absl::StrCat(head.name, ".", matrix, kind);
}
std::string Numbers(const AttentionHead& head) { return absl::StrCat(head.name, ".numbers"); }

}  // namespace

Predictor FreshPredictor(const TokenSettings& settings, const DecoderConfig& config,
                         uint64_t seed) {
  Predictor predictor;
  PredictorCard& card = predictor.card;
  card.base = MakePredictorBase(config, "");
  card.shape.hidden = config.hidden;
  card.shape.block = settings.block;
  card.shape.slice = config.head_dim;
  if (settings.spec.has_combine()) card.combine = settings.spec.combine();
  card.score_rope = settings.spec.score_rope();
  std::vector<std::string> names = PredictorUseOf(settings, config).heads;
  for (const int64_t layer : NestedChoices(settings)) names.push_back(AboveHead(layer));
  for (const std::string& name : names) {
    predictor.heads[name] = DrawAttentionPredictor(card.shape, seed, name);
  }
  return predictor;
}

OnlinePolicy::OnlinePolicy(const TokenSettings& settings, const Decoder& decoder, Predictor start)
    : settings_(settings),
      decoder_(decoder),
      start_(Completed(std::move(start), settings)),
      options_{.shape = start_.card.shape,
               .scores = {CombineFromName(start_.card.combine), start_.card.score_rope}},
      ranking_(settings, decoder, start_) {
  const ScopedMemoryCategory category(MemoryCategory::kTrainable);
  const int64_t layers = decoder.config.layers;
  const auto add = [&](const std::string& name, int64_t first, int64_t end) {
    heads_.push_back(std::make_unique<AttentionHead>(
        name, first, end, start_.heads.at(name), /*settled=*/start_.card.steps > 0, decoder.device,
        AdamWOptions{.beta1 = 0.9, .beta2 = 0.95}));
  };
  if (settings.RowsComeBack()) {
    for (int64_t i = 0; i < layers; ++i) {
      if (settings.keep[i] < 1) add(LayerHead(i), i, i + 1);
    }
  } else if (settings.scope == Scope::kStack) {
    add(kStackHead, 0, layers);
  }
  for (const int64_t layer : NestedChoices(settings)) {
    // A pass for the layers above shows what the layer's own head is to guess, too.
    add(LayerHead(layer), layer, layer + 1);
    add(AboveHead(layer), layer, layers);
  }
  for (const auto& head : heads_) layers_.push_back(head->first_layer);
  layers_.erase(std::unique(layers_.begin(), layers_.end()), layers_.end());
}

std::vector<AttentionHead*> OnlinePolicy::Heads() const {
  std::vector<AttentionHead*> heads;
  for (const auto& head : heads_) heads.push_back(head.get());
  return heads;
}

std::vector<int64_t> OnlinePolicy::LessonsAt(int64_t step, bool dense) const {
  if (!settings_.RowsComeBack() && !dense) {
    const std::optional<int64_t> measured = settings_.MeasuredAt(step);
    return measured ? std::vector<int64_t>{*measured} : std::vector<int64_t>();
  }
  const int64_t all = std::ssize(layers_);
  const int64_t count = std::min<int64_t>(settings_.spec.online().layers_per_step(), all);
  std::vector<int64_t> lessons;
  for (int64_t i = 0; i < count; ++i) lessons.push_back(layers_[(step * count + i) % all]);
  return lessons;
}

void OnlinePolicy::Learn(int64_t layer, const RowSpace& space, const at::Tensor& stream) {
  const ScopedMemoryCategory category(MemoryCategory::kTransient);
  std::vector<AttentionHead*> pupils;
  int64_t end = layer;
  for (const auto& head : heads_) {
    if (head->first_layer != layer) continue;
    head->loss = 0;
    pupils.push_back(head.get());
    end = std::max(end, head->end_layer);
  }
  HeadPass pass(
      decoder_, space, options_.scores, pupils,
      [&](AttentionHead& head, const at::Tensor& x, const std::vector<at::Tensor>& actual) {
        head.Learn(decoder_, options_, x, space.blocks(), actual, 1.0);
      });
  // One layer reads its stream and changes nothing.
  const at::Tensor scratch = end - layer > 1 ? stream.clone() : stream;
  ScorePass(decoder_, *space.all(),
            {.first_layer = layer, .end_layer = end, .finish_last_layer = false}, scratch, pass);
  taught_.insert(taught_.end(), pupils.begin(), pupils.end());
}

void OnlinePolicy::Update() {
  if (taught_.empty()) return;
  double loss = 0;
  for (AttentionHead* head : taught_) {
    loss += head->loss / static_cast<double>(taught_.size());
    // A gradient that is not finite leaves the head as it was: the run does not hang on a lesson.
    if (!std::isfinite(head->learner.Step(settings_.spec.online().learning_rate()))) continue;
    ranking_.SetHead(head->name, head->first_layer, head->predictor);
  }
  losses_.push_back(loss);
  taught_.clear();
}

int64_t OnlinePolicy::parameters() const {
  int64_t parameters = 0;
  for (const auto& head : heads_) {
    for (const Trainable& trainable : head->learner.trainables()) {
      parameters += trainable.master.numel();
    }
  }
  return parameters;
}

std::map<std::string, at::Tensor> OnlinePolicy::State() const {
  const auto copy = [](const at::Tensor& tensor) {
    return tensor.detach().to(at::kCPU, /*non_blocking=*/false, /*copy=*/true).contiguous();
  };
  std::map<std::string, at::Tensor> state;
  for (const auto& head : heads_) {
    const AdamW& optimizer = head->learner.optimizer();
    for (size_t i = 0; i < head->learner.trainables().size(); ++i) {
      state[Name(*head, i, "")] = copy(head->learner.trainables()[i].master);
      state[Name(*head, i, ".exp_avg")] = copy(optimizer.first_moments()[i]);
      state[Name(*head, i, ".exp_avg_sq")] = copy(optimizer.second_moments()[i]);
    }
    state[Numbers(*head)] =
        at::tensor({static_cast<double>(optimizer.steps()), head->predictor.scale, head->sum,
                    static_cast<double>(head->sums)},
                   at::kDouble);
  }
  state[kLosses] = at::tensor(at::ArrayRef<double>(losses_), at::kDouble);
  return state;
}

absl::Status OnlinePolicy::Restore(const std::map<std::string, at::Tensor>& state) {
  for (const auto& [name, own] : State()) {
    const auto found = state.find(name);
    if (found == state.end()) {
      return absl::InvalidArgumentError(absl::StrCat("no tensor ", name, " of the predictor"));
    }
    const at::Tensor& given = found->second;
    const bool fits = name == kLosses ? given.dim() == 1 : given.sizes() == own.sizes();
    if (!fits || given.scalar_type() != own.scalar_type()) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, " of the predictor has another shape or type than this run's"));
    }
  }
  const at::NoGradGuard no_grad;
  for (const auto& head : heads_) {
    AdamW& optimizer = head->learner.optimizer();
    for (size_t i = 0; i < head->learner.trainables().size(); ++i) {
      head->learner.trainables()[i].master.copy_(state.at(Name(*head, i, "")));
      optimizer.first_moments()[i].copy_(state.at(Name(*head, i, ".exp_avg")));
      optimizer.second_moments()[i].copy_(state.at(Name(*head, i, ".exp_avg_sq")));
    }
    const double* numbers = state.at(Numbers(*head)).const_data_ptr<double>();
    optimizer.Restore(static_cast<int64_t>(numbers[0]));
    head->predictor.scale = numbers[1];
    head->sum = numbers[2];
    head->sums = static_cast<int64_t>(numbers[3]);
    ranking_.SetHead(head->name, head->first_layer, head->predictor);
  }
  const at::Tensor& losses = state.at(kLosses);
  losses_.assign(losses.const_data_ptr<double>(), losses.const_data_ptr<double>() + losses.numel());
  return absl::OkStatus();
}

void OnlinePolicy::BeginMeasuring() {
  for (const auto& head : heads_) head->BeginMeasuring(decoder_, options_);
}

void OnlinePolicy::Measure(const at::Tensor& tokens, const RowSpace& space) {
  HeadPass pass(
      decoder_, space, options_.scores, Heads(),
      [&](AttentionHead& head, const at::Tensor& x, const std::vector<at::Tensor>& actual) {
        head.Measure(decoder_, options_, x, space.blocks(), actual);
      });
  int64_t end = 0;
  for (const auto& head : heads_) end = std::max(end, head->end_layer);
  ScorePassOf(decoder_, tokens, space, {.end_layer = end, .finish_last_layer = false}, pass);
}

Predictor OnlinePolicy::Make() const {
  Predictor predictor = start_;
  PredictorCard& card = predictor.card;
  card.loss_curve = ThinnedCurve(losses_, card.steps);
  card.steps += std::ssize(losses_);
  card.quality.clear();
  // Measured with the networks that it began with.
  card.allocated = {};
  for (const auto& head : heads_) {
    predictor.heads[head->name] = head->Copy();
    if (head->meter.documents() > 0) card.quality[head->name] = head->meter.Mean();
  }
  return predictor;
}

}  // namespace lemo::train
