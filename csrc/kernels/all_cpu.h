// SPDX-License-Identifier: Apache-2.0
// The CPU kernels for one instruction set, each after those it uses. Included inside a namespace of that set, by the
// file that has chosen it and defined what it offers (isa_*.cpp); nothing here is included otherwise.
#include "simd.h"

#include "gemm_cpu.h"
#if defined(SRR_BF16_DOT)
#include "gemm_dot.h"
#endif
#if defined(SRR_AMX)
#include "gemm_amx.h"

#include "digits_amx.h"

#include "panels_amx.h"
#endif

#include "pool_cpu.h"
#if defined(SRR_BF16)
#include "sizes_bf16.h"
#endif

#include "plan_cpu.h"

#include "project_cpu.h"

#include "encode_cpu.h"
#if defined(SRR_BF16)
#include "encode_bf16.h"
#endif

#include "score_cpu.h"
