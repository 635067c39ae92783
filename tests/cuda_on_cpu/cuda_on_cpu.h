// SPDX-License-Identifier: Apache-2.0
// Runs CUDA kernels on the CPU: what a kernel compiled by a host compiler sees of the machine. See README.md.
// Knows no kernel, and only the part of CUDA that README.md lists.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>

struct uint3 {
  unsigned x, y, z;
};

namespace cuda_on_cpu {

constexpr int kWarp = 32;
using Site = std::source_location;

// What the running CUDA thread may ask about itself.
struct Thread {
  uint3 index;
  int lane, warp;
  unsigned exchanges;  // made so far: even and odd ones use different slots
};

struct Block {
  uint3 index, threads, grid;
  unsigned char* dynamic_shared;
};

inline Thread* self = nullptr;
inline Block block{};

inline unsigned char* dynamic_shared() { return block.dynamic_shared; }

// Barriers. `where` is the place in the kernel; all threads of a block or warp must come to the same one.
void sync_block(Site where);
void sync_warp(unsigned mask, Site where);

// The 8-byte slots through which lanes of the running thread's warp exchange values: [32].
uint64_t* exchange_slots(unsigned parity);

// Every lane gives `value` and gets what lane `source` gave. One barrier is enough: the next exchange uses the other
// slots, and nobody reaches the one after it before all have read these.
template <typename T>
T exchange(unsigned mask, T value, int source, Site where) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t* slots = exchange_slots(self->exchanges++ & 1);
  std::memcpy(&slots[self->lane], &value, sizeof(T));
  sync_warp(mask, where);
  std::memcpy(&value, &slots[source & (kWarp - 1)], sizeof(T));
  return value;
}

unsigned ballot(unsigned mask, bool vote, Site where);
int count_block(bool vote, Site where);

// Runs body(kernel) once per CUDA thread, block after block. Returns what cudaGetLastError() would.
int run_grid(int64_t grid, int threads, int64_t shared_bytes, void (*body)(const void*), const void* kernel);

}  // namespace cuda_on_cpu
