// SPDX-License-Identifier: Apache-2.0
// Second and last launch of score(): which candidates make up each list's sequence; cosine, softmax and the best of
// each list. Knows nothing of what encodes a sequence.
#pragma once

#include "project.cuh"
#include "reduce.cuh"
#include "score_workspace.cuh"

namespace srr::cuda {

constexpr int kListThreads = kListGroup;
constexpr int kListWarps = kListThreads / kWarp;
constexpr int64_t kListSharedBytes = kListWarps * sizeof(int64_t);
constexpr float kCosineEps = 1e-8f;

// Where the well-formed lists before b end: list b overlaps one of them if it begins earlier.
__device__ inline int64_t highest_end_before(const ScoreParams& params, const Workspace& work, int64_t b,
                                             int64_t* scratch) {
  const int64_t group = b / kListGroup, other = group * kListGroup + threadIdx.x;
  int64_t end = 0;
  for (int64_t g = threadIdx.x; g < group; g += kListThreads) end = Max()(end, work.group_end[g]);
  if (other < b && well_formed(params, other)) end = Max()(end, params.list_begin(other + 1));
  return block_reduce<Max>(end, scratch);
}

__device__ inline bool row_is_finite(const Workspace& work, int64_t row, int64_t panels) {
  bool finite = true;
  for (int64_t i = 0; i < panels; ++i) finite = finite && work.finite[row * panels + i];
  return finite;
}

// A block owns one list. Valid lists do not overlap, so neither do their slots; candidates that are out get none.
__global__ void __launch_bounds__(kListThreads) arrange_kernel(ScoreParams params, Workspace work) {
  SRR_DYNAMIC_SHARED(shared);
  const int64_t b = blockIdx.x, panels = params.layout.p_padded() / kPanel;
  bool valid = well_formed(params, b);
  if (params.offsets)
    valid = highest_end_before(params, work, b, reinterpret_cast<int64_t*>(shared)) <= params.list_begin(b) && valid;
  if (!valid || !row_is_finite(work, b, panels)) {  // the same in every thread
    if (threadIdx.x == 0) work.lists[b] = {0, 0, 0};
    return;
  }
  const int64_t begin = params.list_begin(b), end = params.list_begin(b + 1);
  const int32_t B = static_cast<int32_t>(params.B);

  if (params.scope == Scope::kPair) {
    for (int64_t m = begin + threadIdx.x; m < end; m += kListThreads) {
      if (!row_is_finite(work, params.B + m, panels)) continue;
      const int32_t first = static_cast<int32_t>(2 * m);
      work.slots[first] = {static_cast<int32_t>(b), first, 2};
      work.slots[first + 1] = {B + static_cast<int32_t>(m), first, 2};
    }
    if (threadIdx.x == 0) work.lists[b] = {begin, end, 0};
    return;
  }

  int* counts = reinterpret_cast<int*>(shared);  // [kListWarps]: present candidates of each warp's 32
  const int32_t first = static_cast<int32_t>(begin + b);
  int32_t present = 0;
  for (int64_t m0 = begin; m0 < end; m0 += kListThreads) {
    const int64_t m = m0 + threadIdx.x;
    const bool in = m < end && row_is_finite(work, params.B + m, panels);
    const unsigned lanes = __ballot_sync(kAllLanes, in);
    __syncthreads();  // counts, or the scratch before it, has been read
    if (lane_id() == 0) counts[warp_id()] = __popc(lanes);
    __syncthreads();  // counts is complete
    int32_t place = first + 1 + present + __popc(lanes & ((1u << lane_id()) - 1));
    for (int w = 0; w < kListWarps; ++w) {
      if (w < warp_id()) place += counts[w];
      present += counts[w];
    }
    if (in) work.slots[place].row = B + static_cast<int32_t>(m);
  }
  if (threadIdx.x == 0) {
    work.slots[first].row = static_cast<int32_t>(b);
    work.lists[b] = {begin, end, present};
  }
  for (int32_t i = threadIdx.x; i <= present; i += kListThreads) {
    work.slots[first + i].first = first;
    work.slots[first + i].length = present + 1;
  }
}

// Cosine of two vectors of p, in every lane of a warp.
__device__ inline float warp_cosine(const float* a, const float* b, int64_t p) {
  float ab = 0.0f, aa = 0.0f, bb = 0.0f;
  for (int64_t i = lane_id(); i < p; i += kWarp) {
    ab = fmaf(a[i], b[i], ab);
    aa = fmaf(a[i], a[i], aa);
    bb = fmaf(b[i], b[i], bb);
  }
  ab = warp_reduce<Sum>(ab);
  aa = fmaxf(sqrtf(warp_reduce<Sum>(aa)), kCosineEps);
  bb = fmaxf(sqrtf(warp_reduce<Sum>(bb)), kCosineEps);
  const float value = ab / (aa * bb);
  return value > 1.0f ? 1.0f : value < -1.0f ? -1.0f : value;
}

// A block owns one list: a warp per cosine, then a thread per candidate for the softmax.
__global__ void __launch_bounds__(kListThreads) finish_kernel(ScoreParams params, Workspace work, SlotStates states) {
  SRR_DYNAMIC_SHARED(shared);
  const List list = work.lists[blockIdx.x];
  if (list.begin == list.end) return;  // the first launch has answered

  const bool pair = params.scope == Scope::kPair;
  const int64_t first = list.begin + blockIdx.x;
  const int64_t candidates = pair ? list.end - list.begin : list.present;
  for (int64_t i = warp_id(); i < candidates; i += kListWarps) {
    const int64_t inst = pair ? 2 * (list.begin + i) : first, resp = pair ? inst + 1 : first + 1 + i;
    if (work.slots[resp].row < 0) continue;
    const float s = warp_cosine(states.of(work.slots, inst), states.of(work.slots, resp), params.layout.p);
    if (lane_id() == 0 && is_finite(s)) params.scores[work.slots[resp].row - params.B] = s;
  }
  __syncthreads();  // the list's scores are written

  float highest = -INFINITY;
  for (int64_t m = list.begin + threadIdx.x; m < list.end; m += kListThreads)
    highest = fmaxf(highest, params.scores[m]);
  highest = block_reduce<Max>(highest, reinterpret_cast<float*>(shared));
  if (highest == -INFINITY) return;  // all are out

  // In units of 2^-40, so that the sum is exact and candidates that are out cannot change its order.
  constexpr float kUnits = 1099511627776.0f;
  long long total = 0;
  int64_t best = list.end;
  for (int64_t m = list.begin + threadIdx.x; m < list.end; m += kListThreads) {
    const float s = params.scores[m];
    const float e = expf((s - highest) / params.temperature);
    total += static_cast<long long>(e * kUnits);
    params.probs[m] = e;
    if (s == highest && m < best) best = m;
  }
  total = block_reduce<Sum>(total, reinterpret_cast<long long*>(shared));
  best = block_reduce<Min>(best, reinterpret_cast<int64_t*>(shared));
  const float sum = static_cast<float>(total) / kUnits;
  for (int64_t m = list.begin + threadIdx.x; m < list.end; m += kListThreads) params.probs[m] /= sum;
  if (threadIdx.x == 0) params.best[blockIdx.x] = best - list.begin;
}

}  // namespace srr::cuda
