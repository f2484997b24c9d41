// Which blocks of a micro-batch a step kept, as inline SVG: layers down, rows across.
#pragma once

#include <string>

#include "lemo/v1/run_event.pb.h"

namespace lemo::train {

// Whether the MLP of some layer took other rows than its attention did: a layer is then drawn as
// two bands, attention (class `blue`) above the MLP (class `orange`), else as one (class `blue`).
bool MlpDiffers(const lemo::v1::SelectionEvent& selection);

// `selection` is whole (IsWhole). Columns are as wide as their blocks have rows; lines divide
// documents. Where blocks are too many to be seen, a column is several of them, the paler the fewer
// of its rows were kept: BlocksOfAColumn, 1 otherwise.
std::string BlockPicture(const lemo::v1::SelectionEvent& selection, const std::string& description);
int BlocksOfAColumn(const lemo::v1::SelectionEvent& selection);

}  // namespace lemo::train
