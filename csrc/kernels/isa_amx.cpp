// SPDX-License-Identifier: Apache-2.0
// The CPU kernels compiled for AVX-512 with AMX. Everything above the target pragma stays baseline code.
#include "isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
// _mm512_undefined_*() initialises a variable with itself, which GCC 12 reports where it is inlined.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#define SRR_AVX512
#define SRR_AMX
namespace srr {
namespace amx {
#include "all_cpu.h"
}  // namespace amx
const CpuKernels kAmx{"amx", amx::pool, amx::pool_update, amx::score_workspace_bytes, amx::score};
}  // namespace srr
#endif
