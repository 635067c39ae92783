// SPDX-License-Identifier: Apache-2.0
// Runs the CUDA threads of a group of blocks on the CPU, a fiber each; groups run one after another. Knows no kernel.
#include "cuda_on_cpu.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
// Set where kernels are compiled for ThreadSanitizer. This file is not: it switches between what the sanitizer is told
// are threads, and tells it of barriers and nothing else.
#if defined(CUDA_ON_CPU_TSAN)
#include <sanitizer/tsan_interface.h>
#endif

namespace cuda_on_cpu {
namespace {

constexpr int kFailureExit = 70;
constexpr int kMaxThreads = 1024;
constexpr int64_t kMaxSharedBytes = 227 * 1024;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "cuda_on_cpu: block %u: %s\n", block.index.x, what.c_str());
  std::fflush(stderr);
  std::_Exit(kFailureExit);
}

std::string text_of(Site where) {
  return std::string(where.file_name()) + ":" + std::to_string(where.line()) + " (" + where.function_name() + ")";
}

void check_mask(unsigned mask, Site where) {
  if (mask != ~0u) fail("a warp barrier or exchange of part of a warp, at " + text_of(where));
}

// Memory as of release(at) is known to whoever calls acquire(at) after it.
void release([[maybe_unused]] void* at) {
#if defined(CUDA_ON_CPU_TSAN)
  __tsan_release(at);
#endif
}
void acquire([[maybe_unused]] void* at) {
#if defined(CUDA_ON_CPU_TSAN)
  __tsan_acquire(at);
#endif
}

struct Fragments {
  uint32_t a[4], b[2];
};

struct Slots {
  uint64_t even_odd[2][kWarp];
  Fragments fragments[2][kWarp];
};

}  // namespace

namespace {

constexpr size_t kStackBytes = 256 * 1024;

// Where a fiber that is not running left off.
#if defined(__x86_64__)
extern "C" void cuda_on_cpu_switch(void** from, void* to);
// Saves the registers a call must keep on the stack, leaves the stack pointer at *from, takes up at `to`.
asm(R"(
.text
.globl cuda_on_cpu_switch
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");

struct Context {
  void* stack_pointer = nullptr;

  void start(char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>((reinterpret_cast<uintptr_t>(stack) + kStackBytes) & ~uintptr_t{15});
    top[-1] = nullptr;  // entry never returns
    top[-2] = reinterpret_cast<void*>(entry);
    for (int i = 3; i <= 8; ++i) top[-i] = nullptr;  // the six registers
    stack_pointer = top - 8;
  }
  void switch_to(Context& to) { cuda_on_cpu_switch(&stack_pointer, to.stack_pointer); }
};
#else
struct Context {
  ucontext_t context;

  void start(char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStackBytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
  }
  void switch_to(Context& to) { swapcontext(&context, &to.context); }
};
#endif

struct Barrier {
  int expected = 0, arrived = 0;
  unsigned generation = 0;
  Site where{};
  const char* of = "";
  char turns[2] = {};  // addresses to release and acquire: even and odd generations
};

struct Fiber {
  Thread thread{};
  Context context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  void* fake_stack = nullptr;  // AddressSanitizer's
  bool done = false;
  Barrier* waits_for = nullptr;
  unsigned since = 0;  // the barrier's generation when the wait began
  Site waits_at{};
#if defined(CUDA_ON_CPU_TSAN)
  void* tsan_thread = __tsan_create_fiber(0);
#endif

  bool ready() const { return !done && (!waits_for || waits_for->generation != since); }
};

struct Machine {
  Context scheduler;
  void* fake_stack = nullptr;
  const void* stack = nullptr;  // the scheduler's
  size_t stack_bytes = 0;
  std::vector<std::unique_ptr<Fiber>> fibers;  // kept between launches
  std::vector<Block> blocks;                   // those that run together
  Barrier group_barrier;
  std::vector<Barrier> block_barriers;
  std::vector<Barrier> warp_barriers;  // of all blocks of the group, as are the next two
  std::vector<Slots> slots;
  std::vector<int> votes;
  void (*body)(const void*) = nullptr;
  const void* kernel = nullptr;
  char before = 0, after = 0;  // addresses to release and acquire: around a block
#if defined(CUDA_ON_CPU_TSAN)
  void* tsan_thread = nullptr;  // the scheduler's
#endif
} machine;

int threads_of_block() { return static_cast<int>(block.threads.x); }
int running_warp() { return self->block * (threads_of_block() / kWarp) + self->warp; }
int running_thread() { return running_warp() * kWarp + self->lane; }
Fiber& running() { return *machine.fibers[running_thread()]; }

void back_to_scheduler(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(fiber.done ? nullptr : &fiber.fake_stack, machine.stack, machine.stack_bytes);
#endif
#if defined(CUDA_ON_CPU_TSAN)
  __tsan_switch_to_fiber(machine.tsan_thread, __tsan_switch_to_fiber_no_sync);
#endif
  fiber.context.switch_to(machine.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
}

void entry() {
  Fiber& fiber = running();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &machine.stack, &machine.stack_bytes);
#endif
  acquire(&machine.before);
  machine.body(machine.kernel);
  release(&machine.after);
  fiber.done = true;
  back_to_scheduler(fiber);
}

void resume(Fiber& fiber) {
  self = &fiber.thread;
  block = machine.blocks[fiber.thread.block];
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&machine.fake_stack, fiber.stack.get(), kStackBytes);
#endif
#if defined(CUDA_ON_CPU_TSAN)
  __tsan_switch_to_fiber(fiber.tsan_thread, __tsan_switch_to_fiber_no_sync);
#endif
  machine.scheduler.switch_to(fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(machine.fake_stack, nullptr, nullptr);
#endif
}

void wait(Barrier& barrier, Site where) {
  if (barrier.arrived == 0) {
    barrier.where = where;
  } else if (barrier.where.line() != where.line() || std::strcmp(barrier.where.file_name(), where.file_name()) != 0) {
    fail(std::string("divergent barrier: threads of one ") + barrier.of + " wait at " + text_of(barrier.where) +
         " and at " + text_of(where));
  }
  char* turn = &barrier.turns[barrier.generation & 1];
  release(turn);
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    acquire(turn);
    return;
  }
  Fiber& fiber = running();
  fiber.waits_for = &barrier;
  fiber.since = barrier.generation;
  fiber.waits_at = where;
  back_to_scheduler(fiber);
  fiber.waits_for = nullptr;
  acquire(turn);
}

[[noreturn]] void fail_stuck(int threads) {
  int left = 0;
  std::string waiting;
  for (int i = 0; i < threads; ++i) {
    const Fiber& fiber = *machine.fibers[i];
    left += fiber.done;
    if (fiber.done ||
        (i > 0 && !machine.fibers[i - 1]->done && machine.fibers[i - 1]->waits_at.line() == fiber.waits_at.line()))
      continue;
    waiting += "\n  thread " + std::to_string(i) + " and its neighbours wait for their " + fiber.waits_for->of +
               " at " + text_of(fiber.waits_at);
  }
  fail("divergent barrier: " + std::to_string(left) + " of " + std::to_string(threads) +
       " threads have left the kernel, the others wait for ever" + waiting);
}

// `threads`: of each block.
void run_group(int threads, void (*body)(const void*), const void* kernel) {
  const int blocks = static_cast<int>(machine.blocks.size()), all = blocks * threads;
  machine.body = body;
  machine.kernel = kernel;
  machine.group_barrier = {all, 0, 0, {}, "group of blocks"};
  machine.block_barriers.assign(blocks, {threads, 0, 0, {}, "block"});
  machine.warp_barriers.assign(all / kWarp, {kWarp, 0, 0, {}, "warp"});
  machine.slots.resize(all / kWarp);
  machine.votes.resize(all);
  while (static_cast<int>(machine.fibers.size()) < all) machine.fibers.push_back(std::make_unique<Fiber>());
  for (int i = 0; i < all; ++i) {
    Fiber& fiber = *machine.fibers[i];
    const int thread = i % threads;
    fiber.thread = {{static_cast<unsigned>(thread), 0, 0}, thread % kWarp, thread / kWarp, i / threads, 0};
    fiber.done = false;
    fiber.waits_for = nullptr;
    fiber.fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber.stack.get(), kStackBytes);
#endif
    fiber.context.start(fiber.stack.get(), entry);
  }
  release(&machine.before);  // all that was set up, the group's memory above all
  // A warp runs until all its threads wait for more than the warp or have left, then the next.
  int left = all;
  while (left > 0) {
    bool moved = false;
    for (int first = 0; first < all; first += kWarp) {
      for (bool warp_moved = true; warp_moved;) {
        warp_moved = false;
        for (int i = first; i < first + kWarp; ++i) {
          Fiber& fiber = *machine.fibers[i];
          if (!fiber.ready()) continue;
          resume(fiber);
          left -= fiber.done;
          warp_moved = moved = true;
        }
      }
    }
    if (!moved) fail_stuck(all);
  }
}

void run_groups(int64_t grid, int group, int threads, int64_t shared_bytes, void (*body)(const void*),
                const void* kernel) {
#if defined(CUDA_ON_CPU_TSAN)
  machine.tsan_thread = __tsan_get_current_fiber();
#endif
  // Each its own allocation of the very size, so that AddressSanitizer sees the ends.
  std::vector<std::unique_ptr<unsigned char[]>> shared(group);
  for (auto& bytes : shared) bytes.reset(new unsigned char[shared_bytes]);
  machine.blocks.resize(group);
  for (int64_t first = 0; first < grid; first += group) {
    for (int i = 0; i < group; ++i) {
      machine.blocks[i] = {{static_cast<unsigned>(first + i), 0, 0},
                           {static_cast<unsigned>(threads), 1, 1},
                           {static_cast<unsigned>(grid), 1, 1},
                           shared[i].get()};
      std::memset(shared[i].get(), 0xff, shared_bytes);  // NaN, or -1: what a kernel must not read before it wrote it
    }
    run_group(threads, body, kernel);
    acquire(&machine.after);
  }
}

float bf16(uint32_t bits) {
  bits <<= 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Element (row, k) of a, (k, column) of b: which lane holds them, in which register, in which half.
float a_element(const Fragments* warp, int row, int k) {
  const uint32_t word = warp[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2];
  return bf16(k % 2 ? word >> 16 : word & 0xffff);
}
float b_element(const Fragments* warp, int k, int column) {
  const uint32_t word = warp[column * 4 + k % 8 / 2].b[k / 8];
  return bf16(k % 2 ? word >> 16 : word & 0xffff);
}

// To float32, toward zero.
float cut_off(double value) {
  const float nearest = static_cast<float>(value);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(value) ? std::nextafterf(nearest, 0.0f) : nearest;
}

}  // namespace

void sync_group(Site where) { wait(machine.group_barrier, where); }
void sync_block(Site where) { wait(machine.block_barriers[self->block], where); }
void sync_warp(unsigned mask, Site where) {
  check_mask(mask, where);
  wait(machine.warp_barriers[running_warp()], where);
}

uint64_t* exchange_slots(unsigned parity) { return machine.slots[running_warp()].even_odd[parity]; }

void mma_bf16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site where) {
  Fragments* warp = machine.slots[running_warp()].fragments[self->exchanges++ & 1];
  Fragments& own = warp[self->lane];
  std::memcpy(own.a, a, sizeof a);
  std::memcpy(own.b, b, sizeof b);
  sync_warp(~0u, where);
  for (int i = 0; i < 4; ++i) {
    const int row = self->lane / 4 + i / 2 * 8, column = self->lane % 4 * 2 + i % 2;
    for (int k0 = 0; k0 < 16; k0 += 8) {
      double sum = c[i];
      for (int k = k0; k < k0 + 8; ++k)
        sum += static_cast<double>(a_element(warp, row, k)) * static_cast<double>(b_element(warp, k, column));
      c[i] = cut_off(sum);
    }
  }
}

unsigned ballot(unsigned mask, bool vote, Site where) {
  uint64_t* slots = exchange_slots(self->exchanges++ & 1);
  slots[self->lane] = vote;
  sync_warp(mask, where);
  unsigned votes = 0;
  for (int i = 0; i < kWarp; ++i) votes |= static_cast<unsigned>(slots[i]) << i;
  return votes;
}

int count_block(bool vote, Site where) {
  const int threads = threads_of_block();
  machine.votes[running_thread()] = vote;
  sync_block(where);
  int count = 0;
  for (int i = 0; i < threads; ++i) count += machine.votes[self->block * threads + i];
  sync_block(where);  // all have counted
  return count;
}

int run_grid(int64_t grid, int group, int threads, int64_t shared_bytes, void (*body)(const void*),
             const void* kernel) {
  constexpr int kInvalidConfiguration = 9;
  if (grid < 1 || grid > INT32_MAX || group < 1 || grid % group != 0 || threads < 1 || threads > kMaxThreads ||
      threads % kWarp != 0 || shared_bytes < 0 || shared_bytes > kMaxSharedBytes)
    return kInvalidConfiguration;
  run_groups(grid, group, threads, shared_bytes, body, kernel);
  return 0;
}

}  // namespace cuda_on_cpu
