// SPDX-License-Identifier: Apache-2.0
// A kernel that is right, and with -DPLANT_... is not: what the CPU machine must let pass, and must find.
#include <cstdio>
#include <vector>

#include "../../csrc/kernels/launch.cuh"

namespace {

constexpr int kThreads = 64;

// out[i] = in[reversed i], through shared memory, plus the sum of its warp's lanes.
__global__ void reverse_kernel(const float* in, float* out) {
  SRR_DYNAMIC_SHARED(shared);
  float* values = reinterpret_cast<float*>(shared);  // [kThreads]
  const int i = static_cast<int>(threadIdx.x);
#if defined(PLANT_OUT_OF_BOUNDS)
  values[i + 1] = in[i];
#else
  values[i] = in[i];
#endif
#if defined(PLANT_DIVERGENT_BARRIER)
  if (i < kThreads - 1)
#endif
#if !defined(PLANT_RACE)
    __syncthreads();  // values is complete
#endif
  float sum = static_cast<float>(i % 32);
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(srr::cuda::kAllLanes, sum, step);
  out[i] = values[kThreads - 1 - i] + sum;
}

}  // namespace

int main() {
  std::vector<float> in(kThreads), out(kThreads);
  for (int i = 0; i < kThreads; ++i) in[i] = static_cast<float>(i);
  if (srr::cuda::launch(&reverse_kernel, 2, kThreads, kThreads * sizeof(float), nullptr, in.data(), out.data()) !=
      cudaSuccess)
    return 1;
  for (int i = 0; i < kThreads; ++i)
    if (out[i] != static_cast<float>(kThreads - 1 - i + 496)) return 1;
  std::puts("right");
  return 0;
}
