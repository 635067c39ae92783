// SPDX-License-Identifier: Apache-2.0
// Sums and maxima over a warp or a block, in an order that depends on nothing but the thread's place: same bits on
// every run. Knows no kernel. Every thread of the warp or block must call.
#pragma once

#include <cfloat>

#include "launch.cuh"

namespace srr::cuda {

__device__ inline bool is_finite(float v) { return fabsf(v) <= FLT_MAX; }

struct Sum {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};

struct Max {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};

struct Min {
  template <typename T>
  __device__ T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};

// Every lane gets the result: a butterfly, so all lanes hold the same bits.
template <typename Op, typename T>
__device__ T warp_reduce(T v) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) v = Op()(v, __shfl_xor_sync(kAllLanes, v, step));
  return v;
}

// Every thread gets the result. `scratch`: one T per warp of the block, free to overwrite.
template <typename Op, typename T>
__device__ T block_reduce(T v, T* scratch) {
  v = warp_reduce<Op>(v);
  __syncthreads();  // readers of what scratch held before are done
  if (lane_id() == 0) scratch[warp_id()] = v;
  __syncthreads();  // every warp's value is in scratch
  v = scratch[0];
  for (int w = 1; w < static_cast<int>(blockDim.x) / kWarp; ++w) v = Op()(v, scratch[w]);
  return v;
}

}  // namespace srr::cuda
