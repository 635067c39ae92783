// SPDX-License-Identifier: Apache-2.0
// The CPU kernels compiled for AVX-512 with bfloat16 dot products. Everything above the target pragma stays baseline
// code.
#include "isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
// _mm512_undefined_*() initialises a variable with itself, which GCC 12 reports where it is inlined.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#define SRR_AVX512
#define SRR_BF16_DOT
namespace srr {
namespace avx512_bf16 {
#include "all_cpu.h"
}  // namespace avx512_bf16
const CpuKernels kAvx512Bf16{"avx512_bf16", avx512_bf16::pool, avx512_bf16::pool_update,
                             avx512_bf16::score_workspace_bytes, avx512_bf16::score};
}  // namespace srr
#endif
