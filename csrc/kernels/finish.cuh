// SPDX-License-Identifier: Apache-2.0
// From encoded rows to answers: cosines, the softmax over a list, its best. Knows nothing of how rows were encoded.
#pragma once

#include "reduce.cuh"
#include "share.cuh"

namespace srr::cuda {

constexpr float kCosineEps = 1e-8f;
// Scores of a list that a block keeps in shared memory; those of longer lists are read back.
constexpr int kKeptScores = 1024;
constexpr int64_t kFinishSharedBytes = kKeptScores * sizeof(float) + kWarps * sizeof(int64_t);

// Cosine of two vectors of p, in every lane of a warp.
__device__ inline float warp_cosine(const float* a, const float* b, int p) {
  float ab = 0.0f, aa = 0.0f, bb = 0.0f;
#pragma unroll 1
  for (int i = lane_id(); i < p; i += kWarp) {
    const float x = a[i], y = b[i];
    ab = fmaf(x, y, ab);
    aa = fmaf(x, x, aa);
    bb = fmaf(y, y, bb);
  }
  ab = warp_reduce<Sum>(ab);
  aa = fmaxf(sqrtf(warp_reduce<Sum>(aa)), kCosineEps);
  bb = fmaxf(sqrtf(warp_reduce<Sum>(bb)), kCosineEps);
  const float value = ab / (aa * bb);
  return value > 1.0f ? 1.0f : value < -1.0f ? -1.0f : value;
}

// The answers of list b, by one block. `scored`: params.scores holds the list's scores already; otherwise they are the
// cosines of its rows of job.x.
__device__ inline void finish_list(const ScoreJob& job, int b, bool scored, unsigned char* shared) {
  const ScoreParams& params = job.params;
  const ListAt list = list_at(job, b);
  const int N = static_cast<int>(list.end - list.begin);
  int64_t* scratch = reinterpret_cast<int64_t*>(shared);
  const bool kept = N <= kKeptScores;
  float* scores = kept ? reinterpret_cast<float*>(scratch + kWarps) : params.scores + list.begin;

  const bool none = job.out[b];
#pragma unroll 1
  for (int i = warp_id(); i < N; i += kWarps) {
    const int64_t m = list.begin + i, row = params.B + m;
    float s = -INFINITY;
    if (scored) {
      s = params.scores[m];
    } else if (!none && !job.out[row]) {
      const float cosine =
          warp_cosine(job.x + int64_t{b} * job.P, job.x + row * job.P, static_cast<int>(params.layout.p));
      if (is_finite(cosine)) s = cosine;
    }
    if (lane_id() == 0) {
      if (kept) scores[i] = s;
      if (!scored) params.scores[m] = s;  // else the other lanes may still be reading it
    }
  }
  __syncthreads();  // the list's scores are complete

  float highest = -INFINITY;
#pragma unroll 1
  for (int i = threadIdx.x; i < N; i += kThreads) highest = fmaxf(highest, scores[i]);
  highest = block_reduce<Max>(highest, reinterpret_cast<float*>(scratch));
  const bool all_out = highest == -INFINITY;

  // In units of 2^-40, so that the sum is exact and candidates that are out cannot change its order.
  constexpr float kUnits = 1099511627776.0f;
  long long total = 0;
  int best = N;
#pragma unroll 1
  for (int i = threadIdx.x; i < N && !all_out; i += kThreads) {
    const float s = scores[i];
    total += static_cast<long long>(expf((s - highest) / params.temperature) * kUnits);
    if (s == highest && i < best) best = i;
  }
  total = block_reduce<Sum>(total, reinterpret_cast<long long*>(scratch));
  best = block_reduce<Min>(best, reinterpret_cast<int*>(scratch));
  const float sum = static_cast<float>(total) / kUnits;
#pragma unroll 1
  for (int i = threadIdx.x; i < N; i += kThreads)
    params.probs[list.begin + i] = all_out ? 0.0f : expf((scores[i] - highest) / params.temperature) / sum;
  if (threadIdx.x == 0) params.best[b] = all_out ? -1 : best;
  __syncthreads();  // scores and scratch have been read and may be overwritten
}

}  // namespace srr::cuda
