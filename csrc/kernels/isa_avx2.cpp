// SPDX-License-Identifier: Apache-2.0
// The CPU kernels compiled for AVX2. Everything above the target pragma stays baseline code.
#include "isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma,f16c")
#define SRR_AVX2
namespace srr {
namespace avx2 {
#include "all_cpu.h"
}  // namespace avx2
const CpuKernels kAvx2{"avx2", avx2::pool, avx2::pool_update, avx2::score_workspace_bytes, avx2::score};
}  // namespace srr
#endif
