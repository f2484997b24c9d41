#include "worker/train/report/sparsity.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <string>
#include <utility>

#include "google/protobuf/repeated_field.h"

namespace lemo::train {
namespace {

using google::protobuf::RepeatedField;
using lemo::v1::SelectionEvent;
using lemo::v1::StepEvent;
using lemo::v1::TokenSparsity;

double Sum(const RepeatedField<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

void AddMean(const RepeatedField<double>& values, RepeatedField<double>* out) {
  if (!values.empty()) out->Add(Sum(values) / values.size());
}

TokenSparsity Everything() {
  TokenSparsity all;
  all.add_attention_kept(1);
  all.add_mlp_kept(1);
  all.set_loss_kept(1);
  return all;
}

bool Ascends(const RepeatedField<int32_t>& starts) {
  return starts.size() >= 2 && starts.Get(0) == 0 &&
         std::adjacent_find(starts.begin(), starts.end(), std::greater_equal<>()) == starts.end();
}

}  // namespace

TokenSparsity MeanOfLayers(const TokenSparsity& sparsity) {
  TokenSparsity mean = sparsity;
  mean.clear_attention_kept();
  mean.clear_mlp_kept();
  mean.clear_recall();
  mean.clear_recall_layers();
  AddMean(sparsity.attention_kept(), mean.mutable_attention_kept());
  AddMean(sparsity.mlp_kept(), mean.mutable_mlp_kept());
  AddMean(sparsity.recall(), mean.mutable_recall());
  return mean;
}

double RowsComputed(const TokenSparsity& sparsity) {
  const int sub_blocks = sparsity.attention_kept_size() + sparsity.mlp_kept_size();
  return sub_blocks > 0 ? (Sum(sparsity.attention_kept()) + Sum(sparsity.mlp_kept())) / sub_blocks
                        : 1;
}

bool HasSparseLoss(const lemo::v1::EvalEvent& eval) { return eval.sparse_perplexity() > 0; }

void MergeSparsity(const StepEvent& first, const StepEvent& second, StepEvent* both) {
  if (!first.has_sparsity() && !second.has_sparsity()) return;
  const TokenSparsity a = first.has_sparsity() ? first.sparsity() : Everything();
  const TokenSparsity b = second.has_sparsity() ? second.sparsity() : Everything();
  const auto mean = [](double x, int64_t x_rows, double y, int64_t y_rows) {
    const double rows = static_cast<double>(x_rows) + static_cast<double>(y_rows);
    return rows > 0 ? (x * static_cast<double>(x_rows) + y * static_cast<double>(y_rows)) / rows
                    : y;
  };
  const auto of_rows = [&](double x, double y) {
    return mean(x, first.tokens(), y, second.tokens());
  };
  TokenSparsity merged;
  const auto merge_kept = [&](const RepeatedField<double>& x, const RepeatedField<double>& y,
                              RepeatedField<double>* out) {
    if (!x.empty() && !y.empty()) out->Add(of_rows(x.Get(0), y.Get(0)));
  };
  merge_kept(a.attention_kept(), b.attention_kept(), merged.mutable_attention_kept());
  merge_kept(a.mlp_kept(), b.mlp_kept(), merged.mutable_mlp_kept());
  merged.set_never_kept(of_rows(a.never_kept(), b.never_kept()));
  merged.set_loss_kept(
      mean(a.loss_kept(), first.labelled_tokens(), b.loss_kept(), second.labelled_tokens()));
  merged.set_bad_blocks(a.bad_blocks() + b.bad_blocks());
  merged.set_selection_seconds(a.selection_seconds() + b.selection_seconds());
  *merged.mutable_recall() = b.recall().empty() ? a.recall() : b.recall();
  *both->mutable_sparsity() = std::move(merged);
}

bool IsWhole(const SelectionEvent& selection) {
  const auto& blocks = selection.block_starts();
  const auto& documents = selection.document_starts();
  if (!Ascends(blocks) || !Ascends(documents)) return false;
  if (*blocks.rbegin() != *documents.rbegin()) return false;
  const size_t count = static_cast<size_t>(blocks.size()) - 1;
  const auto fits = [count](const std::string& mask) { return mask.size() == count; };
  return selection.attention_size() > 0 && selection.mlp_size() == selection.attention_size() &&
         std::all_of(selection.attention().begin(), selection.attention().end(), fits) &&
         std::all_of(selection.mlp().begin(), selection.mlp().end(),
                     [&](const std::string& mask) { return mask.empty() || fits(mask); });
}

}  // namespace lemo::train
