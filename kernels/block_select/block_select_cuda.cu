// A free block's rank is the number of free blocks that go before it, counted against all of its
// document from shared memory: quadratic, but without a sort's passes and their waits, and the
// blocks of a document are hundreds to a few thousand. Rows: one scan of the kept lengths, then
// every block writes its own.
#include <cassert>
#include <cmath>

#include "kernels/block_select/block_select_cuda.cuh"
#include "kernels/cuda_device.cuh"

namespace lemo::kernels::cuda {
namespace {

constexpr int kSelectBlock = 256;
constexpr int kScanBlock = 1024;
constexpr int kRowsBlock = 64;

// What a block is ranked by. A mandatory one gets NaN: no comparison with it holds.
__device__ __forceinline__ float Key(const float* scores, const uint8_t* mandatory, int64_t n) {
  if (mandatory[n] != 0) return NAN;
  return isfinite(scores[n]) ? scores[n] : INFINITY;
}

// blockIdx.x: a document; blockIdx.y: kSelectBlock of its blocks, one a thread.
__global__ void __launch_bounds__(kSelectBlock)
    SelectKernel(const float* __restrict__ scores, const uint8_t* __restrict__ mandatory,
                 int64_t blocks, IndexArray documents, IndexArray counts,
                 uint8_t* __restrict__ mask) {
  __shared__ float keys[kSelectBlock];
  const int64_t first = IndexAt(documents, blockIdx.x);
  const int64_t last = IndexAt(documents, int64_t{blockIdx.x} + 1);
  assert(first >= 0 && first <= last && last <= blocks && "documents must ascend in [0, B]");
  if (first < 0 || last > blocks) return;
  const int64_t n = first + int64_t{blockIdx.y} * kSelectBlock + threadIdx.x;
  if (first + int64_t{blockIdx.y} * kSelectBlock >= last) return;
  const float key = n < last ? Key(scores, mandatory, n) : NAN;
  int64_t before = 0;
  int64_t free = 0;
  for (int64_t begin = first; begin < last; begin += kSelectBlock) {
    const int64_t m = begin + threadIdx.x;
    __syncthreads();  // the last tile's readers are done
    keys[threadIdx.x] = m < last ? Key(scores, mandatory, m) : NAN;
    __syncthreads();
    const int64_t size = min(int64_t{kSelectBlock}, last - begin);
    for (int64_t i = 0; i < size; ++i) {
      const float other = keys[i];
      free += other == other;
      before += other > key || (other == key && begin + i < n);
    }
  }
  if (n >= last) return;
  const int64_t best = IndexAt(counts, blockIdx.x) - (last - first - free);
  mask[n] = mandatory[n] != 0 || before < best;
}

// One thread block: offsets[b] = rows kept before block b.
__global__ void __launch_bounds__(kScanBlock)
    OffsetsKernel(IndexArray starts, const uint8_t* __restrict__ mask, int64_t blocks,
                  int64_t* __restrict__ offsets) {
  __shared__ int64_t sums[kScanBlock];
  const int64_t chunk = (blocks + kScanBlock - 1) / kScanBlock;
  const int64_t begin = min(blocks, threadIdx.x * chunk);
  const int64_t end = min(blocks, begin + chunk);
  const auto length = [&](int64_t b) {
    const int64_t rows = IndexAt(starts, b + 1) - IndexAt(starts, b);
    assert(rows > 0 && "a block is empty");
    return mask[b] != 0 ? rows : int64_t{0};
  };
  int64_t sum = 0;
  for (int64_t b = begin; b < end; ++b) sum += length(b);
  sums[threadIdx.x] = sum;
  __syncthreads();
  for (int step = 1; step < kScanBlock; step *= 2) {
    const int64_t left = static_cast<int>(threadIdx.x) >= step ? sums[threadIdx.x - step] : 0;
    __syncthreads();
    sums[threadIdx.x] += left;
    __syncthreads();
  }
  int64_t at = sums[threadIdx.x] - sum;
  for (int64_t b = begin; b < end; ++b) {
    offsets[b] = at;
    at += length(b);
  }
  if (threadIdx.x == kScanBlock - 1) offsets[blocks] = sums[threadIdx.x];
}

// A thread block for a block of rows, and one more that fills what is left.
template <typename Index>
__global__ void __launch_bounds__(kRowsBlock)
    RowsKernel(IndexArray starts, int64_t blocks, const int64_t* __restrict__ offsets, int64_t rows,
               Index* __restrict__ out) {
  for (int64_t b = blockIdx.x; b <= blocks; b += gridDim.x) {
    const int64_t begin = offsets[b];
    const int64_t end = b < blocks ? offsets[b + 1] : rows;
    assert((b < blocks || begin == rows) && "the mask keeps another number of rows");
    const int64_t first = b < blocks ? IndexAt(starts, b) : 0;
    for (int64_t at = begin + threadIdx.x; at < min(end, rows); at += kRowsBlock) {
      out[at] = static_cast<Index>(b < blocks ? first + (at - begin) : -1);
    }
  }
}

}  // namespace

cudaError_t LaunchSelectTopBlocks(const float* scores, const uint8_t* mandatory, int64_t blocks,
                                  IndexArray documents, int64_t document_count, IndexArray counts,
                                  uint8_t* mask, cudaStream_t stream) {
  if (blocks == 0 || document_count == 0) return cudaSuccess;
  // How long a document is, is known on the device alone: thread blocks past its end leave at once.
  const dim3 grid(static_cast<unsigned>(document_count), Blocks(blocks, kSelectBlock));
  if (grid.y > 65535) return cudaErrorInvalidConfiguration;
  SelectKernel<<<grid, kSelectBlock, 0, stream>>>(scores, mandatory, blocks, documents, counts,
                                                  mask);
  return cudaGetLastError();
}

cudaError_t LaunchRowsOfBlocks(IndexArray starts, const uint8_t* mask, int64_t blocks,
                               int64_t* offsets, int64_t rows, void* out, bool is_wide,
                               cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  OffsetsKernel<<<1, kScanBlock, 0, stream>>>(starts, mask, blocks, offsets);
  if (is_wide) {
    RowsKernel<<<Blocks(blocks + 1, 1), kRowsBlock, 0, stream>>>(starts, blocks, offsets, rows,
                                                                 static_cast<int64_t*>(out));
  } else {
    RowsKernel<<<Blocks(blocks + 1, 1), kRowsBlock, 0, stream>>>(starts, blocks, offsets, rows,
                                                                 static_cast<int32_t*>(out));
  }
  return cudaGetLastError();
}

}  // namespace lemo::kernels::cuda
