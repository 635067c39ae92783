// SPDX-License-Identifier: Apache-2.0
// Encoder layers of wide rankers with few rows: every matrix product is shared by all blocks of the team, column by
// column, with a barrier after each. The same sums in the same order as tile.cuh, for p > 128.
#pragma once

#include "tile.cuh"

namespace srr::cuda {

// A block's item: up to 16 rows times 32 columns. Its warps share k's: kChunkK each of kWideK at a time.
constexpr int kWideRows = 2 * kTileRows;
constexpr int kWideK = kWarps * kChunkK;

// The block's shared memory.
struct WideMemory {
  float* x;          // [kWideRows, kWideK]: rows on their way to planes; then the warps' sums, or attention's own
  uint16_t* planes;  // [3, kWideRows, plane_stride(kWideK)]

  static __host__ __device__ constexpr int64_t bytes() {
    return int64_t{kWideRows} * (4 * kWideK + 2 * kMostPieces * plane_stride(kWideK));
  }
  __device__ explicit WideMemory(unsigned char* base)
      : x(reinterpret_cast<float*>(base)), planes(reinterpret_cast<uint16_t*>(x + kWideRows * kWideK)) {}
};
static_assert(WideMemory::bytes() <= kMostSharedBytes, "a block's rows fit");
static_assert(kMaxProjDim <= kWideK, "a row that is normalised fits at once");
static_assert(kWarps * (kMaxProjDim + kWarp + kKeptLogits) <= kWideRows * kWideK, "attention fits where rows lie");

// Rows of a product's input: row i at data + i * stride, `width` columns, normalised first where there are weights.
struct WideInput {
  const float* data;
  int64_t stride;
  int width;
  const float *norm_weight, *norm_bias;
};

// Rows [row0, row0 + rows) of the input times 32 columns of a matrix; emit(row, column, sum) gets every element once,
// neighbouring columns in neighbouring threads. `keep`: null, or where the rows are left as they went in, [.., P].
template <bool kBf16, typename Emit>
__device__ void wide_item(const ScoreJob& job, const WideMemory& memory, const PackedMatrix& matrix,
                          const unsigned char* packed, const WideInput& in, int row0, int rows, int column_tile,
                          float* keep, const Emit& emit) {
  constexpr int kStride = plane_stride(kWideK);
  constexpr int kSums = kWideRows * kTileColumns / kThreads;
  const LaneColumns columns(matrix, packed, column_tile);
  float total[kSums] = {};
#pragma unroll 1
  for (int k0 = 0; k0 < in.width; k0 += kWideK) {
    const int width = in.width - k0 < kWideK ? in.width - k0 : kWideK;
#pragma unroll 1
    for (int r = warp_id(); r < rows; r += kWarps) {
      float* row = memory.x + r * kWideK;
      warp_copy(row, in.data + (row0 + r) * in.stride + k0, width);
      __syncwarp();  // the row is there
      if (in.norm_weight) warp_layer_norm(job, row, in.norm_weight, in.norm_bias);
      if (keep) warp_copy(keep + int64_t{row0 + r} * job.P, row, job.P);
#pragma unroll 1
      for (int i = 2 * lane_id(); i < width; i += 2 * kWarp)
        store_planes(memory.planes, kWideRows, kStride, r, i, row[i], row[i + 1]);
    }
    __syncthreads();                                                // the planes are complete, and x may be overwritten
    float* sums = memory.x + warp_id() * kWideRows * kTileColumns;  // [kWideRows, kTileColumns], this warp's
    if (warp_id() * kChunkK < width)
#pragma unroll 1
      for (int from = 0; from < rows; from += kTileRows) {
        LaneSums<1> part;
        add_product<kBf16>(part, columns, memory.planes + from * kStride, kWideRows, kStride, k0, width, warp_id(),
                           kWarps);
#pragma unroll
        for (int next = 0; next < 2; ++next)
          *reinterpret_cast<float4*>(sums + (from + lane_sum_row() + next) * kTileColumns + lane_column()) =
              part.row(0, next);
      }
    __syncthreads();  // the sums of every kChunkK are in shared memory
#pragma unroll
    for (int i = 0; i < kSums; ++i)
#pragma unroll 1
      for (int w = 0; w < kWarps && w * kChunkK < width; ++w)
        total[i] += memory.x[w * kWideRows * kTileColumns + i * kThreads + threadIdx.x];
    __syncthreads();  // the sums have been read, and x and the planes may be overwritten
  }
#pragma unroll
  for (int i = 0; i < kSums; ++i) {
    const int row = (i * kThreads + threadIdx.x) / kTileColumns, column = threadIdx.x % kTileColumns;
    const int64_t n = int64_t{column_tile} * kTileColumns + column;
    if (row < rows && n < matrix.N_padded()) emit(row0 + row, static_cast<int>(n), total[i]);
  }
}

// A stage: the whole product, its items dealt out to the team's blocks. Ends with the team's barrier.
template <bool kBf16, typename Emit>
__device__ void wide_stage(const ScoreJob& job, const Team& team, const WideMemory& memory, const PackedMatrix& matrix,
                           const unsigned char* packed, const WideInput& in, int rows, float* keep, const Emit& emit) {
  const int groups = (rows + kWideRows - 1) / kWideRows;
  const int columns = static_cast<int>(ceil_div(matrix.N_padded(), kTileColumns));
#pragma unroll 1
  for (int item = team.rank; item < groups * columns; item += team.size) {
    const int row0 = item % groups * kWideRows, column = item / groups;
    wide_item<kBf16>(job, memory, matrix, packed, in, row0, rows - row0 < kWideRows ? rows - row0 : kWideRows, column,
                     column == 0 ? keep : nullptr, emit);
  }
  team.sync();  // what the stage wrote is complete
}

// All layers of the first `rows` rows of the call: only a team that owns everything is wide. job.x holds the projected
// rows and is left with the encoded ones. keys_of(r): what row r attends to.
template <bool kBf16, typename KeysOf>
__device__ void encode_wide(const ScoreJob& job, const Team& team, const WideMemory& memory, int rows,
                            const KeysOf& keys_of) {
  const PackedLayer& at = job.layer0;
  const int P = job.P, HE = job.HE;
  const int heads = static_cast<int>(job.params.layout.heads), layers = static_cast<int>(job.params.layout.layers);
  const bool pre = job.params.layout.norm_first;
  float *qkv = job.qkv, *y = job.wide.y, *fed = job.wide.fed, *hidden = job.wide.hidden, *mix = job.wide.mix;
#pragma unroll 1
  for (int layer = 0; layer < layers; ++layer) {
    const unsigned char* packed = job.packed(layer);
    const WideInput x{job.x, P, P, pre ? job.vector(at.norm1_weight_bytes, layer) : nullptr,
                      job.vector(at.norm1_bias_bytes, layer)};
    const float* qkv_bias = job.vector(at.qkv_bias_bytes, layer);
    wide_stage<kBf16>(job, team, memory, at.qkv, packed, x, rows, nullptr,
                      [&](int r, int n, float v) { qkv[int64_t{r} * 3 * HE + n] = v + qkv_bias[n]; });

    // A warp to a row and head.
#pragma unroll 1
    for (int item = team.rank * kWarps + warp_id(); item < rows * heads; item += team.size * kWarps) {
      const int r = item / heads, head = item % heads;
      const Keys keys = keys_of(r);
#pragma unroll 1
      for (int c0 = 0; c0 < job.E; c0 += kChunk) {
        const int c1 = job.E - c0 < kChunk ? job.E : c0 + kChunk;
        attend<kChunk / kWarp>(job, memory.x, keys, head, c0, c1, [&](int i, float v, float next) {
          *reinterpret_cast<float2*>(mix + int64_t{r} * HE + head * job.E + c0 + i) = make_float2(v, next);
        });
      }
    }
    team.sync();  // every mix is complete

    const float* out_bias = job.vector(at.out_bias_bytes, layer);
    wide_stage<kBf16>(job, team, memory, at.out, packed, {mix, HE, HE, nullptr, nullptr}, rows, nullptr,
                      [&](int r, int n, float v) {
                        const int64_t i = int64_t{r} * P + n;
                        y[i] = (job.x[i] + out_bias[n]) + v;
                      });

    const float* ffn1_bias = job.vector(at.ffn1_bias_bytes, layer);
    const WideInput sum{y, P, P, job.vector(pre ? at.norm2_weight_bytes : at.norm1_weight_bytes, layer),
                        job.vector(pre ? at.norm2_bias_bytes : at.norm1_bias_bytes, layer)};
    wide_stage<kBf16>(job, team, memory, at.ffn1, packed, sum, rows, fed,
                      [&](int r, int n, float v) { hidden[int64_t{r} * job.ffn + n] = gelu(v + ffn1_bias[n]); });

    const float* ffn2_bias = job.vector(at.ffn2_bias_bytes, layer);
    const float* residual = pre ? y : fed;
    wide_stage<kBf16>(job, team, memory, at.ffn2, packed, {hidden, job.ffn, job.ffn, nullptr, nullptr}, rows, nullptr,
                      [&](int r, int n, float v) {
                        const int64_t i = int64_t{r} * P + n;
                        job.x[i] = (residual[i] + ffn2_bias[n]) + v;
                      });
    if (pre) continue;
#pragma unroll 1
    for (int r = team.rank * kWarps + warp_id(); r < rows; r += team.size * kWarps) {
      float* row = memory.x + warp_id() * kWideK;
      warp_copy(row, job.x + int64_t{r} * P, P);
      __syncwarp();  // the row is there
      warp_layer_norm(job, row, job.vector(at.norm2_weight_bytes, layer), job.vector(at.norm2_bias_bytes, layer));
      warp_copy(job.x + int64_t{r} * P, row, P);
      __syncwarp();  // the row has been read and may be overwritten
    }
    team.sync();  // every row is complete
  }
}

}  // namespace srr::cuda
