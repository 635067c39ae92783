// SPDX-License-Identifier: Apache-2.0
// Projects states. Knows where states lie, and no lists. Two steps with a barrier of the team between them: partial
// sums over splits of d, many blocks to a row; then their sum, and which rows are finite.
#pragma once

#include "share.cuh"
#include "vec.cuh"

namespace srr::cuda {

constexpr int64_t kProjectSharedBytes = kSplitParts * kGroupRows * kItemColumns * sizeof(float);

// A share's rows in groups of kGroupRows: instructions, then candidates from the next tile on.
struct Groups {
  int inst, rows;  // of the share
  int cand_slot;   // the first candidate's place among slots, kGroupRows to a group
  int count;

  __device__ explicit Groups(const Share& share)
      : inst(share.inst()),
        rows(share.rows()),
        cand_slot((inst + kTileRows - 1) / kTileRows * kTileRows),
        count((cand_slot + rows - inst + kGroupRows - 1) / kGroupRows) {}
  __device__ int slot(int row) const { return row < inst ? row : cand_slot + row - inst; }
  // The first row whose slot is at or after `slot`.
  __device__ int row_from(int slot) const {
    const int row = slot <= cand_slot ? (slot < inst ? slot : inst) : inst + slot - cand_slot;
    return row < rows ? row : rows;
  }
};

// The state of a candidate: a row of resp, or the last token of a span. Null where there is none.
__device__ inline const void* candidate_state(const ScoreJob& job, int64_t m) {
  if (job.candidates != Candidates::kLastTokens)
    return static_cast<const unsigned char*>(job.params.resp.data) +
           m * job.params.resp.stride * size_of(job.params.resp.dtype);
  const TokenSpans& in = job.tokens;
  const int64_t* span = in.spans + m * in.span_stride;
  const int64_t start = span[0], stop = span[in.span_stop_stride];
  if (start < 0 || stop > in.T || stop <= start) return nullptr;
  return static_cast<const unsigned char*>(in.states) +
         (m * in.row_stride + (stop - 1) * in.token_stride) * size_of(in.dtype);
}

__device__ inline DType candidate_dtype(const ScoreJob& job) {
  return job.candidates == Candidates::kLastTokens ? job.tokens.dtype : job.params.resp.dtype;
}

// A state, as one lane reads it. No data: a slot without a row, or a candidate without a token; all columns are 0.
struct StateRow {
  const void* data = nullptr;
  DType dtype = DType::kBFloat16;

  __device__ static StateRow in_slot(const ScoreJob& job, const Share& share, const Groups& groups, int slot) {
    const StateRows& inst = job.params.inst;
    if (slot < groups.inst)
      return {static_cast<const unsigned char*>(inst.data) + (share.b0 + slot) * inst.stride * size_of(inst.dtype),
              inst.dtype};
    const int i = slot - groups.cand_slot;
    if (i < 0 || i >= groups.rows - groups.inst) return {};
    return {candidate_state(job, share.m0 + i), candidate_dtype(job)};
  }
};

// Columns [k, k + 8) of a row. kWhole: all rows are aligned, and eights of columns are all there or not at all.
template <bool kWhole, typename T>
__device__ void load_values(const StateRow& row, int64_t k, int64_t d, T (&values)[8]) {
  const T* from = static_cast<const T*>(row.data) + k;
  memset(values, 0, sizeof values);
  if constexpr (kWhole) {
    if (row.data && k < d) {
      uint4 raw[sizeof(T) / 2];
#pragma unroll
      for (int i = 0; i < static_cast<int>(sizeof(T)) / 2; ++i) raw[i] = reinterpret_cast<const uint4*>(from)[i];
      memcpy(values, raw, sizeof raw);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i)
      if (row.data && k + i < d) values[i] = from[i];
  }
}

// The same as pairs of pieces: of one where all states are bfloat16, of three where they may be anything.
template <bool kWhole>
__device__ void load_pieces(const StateRow& row, int64_t k, int64_t d, uint32_t (&pieces)[1][4]) {
  __nv_bfloat16 values[8];
  load_values<kWhole>(row, k, d, values);
  memcpy(pieces[0], values, sizeof values);
}

template <bool kWhole>
__device__ void load_pieces(const StateRow& row, int64_t k, int64_t d, uint32_t (&pieces)[kMostPieces][4]) {
  float v[8] = {};
  with_dtype(row.dtype, [&](auto* type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    T values[8];
    load_values<kWhole>(row, k, d, values);
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = to_float(values[i]);
  });
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t of_pair[kMostPieces];
    split_pair(v[2 * i], v[2 * i + 1], of_pair);
#pragma unroll
    for (int piece = 0; piece < kMostPieces; ++piece) pieces[piece][i] = of_pair[piece];
  }
}

// A warp's part of an item: `tiles` tiles from slot0 on, one part of a split, 32 columns. sums: [rows, kItemColumns].
template <bool kBf16, bool kWhole, int kPieces, int kTiles>
__device__ void project_tiles(const ScoreJob& job, const Share& share, const Groups& groups, int slot0, int tiles,
                              int unit, int column_tile, float* sums) {
  const PackedMatrix matrix = job.params.layout.projection();
  StateRow row[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) row[i] = StateRow::in_slot(job, share, groups, slot0 + i * kTileRows + lane_row());

  const LaneColumns columns(matrix, job.params.packed, column_tile);
  const int units = job.splits * kSplitParts;
  const int first = job.chunks * unit / units, last = job.chunks * (unit + 1) / units;
  LaneSums<kTiles> total;
#pragma unroll 1
  for (int block = first; block < last; ++block) {
    const auto load = [&](int k, uint32_t (&b)[kTiles][kPieces][4]) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i)
        if (i < tiles) load_pieces<kWhole>(row[i], int64_t{block} * kBlockK + k + lane_k(), job.params.layout.d, b[i]);
    };
    add_steps<kBf16, kTiles, kPieces, kBlockK / kStep>(total, columns.quad<kBf16>(block), 0,
                                                       static_cast<int>(matrix.block_rows(block)), tiles, load);
  }
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
#pragma unroll
    for (int next = 0; next < 2; ++next)
      if (i < tiles)
        *reinterpret_cast<float4*>(sums + (i * kTileRows + lane_sum_row() + next) * kItemColumns + lane_column()) =
            total.row(i, next);
}

// A block's item: partial sums of one group over one split, for kItemColumns columns. Warps 2i and 2i + 1 take part i
// of the split, 32 columns each.
template <bool kBf16, bool kWhole, int kPieces>
__device__ void project_item(const ScoreJob& job, const Share& share, const Groups& groups, int group, int split,
                             int columns0, float* sums, float* partials) {
  // Tiles whose sums registers hold beside the pieces.
  constexpr int kTiles = kPieces > 1 ? 1 : kBf16 ? kGroupTiles : 2;
  const int part = warp_id() / (kWarps / kSplitParts), column = warp_id() % (kWarps / kSplitParts) * kTileColumns;
  const int slot0 = group * kGroupRows;
  int tiles = kGroupTiles;
  while (tiles > 1 && groups.row_from(slot0 + (tiles - 1) * kTileRows) >= groups.rows) --tiles;

  if (columns0 + column < job.P)
#pragma unroll 1
    for (int i = 0; i < tiles; i += kTiles)
      project_tiles<kBf16, kWhole, kPieces, kTiles>(job, share, groups, slot0 + i * kTileRows,
                                                    tiles - i < kTiles ? tiles - i : kTiles, split * kSplitParts + part,
                                                    (columns0 + column) / kTileColumns,
                                                    sums + (part * kGroupRows + i * kTileRows) * kItemColumns + column);
  __syncthreads();  // every part's sums are in shared memory
  constexpr int kQuads = kItemColumns / 4;
#pragma unroll 1
  for (int i = threadIdx.x; i < tiles * kTileRows * kQuads; i += kThreads) {
    const int r = i / kQuads, at = i % kQuads * 4;
    if (columns0 + at >= job.P) continue;
    float4 v = *reinterpret_cast<const float4*>(sums + r * kItemColumns + at);
#pragma unroll
    for (int l = 1; l < kSplitParts; ++l) {
      const float4 w = *reinterpret_cast<const float4*>(sums + (l * kGroupRows + r) * kItemColumns + at);
      v = make_float4(v.x + w.x, v.y + w.y, v.z + w.z, v.w + w.w);
    }
    *reinterpret_cast<float4*>(partials + int64_t{r} * job.P + columns0 + at) = v;
  }
  __syncthreads();  // the sums have been read and may be overwritten
}

// The team's partial sums of groups [group0, group1): [split, slot - group0 * kGroupRows, P].
template <bool kBf16>
__device__ void project_wave(const ScoreJob& job, const Team& team, const Share& share, const Groups& groups,
                             int group0, int group1, float* sums, float* partials) {
  const int columns = static_cast<int>(ceil_div(job.P, kItemColumns)), count = group1 - group0;
  const bool whole = job.inst_aligned && job.resp_aligned && job.params.layout.d % 8 == 0;
  const bool all_bf16 = job.params.inst.dtype == DType::kBFloat16 && candidate_dtype(job) == DType::kBFloat16;
  // Groups vary fastest: those who share weights are at work together.
#pragma unroll 1
  for (int item = team.rank; item < count * columns * job.splits; item += team.size) {
    const int group = group0 + item % count, split = item / count / columns, column = item / count % columns;
    float* to = partials + (int64_t{split} * job.wave_rows() + (group - group0) * kGroupRows) * job.P;
    const int columns0 = column * kItemColumns;
    if (!whole)
      project_item<kBf16, false, kMostPieces>(job, share, groups, group, split, columns0, sums, to);
    else if (all_bf16)
      project_item<kBf16, true, 1>(job, share, groups, group, split, columns0, sums, to);
    else
      project_item<kBf16, true, kMostPieces>(job, share, groups, group, split, columns0, sums, to);
  }
}

// Projected row `row` of the share, by one warp, into x [P] in shared memory, job.x and job.out.
__device__ inline void gather_row(const ScoreJob& job, const Share& share, const Groups& groups, int row, int group0,
                                  const float* partials, float* x) {
  const float* bias = job.vector(job.params.layout.projection_bias_bytes(), 0);
  const float* from = partials + int64_t{groups.slot(row) - group0 * kGroupRows} * job.P;
  const int64_t to = share.row(job, row), split_stride = int64_t{job.wave_rows()} * job.P;
  const bool absent = row >= groups.inst && !candidate_state(job, share.m0 + row - groups.inst);
  bool finite = !absent;
#pragma unroll 1
  for (int c = lane_id() * 4; c < job.P; c += kWarp * 4) {
    float4 v = *reinterpret_cast<const float4*>(from + c);
#pragma unroll 4
    for (int s = 1; s < job.splits; ++s) {
      const float4 w = *reinterpret_cast<const float4*>(from + s * split_stride + c);
      v = make_float4(v.x + w.x, v.y + w.y, v.z + w.z, v.w + w.w);
    }
    const float4 b = *reinterpret_cast<const float4*>(bias + c);
    v = make_float4(v.x + b.x, v.y + b.y, v.z + b.z, v.w + b.w);
    finite = finite && fabsf(v.x) <= kLargestProjected && fabsf(v.y) <= kLargestProjected &&
             fabsf(v.z) <= kLargestProjected && fabsf(v.w) <= kLargestProjected;
    *reinterpret_cast<float4*>(x + c) = v;
  }
  finite = __all_sync(kAllLanes, finite);
#pragma unroll 1
  for (int c = lane_id() * 4; c < job.P; c += kWarp * 4) {
    if (!finite) *reinterpret_cast<float4*>(x + c) = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    *reinterpret_cast<float4*>(job.x + to * job.P + c) = *reinterpret_cast<const float4*>(x + c);
  }
  if (lane_id() == 0) job.out[to] = !finite;
}

}  // namespace srr::cuda
