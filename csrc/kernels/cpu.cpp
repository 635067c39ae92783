// SPDX-License-Identifier: Apache-2.0
// Chooses the CPU kernels at run time and forwards to them.
#include <atomic>
#include <cstring>

#include "isa.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace srr {
namespace {

#if defined(__x86_64__)
// Whether the processor has tiles of bfloat16 and bytes and the system lets this process use them: it wants to be
// asked.
bool amx_granted() {
#if defined(__linux__)
  constexpr unsigned kWanted = 1u << 24 | 1u << 22 | 1u << 25;  // tiles, of bfloat16, of bytes
  constexpr long kRequestPermission = 0x1023, kTileData = 18;   // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & kWanted) != kWanted) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// What this build holds and this machine runs, best first.
struct Available {
  const CpuKernels* kernels[6] = {};
  const char* names[6] = {};

  Available() {
    int n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    if (bf16 && amx_granted()) kernels[n++] = &kAmx;
    // Intel's dot products of bfloat16 are no faster than its multiply-adds, and want pairs.
    const bool dot_first = bf16 && !__builtin_cpu_is("intel");
    if (dot_first) kernels[n++] = &kAvx512Bf16;
    if (avx512) kernels[n++] = &kAvx512;
    if (bf16 && !dot_first) kernels[n++] = &kAvx512Bf16;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
      kernels[n++] = &kAvx2;
#elif defined(__aarch64__)
    kernels[n++] = &kNeon;
#endif
    kernels[n++] = &kPlain;
    for (int i = 0; i < n; ++i) names[i] = kernels[i]->name;
  }
};

const Available& available() {
  static const Available result;
  return result;
}

std::atomic<const CpuKernels*> selected{nullptr};

const CpuKernels& kernels() {
  const CpuKernels* chosen = selected.load(std::memory_order_relaxed);
  return chosen ? *chosen : *available().kernels[0];
}

}  // namespace

const char* const* cpu_isas() { return available().names; }
const char* cpu_isa() { return kernels().name; }
bool select_cpu_isa(const char* name) {
  for (const CpuKernels* k : available().kernels) {
    if (k == nullptr || std::strcmp(k->name, name) != 0) continue;
    selected.store(k, std::memory_order_relaxed);
    return true;
  }
  return false;
}

void pool_cpu(const PoolParams& params, Threads threads) { kernels().pool(params, threads); }
void pool_update_cpu(const PoolUpdateParams& params, Threads threads) { kernels().pool_update(params, threads); }
int64_t score_cpu_workspace_bytes(const ScoreParams& params, Threads threads) {
  return kernels().score_workspace_bytes(params, threads);
}
void score_cpu(const ScoreParams& params, void* workspace, Threads threads) {
  kernels().score(params, workspace, threads);
}

}  // namespace srr
