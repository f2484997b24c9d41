// A thread block takes a tile of 64 x 64 pairs and loops over the heads, with the sum over heads in
// registers: bf16 and fp16 products on the tensor cores with fp32 sums, fp32 and fp64 ones by plain
// multiply-adds (tensor cores would round fp32 to 10 bits). Tiles know nothing of blocks: what
// leaves a tile is one atomic maximum for each pair of blocks that it meets (for the usual block of
// 64 rows: one), and a maximum does not depend on the order.
#include <mma.h>

#include <limits>

#include "kernels/block_scores/block_scores_cuda.cuh"
#include "kernels/cuda_device.cuh"

namespace lemo::kernels::cuda {
namespace {

constexpr int kTile = 64;

// Sums are not negative, so their bits order as integers, and NaN, its sign dropped, is above Inf:
// an integer maximum takes NaN along.
__device__ __forceinline__ void RaiseTo(float* entry, float value) {
  atomicMax(reinterpret_cast<int*>(entry), __float_as_int(value) & 0x7fffffff);
}
__device__ __forceinline__ void RaiseTo(double* entry, double value) {
  atomicMax(reinterpret_cast<long long*>(entry),
            __double_as_longlong(value) & 0x7fffffffffffffffll);
}

template <typename W>
__device__ __forceinline__ W Greater(W a, W b) {
  return a != a || a > b ? a : b;  // NaN is the greatest
}

// The place of a tile, numbered along the rows of the lower triangle: rows of its first query and
// its first key.
struct Place {
  int64_t query;
  int64_t key;
};

__device__ __forceinline__ Place PlaceOf(int64_t tile) {
  auto m = static_cast<int64_t>((sqrt(8.0 * static_cast<double>(tile) + 1) - 1) / 2);
  while (m * (m + 1) / 2 > tile) --m;
  while ((m + 1) * (m + 2) / 2 <= tile) ++m;
  return {m * kTile, (tile - m * (m + 1) / 2) * kTile};
}

// Raises the entries of `maxima` to the sums of a tile, [kTile][stride] in shared memory. Called by
// the kThreads threads of the block, after a barrier.
template <int kThreads, typename W>
__device__ void ReduceTile(const W* sums, int stride, Place place, const BlockScoresShape& shape,
                           W* maxima) {
  constexpr int kThreadsPerRow = kThreads / kTile;
  constexpr int kColumns = kTile / kThreadsPerRow;
  const int row = threadIdx.x / kThreadsPerRow;
  const int64_t i = place.query + row;
  const int begin = threadIdx.x % kThreadsPerRow * kColumns;
  const W heads = static_cast<W>(shape.heads);
  if (shape.block_rows % kTile == 0) {  // the tile lies in one pair of blocks
    W best = 0;
    for (int c = begin; c < begin + kColumns; ++c) {
      if (i < shape.rows && place.key + c <= i) best = Greater(best, sums[row * stride + c]);
    }
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      best = Greater(best, __shfl_xor_sync(0xffffffffu, best, offset));
    }
    if (threadIdx.x % kWarp == 0) {
      RaiseTo(maxima + place.query / shape.block_rows * shape.blocks + place.key / shape.block_rows,
              best / heads);
    }
    return;
  }
  if (i >= shape.rows) return;
  W* entries = maxima + i / shape.block_rows * shape.blocks;
  int64_t block = (place.key + begin) / shape.block_rows;
  W best = 0;
  for (int c = begin; c < begin + kColumns && place.key + c <= i; ++c) {
    const int64_t own = (place.key + c) / shape.block_rows;
    if (own != block) {
      RaiseTo(entries + block, best / heads);
      block = own;
      best = 0;
    }
    best = Greater(best, sums[row * stride + c]);
  }
  // A run that is masked as a whole has best 0, and its block may lie past the last one.
  if (place.key + begin <= i) RaiseTo(entries + block, best / heads);
}

// Rows first .. first + kTile of one head, columns from .. from + kDepth, to tile [kTile][stride];
// zeros beyond the rows and the head's width. A row of the tile starts at a multiple of 16 bytes
// where kCount is more than 1.
template <int kThreads, int kDepth, int kCount, typename T>
__device__ __forceinline__ void LoadTile(const T* __restrict__ data, int64_t first, int64_t rows,
                                         int64_t row_stride, int64_t from, int64_t width, T* tile,
                                         int stride) {
  constexpr int kPacks = kDepth / kCount;
  for (int p = threadIdx.x; p < kTile * kPacks; p += kThreads) {
    const int row = p / kPacks;
    const int column = p % kPacks * kCount;
    Pack<T, kCount> pack;
    if (first + row < rows && from + column < width) {
      pack = LoadPack<kCount>(data + (first + row) * row_stride + from + column);
    } else {
      for (int i = 0; i < kCount; ++i) pack.values[i] = Round<T>(Wide<T>{0});
    }
    StorePack(tile + row * stride + column, pack);
  }
}

constexpr int kMmaThreads = 128;  // a warp takes 16 queries of the tile
constexpr int kMmaDepth = 64;
constexpr int kMmaStride = kMmaDepth + 8;  // keeps rows off each other's banks
constexpr int kSumStride = kTile + 4;

template <typename T, int kCount>
__global__ void __launch_bounds__(kMmaThreads)
    MmaKernel(const T* __restrict__ q, const T* __restrict__ k, BlockScoresShape shape, float scale,
              float* __restrict__ maxima) {
  namespace wmma = nvcuda::wmma;
  constexpr int kParts = kTile / 16;
  // The tiles of q and k while heads are looped over, then the sums.
  __shared__ __align__(
      32) char memory[2 * kTile * kMmaStride * sizeof(T) > kTile * kSumStride * sizeof(float)
                          ? 2 * kTile * kMmaStride * sizeof(T)
                          : kTile * kSumStride * sizeof(float)];
  T* queries = reinterpret_cast<T*>(memory);
  T* keys = queries + kTile * kMmaStride;
  const Place place = PlaceOf(blockIdx.x);
  const int warp = threadIdx.x / kWarp;
  const int64_t group = shape.heads / shape.kv_heads;
  wmma::fragment<wmma::accumulator, 16, 16, 16, float> sums[kParts];
  for (auto& sum : sums) wmma::fill_fragment(sum, 0.0f);
  for (int64_t h = 0; h < shape.heads; ++h) {
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> products[kParts];
    for (auto& product : products) wmma::fill_fragment(product, 0.0f);
    for (int64_t from = 0; from < shape.width; from += kMmaDepth) {
      __syncthreads();  // the last tiles' readers are done
      LoadTile<kMmaThreads, kMmaDepth, kCount>(q + h * shape.width, place.query, shape.rows,
                                               shape.heads * shape.width, from, shape.width,
                                               queries, kMmaStride);
      // Heads of a group share the keys, which stay where one load holds all of them.
      if (shape.width > kMmaDepth || h % group == 0) {
        LoadTile<kMmaThreads, kMmaDepth, kCount>(k + h / group * shape.width, place.key, shape.rows,
                                                 shape.kv_heads * shape.width, from, shape.width,
                                                 keys, kMmaStride);
      }
      __syncthreads();
      for (int d = 0; d < kMmaDepth && from + d < shape.width; d += 16) {
        wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> a;
        wmma::load_matrix_sync(a, queries + warp * 16 * kMmaStride + d, kMmaStride);
        for (int part = 0; part < kParts; ++part) {
          wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::col_major> b;
          wmma::load_matrix_sync(b, keys + part * 16 * kMmaStride + d, kMmaStride);
          wmma::mma_sync(products[part], a, b, products[part]);
        }
      }
    }
    for (int part = 0; part < kParts; ++part) {
      for (int e = 0; e < products[part].num_elements; ++e) {
        const float score = scale * products[part].x[e];
        sums[part].x[e] += score < 0 ? 0.0f : score;  // keeps NaN
      }
    }
  }
  __syncthreads();
  float* tile = reinterpret_cast<float*>(memory);
  for (int part = 0; part < kParts; ++part) {
    wmma::store_matrix_sync(tile + warp * 16 * kSumStride + part * 16, sums[part], kSumStride,
                            wmma::mem_row_major);
  }
  __syncthreads();
  ReduceTile<kMmaThreads>(tile, kSumStride, place, shape, maxima);
}

constexpr int kPlainThreads = 256;  // a thread takes 4 x 4 pairs
constexpr int kPlainDepth = 16;
constexpr int kSide = kTile / 16;

template <typename T>
__global__ void __launch_bounds__(kPlainThreads)
    PlainKernel(const T* __restrict__ q, const T* __restrict__ k, BlockScoresShape shape, T scale,
                T* __restrict__ maxima) {
  constexpr int kStride = kPlainDepth + 1;
  // The tiles of q and k while heads are looped over, then the sums: 48 KiB would not hold both.
  __shared__ T tile[kTile * kTile];
  static_assert(2 * kStride <= kTile);
  T* queries = tile;
  T* keys = queries + kTile * kStride;
  const Place place = PlaceOf(blockIdx.x);
  const int64_t group = shape.heads / shape.kv_heads;
  // Neighbouring threads take keys 16 apart, so that a warp's stores do not meet in a bank.
  const int row = threadIdx.x / 16;
  const int column = threadIdx.x % 16;
  T sums[kSide][kSide] = {};
  for (int64_t h = 0; h < shape.heads; ++h) {
    T products[kSide][kSide] = {};
    for (int64_t from = 0; from < shape.width; from += kPlainDepth) {
      __syncthreads();  // the last tiles' readers are done
      LoadTile<kPlainThreads, kPlainDepth, 1>(q + h * shape.width, place.query, shape.rows,
                                              shape.heads * shape.width, from, shape.width, queries,
                                              kStride);
      LoadTile<kPlainThreads, kPlainDepth, 1>(k + h / group * shape.width, place.key, shape.rows,
                                              shape.kv_heads * shape.width, from, shape.width, keys,
                                              kStride);
      __syncthreads();
      for (int d = 0; d < kPlainDepth; ++d) {
        T query[kSide];
        T key[kSide];
        for (int s = 0; s < kSide; ++s) {
          query[s] = queries[(row + 16 * s) * kStride + d];
          key[s] = keys[(column + 16 * s) * kStride + d];
        }
        for (int a = 0; a < kSide; ++a) {
          for (int b = 0; b < kSide; ++b) products[a][b] += query[a] * key[b];
        }
      }
    }
    for (int a = 0; a < kSide; ++a) {
      for (int b = 0; b < kSide; ++b) {
        const T score = scale * products[a][b];
        sums[a][b] += score < 0 ? T{0} : score;  // keeps NaN
      }
    }
  }
  __syncthreads();
  for (int a = 0; a < kSide; ++a) {
    for (int b = 0; b < kSide; ++b) tile[(row + 16 * a) * kTile + column + 16 * b] = sums[a][b];
  }
  __syncthreads();
  ReduceTile<kPlainThreads>(tile, kTile, place, shape, maxima);
}

}  // namespace

cudaError_t LaunchBlockScores(Element element, const void* q, const void* k,
                              const BlockScoresShape& shape, double scale, void* maxima,
                              cudaStream_t stream) {
  if (shape.rows == 0) return cudaSuccess;
  const int64_t side = (shape.rows + kTile - 1) / kTile;
  const int64_t tiles = side * (side + 1) / 2;
  if (tiles > std::numeric_limits<int32_t>::max()) return cudaErrorInvalidConfiguration;
  const auto grid = static_cast<unsigned>(tiles);
  return DispatchElement(element, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const T* queries = static_cast<const T*>(q);
    const T* keys = static_cast<const T*>(k);
    if constexpr (std::is_same_v<T, Wide<T>>) {
      PlainKernel<T><<<grid, kPlainThreads, 0, stream>>>(
          queries, keys, shape, static_cast<T>(scale), static_cast<T*>(maxima));
    } else {
      constexpr int kCount = kPackElements<T>;
      const bool packed = CanPack<T>(shape.width, kCount, q, k);
      const auto kernel = packed ? MmaKernel<T, kCount> : MmaKernel<T, 1>;
      kernel<<<grid, kMmaThreads, 0, stream>>>(queries, keys, shape, static_cast<float>(scale),
                                               static_cast<float*>(maxima));
    }
    return cudaGetLastError();
  });
}

}  // namespace lemo::kernels::cuda
