// What steps and micro-batches say of the rows that they left out, as the report keeps it.
#pragma once

#include "lemo/v1/run_event.pb.h"

namespace lemo::train {

// With the numbers by layer replaced by the mean of the layers: one entry in `attention_kept`, in
// `mlp_kept` and, where any layer was measured, in `recall`; none in `recall_layers`. A curve of
// such steps does not grow with the model.
lemo::v1::TokenSparsity MeanOfLayers(const lemo::v1::TokenSparsity& sparsity);

// Share of the rows that a sub-block computed, the mean of all sub-blocks of all layers; 1 when
// nothing is said. Close to the share of the dense step's work.
double RowsComputed(const lemo::v1::TokenSparsity& sparsity);

// Whether the evaluation was also made with rows dropped. exp(loss) is never 0, which is what the
// field holds when it was not.
bool HasSparseLoss(const lemo::v1::EvalEvent& eval);

// Of two stretches of steps that follow one another, both as MeanOfLayers gives them, that of both:
// shares of rows weigh as the rows, that of labelled rows as those, bad blocks and seconds are
// sums, recall is the one measured last. A stretch without sparsity computed everything. Nothing is
// set when neither has any.
void MergeSparsity(const lemo::v1::StepEvent& first, const lemo::v1::StepEvent& second,
                   lemo::v1::StepEvent* both);

// Whether starts ascend from 0, both lists to the same end, and every layer has a byte a block.
bool IsWhole(const lemo::v1::SelectionEvent& selection);

}  // namespace lemo::train
