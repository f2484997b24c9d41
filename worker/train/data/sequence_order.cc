#include "worker/train/data/sequence_order.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "worker/train/data/random.h"

namespace lemo::train {

std::vector<std::vector<int32_t>> PackBestFit(std::span<const int64_t> lengths, int64_t capacity) {
  std::vector<int32_t> by_length(lengths.size());
  std::iota(by_length.begin(), by_length.end(), 0);
  std::stable_sort(by_length.begin(), by_length.end(), [&](int32_t a, int32_t b) {
    return lengths[static_cast<size_t>(a)] > lengths[static_cast<size_t>(b)];
  });
  std::vector<std::vector<int32_t>> bins;
  std::set<std::pair<int64_t, size_t>> room;  // (tokens free, bin)
  for (const int32_t item : by_length) {
    const int64_t length = lengths[static_cast<size_t>(item)];
    const auto best = room.lower_bound({length, 0});
    if (best == room.end()) {
      room.emplace(capacity - length, bins.size());
      bins.push_back({item});
      continue;
    }
    const auto [free, bin] = *best;
    room.erase(best);
    room.emplace(free - length, bin);
    bins[bin].push_back(item);
  }
  return bins;
}

SequenceOrder::SequenceOrder(const Dataset* data, const OrderOptions& options)
    : data_(data), options_(options) {
  auto layout = std::make_shared<Layout>();
  const int64_t windows = (data->rows() + kWindow - 1) / kWindow;
  for (int64_t window = 0; window < windows; ++window) {
    const std::vector<std::vector<int64_t>> sequences = MakeSequences(window);
    layout->window_sequences.push_back(static_cast<int32_t>(sequences.size()));
    layout->sequences += static_cast<int64_t>(sequences.size());
    for (const std::vector<int64_t>& documents : sequences) {
      int64_t tokens = 0;
      for (const int64_t document : documents) tokens += data->length(document);
      layout->longest_sequence = std::max(layout->longest_sequence, tokens);
    }
  }
  layout_ = std::move(layout);
  StartEpoch();
}

std::vector<std::vector<int64_t>> SequenceOrder::MakeSequences(int64_t window) const {
  const Permutation permutation(static_cast<uint64_t>(data_->rows()),
                                MixKeys(options_.seed, kDocumentOrder, 0));
  const int64_t begin = window * kWindow;
  const int64_t end = std::min(begin + kWindow, data_->rows());
  std::vector<int64_t> documents, lengths;
  for (int64_t i = begin; i < end; ++i) {
    documents.push_back(static_cast<int64_t>(permutation(static_cast<uint64_t>(i))));
    lengths.push_back(data_->length(documents.back()));
  }
  std::vector<std::vector<int64_t>> sequences;
  if (!options_.packing) {
    for (const int64_t document : documents) sequences.push_back({document});
    return sequences;
  }
  for (const std::vector<int32_t>& bin : PackBestFit(lengths, options_.max_length)) {
    std::vector<int64_t>& sequence = sequences.emplace_back();
    for (const int32_t item : bin) sequence.push_back(documents[static_cast<size_t>(item)]);
  }
  return sequences;
}

void SequenceOrder::LoadWindow() {
  const int32_t window = window_order_[slot_];
  window_ = MakeSequences(window);
  const uint64_t epoch_key = MixKeys(options_.seed, kSequenceOrder, static_cast<uint64_t>(epoch_));
  Shuffle(MixBits(epoch_key ^ static_cast<uint64_t>(window)), &window_);
  index_ = 0;
}

void SequenceOrder::StartEpoch() {
  window_order_.resize(layout_->window_sequences.size());
  std::iota(window_order_.begin(), window_order_.end(), 0);
  Shuffle(MixKeys(options_.seed, kWindowOrder, static_cast<uint64_t>(epoch_)), &window_order_);
  sequence_ = 0;
  slot_ = 0;
  LoadWindow();
}

void SequenceOrder::Seek(int64_t epoch, int64_t sequence) {
  epoch_ = epoch;
  StartEpoch();
  sequence_ = sequence;
  int64_t before = 0;  // sequences in the windows that are passed over
  const auto count = [&] {
    return layout_->window_sequences[static_cast<size_t>(window_order_[slot_])];
  };
  while (before + count() <= sequence) {
    before += count();
    ++slot_;
  }
  LoadWindow();
  index_ = static_cast<size_t>(sequence - before);
}

int64_t SequenceOrder::tokens() const {
  int64_t tokens = 0;
  for (const int64_t document : documents()) tokens += data_->length(document);
  return tokens;
}

void SequenceOrder::Advance() {
  ++sequence_;
  ++index_;
  if (index_ < window_.size()) return;
  ++slot_;
  if (slot_ < window_order_.size()) {
    LoadWindow();
    return;
  }
  ++epoch_;
  StartEpoch();
}

}  // namespace lemo::train
