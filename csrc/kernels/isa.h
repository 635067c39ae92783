// SPDX-License-Identifier: Apache-2.0
// The CPU kernels of one instruction set, as a table.
#pragma once

#include "srr.h"

namespace srr {

struct CpuKernels {
  const char* name;
  void (*pool)(const PoolParams&, Threads);
  void (*pool_update)(const PoolUpdateParams&, Threads);
  int64_t (*score_workspace_bytes)(const ScoreParams&, Threads);
  void (*score)(const ScoreParams&, void* workspace, Threads);
};

extern const CpuKernels kAmx, kAvx512Bf16, kAvx512, kAvx2, kNeon, kPlain;

}  // namespace srr
