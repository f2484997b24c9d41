// From scores of blocks to the rows that are kept, on the device of the scores (LeMo section 6,
// steps 1 to 4): no copy to the host and no wait, where the number of rows is known.
//
// The rule, for each document by itself: its mandatory blocks, and of the others the best until
// `count` are kept in all; a tie goes to the lower block. A score that is not finite (NaN, Inf,
// -Inf) counts as the best there is, so that a fault is computed and seen rather than skipped. A
// count below the number of mandatory blocks keeps those; one above the document's blocks keeps
// all.
//
// Shapes: scores float32 [B]; mandatory uint8 [B], not 0 for yes; documents int32 or int64 [D + 1]:
// the first block of every document, then B; documents[0] is 0; empty documents are allowed. counts
// int32 or int64 [D]. starts int32 or int64 [B + 1]: the first row of every block, then the rows;
// starts[0] is 0, no block is empty. Inputs need not be contiguous. Faults of the caller throw
// c10::Error with both sides; the CPU versions check documents and starts, the CUDA versions only
// where compiled without NDEBUG. Same scores, same choice, on every device and with any number of
// threads. Nothing is differentiable.
//
// Arithmetic: the CPU sorts, B log B comparisons; CUDA ranks by counting, sum over documents of
// Nb^2 comparisons (17 million at Nb = 4096, from shared memory). Rows: 4 or 8 bytes a kept row.
#pragma once

#include <ATen/core/Tensor.h>

namespace lemo::kernels {

// The kept blocks: uint8 [B] of 0 and 1.
at::Tensor SelectTopBlocks(const at::Tensor& scores, const at::Tensor& mandatory,
                           const at::Tensor& documents, const at::Tensor& counts);

// The rows of the blocks whose mask is not 0, ascending: [rows] of `type`, kInt or kLong. `rows` is
// how many there are; -1 counts them first, for which the CUDA version waits. Where `rows` is wrong
// the CPU version throws; the CUDA version leaves out what is beyond it and fills up with -1, which
// GatherRows turns to NaN.
at::Tensor RowsOfBlocks(const at::Tensor& starts, const at::Tensor& mask, int64_t rows,
                        at::ScalarType type);

}  // namespace lemo::kernels
