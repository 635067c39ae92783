// SPDX-License-Identifier: Apache-2.0
// How kernels are launched and take shared memory, and which blocks of a launch can wait for one another: what differs
// between nvcc and a host compiler that runs kernels on the CPU (tests/cuda_on_cpu). Knows no kernel.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstdint>
#include <cstring>

#include "plan.h"

// Declares `name`, the block's dynamic shared memory as bytes, aligned to 16. Kernels use no other shared memory.
#if defined(__CUDACC__)
#define SRR_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#else
#define SRR_DYNAMIC_SHARED(name) unsigned char* const name = cuda_on_cpu::dynamic_shared()
#endif

namespace srr::cuda {

constexpr int kWarp = 32;
// Of a block that may work together with others.
constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int64_t kMaxGrid = 0x7fffffff;
// Of shared memory, what every device grants a block without asking, and what every one from sm_80 on grants if asked.
constexpr int64_t kUnaskedSharedBytes = 48 * 1024;
constexpr int64_t kMostSharedBytes = 99 * 1024;

struct Device {
  int index, multiprocessors;
};

inline cudaError_t current_device(Device& device) {
#if defined(__CUDACC__)
  const cudaError_t error = cudaGetDevice(&device.index);
  if (error != cudaSuccess) return error;
  return cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, device.index);
#else
  device = {0, 4};
  return cudaSuccess;
#endif
}

// By device, what the code it runs of a kernel was compiled for; 0: not asked yet.
constexpr int kKnownDevices = 64;
using CompiledFor = std::atomic<int>[kKnownDevices];

// Whether a device runs code of this kernel that was compiled for clusters. Where it finds none of its own it takes
// the PTX of an older one, which has none.
template <typename Kernel>
cudaError_t runs_clusters(const Device& device, CompiledFor& compiled_for, Kernel* kernel, bool& runs) {
#if defined(__CUDACC__)
  const bool known = device.index < kKnownDevices;
  int arch = known ? compiled_for[device.index].load(std::memory_order_relaxed) : 0;
  if (arch == 0) {
    cudaFuncAttributes code{};
    const cudaError_t error = cudaFuncGetAttributes(&code, kernel);
    if (error != cudaSuccess) return error;
    arch = code.ptxVersion;
    if (known) compiled_for[device.index].store(arch, std::memory_order_relaxed);
  }
  runs = arch >= 90;
#else
  (void)device, (void)compiled_for, (void)kernel;
  runs = true;
#endif
  return cudaSuccess;
}

// Devices on which a kernel has been granted shared memory: one bit each. Setting it twice does no harm.
using Granted = std::atomic<uint64_t>;

// Lets any launch of the kernel on this device ask for up to kMostSharedBytes: calls differ in what they need.
template <typename Kernel>
cudaError_t grant_shared(Granted& granted, Kernel* kernel, const Device& device) {
#if defined(__CUDACC__)
  const uint64_t bit = uint64_t{1} << (device.index & 63);
  if (device.index < 64 && granted.load(std::memory_order_relaxed) & bit) return cudaSuccess;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kMostSharedBytes));
  if (error == cudaSuccess) granted.fetch_or(bit, std::memory_order_relaxed);
  return error;
#else
  (void)granted, (void)kernel, (void)device;
  return cudaSuccess;
#endif
}

// Enqueues `grid` blocks of `block` threads; an empty grid is no launch. `cluster` blocks, a divisor of `grid`, make a
// cluster; it counts only where `together` says so.
template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), Together together, int64_t grid, int cluster, int block,
                   int64_t shared_bytes, cudaStream_t stream, const Args&... args) {
  if (grid == 0) return cudaSuccess;
  if (grid < 0 || grid > kMaxGrid) return cudaErrorInvalidValue;
#if defined(__CUDACC__)
  cudaLaunchAttribute attribute{};
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(grid));
  config.blockDim = dim3(static_cast<unsigned>(block));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = together == Together::kNone ? 0 : 1;
  if (together == Together::kCluster) {
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  } else {
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, args...);
#else
  (void)stream;
  const int group = together == Together::kGrid ? static_cast<int>(grid) : together == Together::kCluster ? cluster : 1;
  return cuda_on_cpu::launch(grid, group, block, shared_bytes, [&] { kernel(args...); });
#endif
}

// Blocks that wait for nobody.
template <typename... Params, typename... Args>
cudaError_t launch(void (*kernel)(Params...), int64_t grid, int block, int64_t shared_bytes, cudaStream_t stream,
                   const Args&... args) {
  if (shared_bytes > kUnaskedSharedBytes) return cudaErrorInvalidValue;
  return launch(kernel, Together::kNone, grid, 1, block, shared_bytes, stream, args...);
}

__host__ __device__ constexpr int64_t ceil_div(int64_t n, int64_t by) { return (n + by - 1) / by; }

__device__ inline int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int warp_id() { return static_cast<int>(threadIdx.x) / kWarp; }

}  // namespace srr::cuda
