// SPDX-License-Identifier: Apache-2.0
// The CPU kernels compiled for what every machine of the architecture has.
#include "isa.h"

namespace srr {
namespace plain {
#include "all_cpu.h"
}  // namespace plain
const CpuKernels kPlain{"plain", plain::pool, plain::pool_update, plain::score_workspace_bytes, plain::score};
}  // namespace srr
