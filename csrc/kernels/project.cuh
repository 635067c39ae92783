// SPDX-License-Identifier: Apache-2.0
// First launch of score(): projects every instruction and candidate, says which are finite, and answers "out"
// everywhere, so that what no later launch reaches is answered too. Knows no lists, except where they end.
#pragma once

#include "matmul.cuh"
#include "reduce.cuh"
#include "score_workspace.cuh"
#include "vec.cuh"

namespace srr::cuda {

constexpr int kProjectWarps = 8;
constexpr int kProjectThreads = kProjectWarps * kWarp;
// States held in shared memory at a time: one K-block per warp.
constexpr int kProjectColumns = kProjectWarps * static_cast<int>(kBlockK);
constexpr int64_t kProjectSharedBytes = kTileRows * kProjectColumns * sizeof(float);

// Whether list b begins and ends within [0, M], not before it begins.
__device__ inline bool well_formed(const ScoreParams& params, int64_t b) {
  const int64_t begin = params.list_begin(b), end = params.list_begin(b + 1);
  return 0 <= begin && begin <= end && end <= params.M;
}

// Answers and slots as they stand if no list is valid; the highest end within each group of lists.
__device__ inline void write_defaults(const ScoreParams& params, const Workspace& work, int64_t* scratch) {
  const int64_t thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x, threads = int64_t{gridDim.x} * blockDim.x;
  for (int64_t m = thread; m < params.M; m += threads) {
    params.scores[m] = -INFINITY;
    params.probs[m] = 0.0f;
  }
  for (int64_t b = thread; b < params.B; b += threads) params.best[b] = -1;
  for (int64_t slot = thread; slot < work.slot_count; slot += threads) work.slots[slot] = {-1, 0, 0};
  for (int64_t group = blockIdx.x; group < work.groups; group += gridDim.x) {
    const int64_t b = group * kListGroup + threadIdx.x;
    const int64_t end = b < params.B && well_formed(params, b) ? params.list_begin(b + 1) : 0;
    const int64_t highest = block_reduce<Max>(end, scratch);
    if (threadIdx.x == 0) work.group_end[group] = highest;
  }
}

// Columns [first, first + kProjectColumns) of up to kTileRows states, as fp32; 0 past a row's end and past the rows.
__device__ inline void load_states(const ScoreParams& params, int64_t row0, int64_t rows, int64_t first,
                                   bool inst_aligned, bool resp_aligned, float* x) {
  for (int r = 0; r < kTileRows; ++r) {
    const int64_t row = row0 + r;
    float* to = x + r * kProjectColumns;
    if (row >= rows) {
      for (int c = threadIdx.x; c < kProjectColumns; c += kProjectThreads) to[c] = 0.0f;
      continue;
    }
    const bool is_inst = row < params.B;
    const StateRows& states = is_inst ? params.inst : params.resp;
    const int64_t element = (is_inst ? row : row - params.B) * states.stride;
    const bool aligned = is_inst ? inst_aligned : resp_aligned;
    with_dtype(states.dtype, [&](auto* type) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
      using Slice = WarpSlice<T>;
      const T* state = static_cast<const T*>(states.data) + element;
      for (int c = warp_id() * Slice::kColumns; c < kProjectColumns; c += kProjectWarps * Slice::kColumns) {
        const Slice slice{first + c, params.layout.d, aligned};
        float v[Slice::kPerLane];
        slice.load(state, v);
#pragma unroll
        for (int i = 0; i < Slice::kPerLane; ++i) to[slice.column(i) - first] = v[i];
      }
    });
  }
}

// A block owns one panel of 16 columns of kTileRows rows. Each warp takes every 8th K-block; their sums are added in
// the order of the warps. Reads 64 bytes of weights per k for every tile of rows, from L2 after the first tile.
template <bool kBf16>
__global__ void __launch_bounds__(kProjectThreads)
    project_kernel(ScoreParams params, Workspace work, bool inst_aligned, bool resp_aligned) {
  SRR_DYNAMIC_SHARED(shared);
  write_defaults(params, work, reinterpret_cast<int64_t*>(shared));

  float* x = reinterpret_cast<float*>(shared);  // [kTileRows, kProjectColumns]
  const PackedMatrix matrix = params.layout.projection();
  const int64_t panels = params.layout.p_padded() / kPanel;
  const int64_t row0 = blockIdx.x / panels * kTileRows, panel = blockIdx.x % panels;

  PanelProduct product;
  for (int64_t block0 = 0; block0 < matrix.blocks(); block0 += kProjectWarps) {
    __syncthreads();  // nobody reads what shared memory held before
    load_states(params, row0, work.rows, block0 * kBlockK, inst_aligned, resp_aligned, x);
    __syncthreads();  // the states are in shared memory
    const int64_t block = block0 + warp_id();
    if (block < matrix.blocks())
      product.add<kBf16>(x + warp_id() * kBlockK, kProjectColumns, panel_of<kBf16>(matrix, params.packed, block, panel),
                         static_cast<int>(matrix.block_rows(block)));
  }
  const float2 y = product.sum();

  __syncthreads();  // the states have been read
  float* sums = x;  // [kProjectWarps, kTileRows, kPanel]
  constexpr int kTile = kTileRows * static_cast<int>(kPanel);
  float* sum = sums + warp_id() * kTile + PanelProduct::row() * kPanel + PanelProduct::column();
  sum[0] = y.x;
  sum[1] = y.y;
  __syncthreads();  // every warp's sums are in shared memory

  if (threadIdx.x >= kTile) return;  // whole warps
  const int64_t row = row0 + threadIdx.x / kPanel, column = panel * kPanel + threadIdx.x % kPanel;
  const float* bias = reinterpret_cast<const float*>(static_cast<const unsigned char*>(params.packed) +
                                                     params.layout.projection_bias_bytes());
  float v = sums[threadIdx.x];
  for (int w = 1; w < kProjectWarps; ++w) v += sums[w * kTile + threadIdx.x];
  v += bias[column];
  const unsigned finite = __ballot_sync(kAllLanes, fabsf(v) <= kLargestProjected) >> (lane_id() & kPanel) & 0xffffu;
  if (row >= work.rows) return;
  work.projected[row * params.layout.p_padded() + column] = v;
  if (threadIdx.x % kPanel == 0) work.finite[row * panels + panel] = finite == 0xffffu;
}

}  // namespace srr::cuda
