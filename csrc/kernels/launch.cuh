// SPDX-License-Identifier: Apache-2.0
// How kernels are launched and take shared memory: the one place that differs between nvcc and a host compiler that
// runs kernels on the CPU (tests/cuda_on_cpu). Knows no kernel.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

// Declares `name`, the block's dynamic shared memory as bytes, aligned to 16. Kernels use no other shared memory.
#if defined(__CUDACC__)
#define SRR_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#define SRR_DYNAMIC_SHARED(name) unsigned char* const name = cuda_on_cpu::dynamic_shared()
#endif

namespace srr::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int64_t kMaxGrid = 0x7fffffff;
// What every device grants without asking.
constexpr int64_t kMaxSharedBytes = 48 * 1024;

// Enqueues `grid` blocks of `block` threads; an empty grid is no launch.
template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), int64_t grid, int block, int64_t shared_bytes, cudaStream_t stream,
                   const Args&... args) {
  if (grid == 0) return cudaSuccess;
  if (grid < 0 || grid > kMaxGrid || shared_bytes > kMaxSharedBytes) return cudaErrorInvalidValue;
#if defined(__CUDACC__)
  kernel<<<dim3(static_cast<unsigned>(grid)), dim3(block), shared_bytes, stream>>>(args...);
  return cudaGetLastError();
#else
  (void)stream;
  return cuda_on_cpu::launch(grid, block, shared_bytes, [&] { kernel(args...); });
#endif
}

constexpr int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

__device__ inline int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp_id() { return static_cast<int>(threadIdx.x) / kWarp; }

}  // namespace srr::cuda
