#include "worker/train/governor/ladder.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "worker/train/plan/plan_table.h"

namespace lemo::train {
namespace {

using planner::LayerStorage;
using planner::StorageChoice;
using planner::Stored;

// Steps from the spec's share of kept blocks to the least one. More of them would fit closer, and
// change what is computed more often.
constexpr int kKeepSteps = 8;

// Every layer from the spec's own storage to the smallest, step by step.
std::vector<std::vector<LayerStorage>> StoragePath(const LadderOptions& options) {
  std::vector<std::vector<StorageChoice>> layers;
  std::vector<std::vector<Stored>> stored;  // of the choices
  for (size_t l = 0; l < options.storage.size(); ++l) {
    layers.emplace_back();
    stored.emplace_back();
    // Never more than the spec says: who asks for little may have his reasons. A layer whose
    // boundaries are in the host's memory already has nothing to give.
    const LayerStorage own = options.storage[l];
    const int least = own.offload && options.own_memory ? static_cast<int>(own.stored) : 0;
    for (int s = static_cast<int>(own.stored); s >= least; --s) {
      layers.back().push_back(options.choices[l][s]);
      stored.back().push_back(static_cast<Stored>(s));
    }
  }
  const planner::LayerMix mix = planner::MixOf(layers);
  std::vector<std::vector<LayerStorage>> path = {options.storage};
  const auto add = [&path](std::vector<LayerStorage> next) {
    if (next != path.back()) path.push_back(std::move(next));
  };
  // What costs no time goes first.
  std::vector<LayerStorage> next = options.storage;
  for (size_t l = 0; l < next.size(); ++l) next[l].stored = stored[l][mix.start[l]];
  add(next);
  for (const planner::MixStep& step : mix.steps) {
    next[step.layer].stored = stored[step.layer][step.to];
    add(next);
  }
  if (!options.own_memory) return path;
  // The first layers first: what they keep is wanted back last.
  for (size_t l = 0; l < options.storage.size(); ++l) {
    next[l].offload = true;
    add(next);
  }
  return path;
}

// `0-3,7`
std::string LayersInWords(const std::vector<size_t>& layers) {
  std::string text;
  for (size_t i = 0; i < layers.size();) {
    size_t end = i;
    while (end + 1 < layers.size() && layers[end + 1] == layers[end] + 1) ++end;
    absl::StrAppend(&text, text.empty() ? "" : ",", layers[i]);
    if (end > i) absl::StrAppend(&text, "-", layers[end]);
    i = end + 1;
  }
  return text;
}

std::string MicroBatchInWords(int64_t rows) {
  if (rows == 0) return "micro-batches as they come";
  return rows == 1 ? "micro-batches of one document"
                   : absl::StrCat("micro-batches of ", rows, " rows");
}

}  // namespace

Ladder::Ladder(const LadderOptions& options) : storage_(StoragePath(options)) {
  const bool elastic = options.min_keep < options.keep;
  for (int i = 0; i <= (elastic ? kKeepSteps : 0); ++i) {
    // The first one caps nothing, not even the steps of all rows that a schedule begins with.
    const double share = options.keep + (options.min_keep - options.keep) * i / kKeepSteps;
    keeps_.push_back(i == 0 ? 1 : share);
  }
  micro_rows_.push_back(0);
  for (int64_t rows = options.rows_max / 2; rows > 1; rows /= 2) micro_rows_.push_back(rows);
  if (options.rows_max > 1) micro_rows_.push_back(1);
}

Rung Ladder::At(int64_t rung) const {
  return {storage_[storage_of(rung)], micro_rows_[micro_of(rung)], keeps_[keep_of(rung)]};
}

std::vector<Change> ChangesOf(const Rung& from, const Rung& to) {
  std::vector<Change> changes;
  std::vector<size_t> stored, moved;
  for (size_t l = 0; l < from.storage.size(); ++l) {
    if (from.storage[l].stored != to.storage[l].stored) stored.push_back(l);
    if (from.storage[l].offload != to.storage[l].offload) moved.push_back(l);
  }
  for (const auto& [action, layers] :
       {std::pair("storage", &stored), std::pair("offload", &moved)}) {
    if (layers->empty()) continue;
    changes.push_back(
        {action, LayersInWords(*layers), StorageInWords(from.storage), StorageInWords(to.storage)});
  }
  if (from.micro_rows != to.micro_rows) {
    changes.push_back(
        {"micro_batch", "", MicroBatchInWords(from.micro_rows), MicroBatchInWords(to.micro_rows)});
  }
  if (from.keep_most != to.keep_most) {
    const auto words = [](double keep) {
      return keep >= 1 ? std::string("as many rows as the spec keeps")
                       : absl::StrFormat("at most %.3g of the blocks", keep);
    };
    changes.push_back({"keep", "", words(from.keep_most), words(to.keep_most)});
  }
  return changes;
}

}  // namespace lemo::train
