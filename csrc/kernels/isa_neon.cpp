// SPDX-License-Identifier: Apache-2.0
// The CPU kernels compiled for NEON. Every AArch64 machine has it.
#include "isa.h"

#if defined(__aarch64__)
#include <arm_neon.h>
// Scheduled before registers are given out, loads are hoisted until the sums of a GEMM tile no longer fit.
#pragma GCC optimize("no-schedule-insns")
#define SRR_NEON
namespace srr {
namespace neon {
#include "all_cpu.h"
}  // namespace neon
const CpuKernels kNeon{"neon", neon::pool, neon::pool_update, neon::score_workspace_bytes, neon::score};
}  // namespace srr
#endif
