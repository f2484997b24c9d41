#include "planner/offers/workload.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>

#include "planner/memory/kept_rows.h"

namespace lemo::planner {
namespace {

constexpr size_t kLongestListed = 1024;  // of longer lists the last one stands for the rest
// What is kept of a document's blocks whatever the scores, where they decide how many are.
constexpr double kLeastShare = 0.1;

KeptRows Kept(int64_t length, double keep, int64_t block) {
  return KeepRows(std::span(&length, 1), {.keep = keep, .block = block});
}

int64_t Ceil(double value) { return static_cast<int64_t>(std::ceil(value - 1e-9)); }

// Rows that choices look at in `count` documents of so many: those of the stream at hand, once for
// every network or norm that ranks them.
double ScoredRowsOf(const TokenChoice& choice, int64_t length, int64_t count) {
  double rows = 0, share = 1;
  for (const double keep : choice.keep) {
    if (choice.scope == Scope::kLayer) {
      if (keep < 1) rows += static_cast<double>(choice.mlp_own ? 2 * length : length);
    } else if (keep < share) {
      rows += static_cast<double>(Kept(length, share, choice.block).rows);
      share = keep;
    }
  }
  return rows * static_cast<double>(count);
}

// What choices by true scores compute in `count` documents of so many rows: of the layers that one
// is for, all but the last are passed through, and each is scored.
void AddTrueScores(const TokenChoice& choice, int64_t length, int64_t count, Workload* work) {
  const auto add = [&](int64_t rows, double scored, double passed) {
    const auto number = static_cast<double>(rows * count);
    const double pairs = static_cast<double>(count) * CausalPairs(rows);
    work->score_rows += scored * number;
    work->score_pairs += scored * pairs;
    work->passed.attention += Ceil(passed * number);
    work->passed.mlp += Ceil(passed * number);
    work->passed.pairs += passed * pairs;
  };
  const auto layers = static_cast<int64_t>(choice.keep.size());
  double share = 1;
  for (int64_t l = 0; l < layers; ++l) {
    const double keep = choice.keep[l];
    if (choice.scope == Scope::kLayer) {
      if (keep >= 1) continue;
      const auto of_choice = static_cast<double>(choice.chooser.layers);
      add(length, 1, (of_choice - 1) / of_choice);
      if (choice.mlp_own) work->passed.mlp += length * count;
    } else if (keep < share) {
      const auto above = static_cast<double>(layers - l);
      add(Kept(length, share, choice.block).rows, above, above - 1);
      share = keep;
    }
  }
}

// Of a run that computes all rows in `share` of its steps the mean step, and the largest one.
void AddDenseSteps(double share, const Workload& dense, Workload* work) {
  const auto mean = [share](auto sparse, auto of_all) {
    return (1 - share) * static_cast<double>(sparse) + share * static_cast<double>(of_all);
  };
  for (size_t l = 0; l < work->layers.size(); ++l) {
    LayerRows& layer = work->layers[l];
    layer.attention = Ceil(mean(layer.attention, dense.layers[l].attention));
    layer.mlp = Ceil(mean(layer.mlp, dense.layers[l].mlp));
    layer.seen = Ceil(mean(layer.seen, 0));
    layer.pairs = mean(layer.pairs, dense.layers[l].pairs);
  }
  work->scored_rows *= 1 - share;
  work->score_rows *= 1 - share;
  work->score_pairs *= 1 - share;
  work->passed.attention = Ceil(mean(work->passed.attention, 0));
  work->passed.mlp = Ceil(mean(work->passed.mlp, 0));
  work->passed.pairs *= 1 - share;
  work->head_rows = Ceil(mean(work->head_rows, dense.head_rows));
  work->kept_share = mean(work->kept_share, dense.kept_share);
  work->most_kept = dense.most_kept;
  work->longest_kept = dense.longest_kept;
}

}  // namespace

Workload WorkloadOf(const OfferRequest& request, int64_t window, const TokenChoice* choice) {
  Workload work;
  work.window = window;
  std::map<int64_t, int64_t, std::greater<>> pieces;  // length -> how many
  for (const LengthCount& documents : request.data.documents) {
    const int64_t whole = documents.length / window, rest = documents.length % window;
    if (whole > 0) pieces[window] += whole * documents.count;
    if (rest > 0) pieces[rest] += documents.count;
  }
  const int64_t layers = request.shape.layers;
  work.layers.resize(layers);
  work.most_kept.assign(layers, 0);
  work.least_kept.assign(layers, 1);
  work.longest_kept.assign(layers, 0);
  int64_t number = 0;
  double computed = 0, head = 0;
  for (const auto& [length, count] : pieces) {
    work.rows += length * count;
    work.pairs += static_cast<double>(count) * CausalPairs(length);
    number += count;
    for (int64_t i = 0; i < count && work.longest.size() < kLongestListed; ++i) {
      work.longest.push_back(length);
    }
    int64_t last = length;  // rows of the stream behind the last layer
    double before = -1;
    if (choice != nullptr && choice->chooser.by == RowChooser::By::kScores) {
      AddTrueScores(*choice, length, count, &work);
    } else if (choice != nullptr) {
      work.scored_rows += ScoredRowsOf(*choice, length, count);
    }
    for (int64_t l = 0; l < layers; ++l) {
      const double keep = choice != nullptr && !choice->keep.empty() ? choice->keep[l] : 1.0;
      LayerRows& sums = work.layers[l];
      if (l > 0 && keep == before) {
        // Layers alike; their sums differ only where an earlier one did.
        const LayerRows& alike = work.layers[l - 1];
        sums = alike;
        work.most_kept[l] = work.most_kept[l - 1];
        work.least_kept[l] = work.least_kept[l - 1];
        work.longest_kept[l] = work.longest_kept[l - 1];
      } else {
        const KeptRows of = choice != nullptr ? Kept(length, keep, choice->block)
                                              : KeptRows{length, length, length};
        const int64_t kept = of.rows;
        const int64_t mlp = choice != nullptr && choice->mlp_off ? length : kept;
        sums.attention += kept * count;
        sums.mlp += mlp * count;
        const bool sees_all = choice != nullptr && choice->kv_all && kept < length;
        sums.seen += sees_all ? (length - kept) * count : 0;
        // Rows that are kept lie anywhere, and see all before them or those that are kept.
        sums.pairs += static_cast<double>(count) *
                      (sees_all ? static_cast<double>(kept) / static_cast<double>(length) *
                                      CausalPairs(length)
                                : CausalPairs(kept));
        sums.separate |= mlp != kept || (choice != nullptr && choice->mlp_own && kept < length);
        // Else what is left out is not in the stream any more.
        sums.indexed |= choice != nullptr && choice->scope == Scope::kLayer && kept < length;
        work.most_kept[l] = std::max(
            work.most_kept[l], static_cast<double>(of.reserved) / static_cast<double>(length));
        const bool falls = choice != nullptr && choice->any_share && keep < 1;
        const int64_t least = falls ? Kept(length, kLeastShare, choice->block).rows : kept;
        work.least_kept[l] =
            std::min(work.least_kept[l], static_cast<double>(least) / static_cast<double>(length));
        if (work.longest_kept[l] == 0) work.longest_kept[l] = of.reserved;
        if (choice != nullptr && choice->scope != Scope::kLayer) last = kept;
      }
      before = keep;
    }
    head += static_cast<double>(last * count);
  }
  for (const LayerRows& layer : work.layers) {
    computed += static_cast<double>(layer.attention + layer.mlp);
  }
  work.sequences = request.data.packing ? (work.rows + window - 1) / window : number;
  work.head_rows = Ceil(head * request.labelled_share);
  // A shorter window has as many sequences in a step as a long one, so it sees fewer rows.
  double share = computed / (2.0 * static_cast<double>(layers) * static_cast<double>(work.rows));
  if (window < request.window) {
    const Workload full = WorkloadOf(request, request.window, nullptr);
    share *= (static_cast<double>(work.rows) / static_cast<double>(work.sequences)) /
             (static_cast<double>(full.rows) / static_cast<double>(full.sequences));
  }
  work.kept_share = std::min(1.0, share);
  if (choice != nullptr && choice->dense_share > 0) {
    AddDenseSteps(choice->dense_share, WorkloadOf(request, window, nullptr), &work);
  }
  return work;
}

int64_t MostRows(const OfferRequest& request, const Workload& workload, int64_t sequences) {
  const int64_t limit = sequences * workload.window;
  if (request.data.packing) return std::min(workload.rows, limit);
  // Sequences join a micro-batch while its rows allow, so that short ones fill it too; but no more
  // than a step has.
  int64_t rows = 0;
  const int64_t listed = std::min<int64_t>(request.batch_sequences, std::ssize(workload.longest));
  for (int64_t i = 0; i < listed; ++i) rows += workload.longest[i];
  if (std::ssize(workload.longest) == static_cast<int64_t>(kLongestListed)) {
    rows += (request.batch_sequences - listed) * workload.longest.back();
  }
  return std::max(workload.longest.front(), std::min(rows, limit));
}

std::vector<LayerMemory> LargestLayers(const OfferRequest& request, const Workload& workload,
                                       const TokenChoice* choice, int64_t rows) {
  std::vector<LayerMemory> layers;
  for (int64_t l = 0; l < request.shape.layers; ++l) {
    // Which documents meet in a sequence is not known: short ones are kept whole, so the share that
    // counts is the largest of any document.
    const bool sparse = workload.least_kept[l] < 1;
    const bool any = sparse && choice->any_share;
    const int64_t kept =
        any ? rows : std::min(rows, Ceil(workload.most_kept[l] * static_cast<double>(rows)));
    const bool own_stream = choice == nullptr || choice->scope == Scope::kLayer;
    const int64_t longest = any ? workload.longest.front() : workload.longest_kept[l];
    const int64_t seen = sparse && choice->kv_all
                             ? Ceil((1 - workload.least_kept[l]) * static_cast<double>(rows))
                             : 0;
    layers.push_back({.stored = Stored::kAll,
                      .stream = own_stream ? rows : kept,
                      .attention = kept,
                      .mlp = choice != nullptr && choice->mlp_off ? rows : kept,
                      // Between steps of all rows and the others nearly all are kept.
                      .separate = choice != nullptr && choice->separate() &&
                                  (any || kept < rows || choice->dense_share > 0),
                      .listed = any,
                      .longest = std::min(kept, longest),
                      .seen = seen,
                      .keys = seen > 0 ? std::min(rows, workload.longest.front()) : 0});
  }
  return layers;
}

}  // namespace lemo::planner
