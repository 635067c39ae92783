// SPDX-License-Identifier: Apache-2.0
// The CPU kernels compiled for AVX-512. Everything above the target pragma stays baseline code.
#include "isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
// _mm512_undefined_*() initialises a variable with itself, which GCC 12 reports where it is inlined.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define SRR_AVX512
namespace srr {
namespace avx512 {
#include "all_cpu.h"
}  // namespace avx512
const CpuKernels kAvx512{"avx512", avx512::pool, avx512::pool_update, avx512::score_workspace_bytes, avx512::score};
}  // namespace srr
#endif
