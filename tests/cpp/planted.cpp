// SPDX-License-Identifier: Apache-2.0
// Faults planted in the shape of a CPU kernel, one for each definition PLANT_*; a sanitizer must report it.
#include <climits>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

namespace {

volatile int64_t opaque = 0;  // not known while compiling

// Rows of d numbers, each summed by a worker; all share `total`.
struct Rows {
  const float* in;
  float* out;
  int64_t rows, d;
  double total;
};

void sum_row(void* ctx, int64_t row) {
  Rows& work = *static_cast<Rows*>(ctx);
  float sum = 0;
  for (int64_t i = 0; i < work.d; ++i) sum += work.in[row * work.d + i];
#ifdef PLANT_OUT_OF_BOUNDS
  row += 1;  // the last worker writes past the end
#endif
  work.out[row] = sum;
#ifdef PLANT_RACE
  work.total += sum;
#endif
}

void on_threads(int64_t n, void (*body)(void* ctx, int64_t i), void* ctx) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < n; ++i) threads.emplace_back([=] { body(ctx, i); });
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

int main() {
  constexpr int64_t kRows = 4, kWidth = 16;
  const std::vector<float> in(kRows * kWidth, 1.0f);
  std::vector<float> out(kRows);
  Rows work{in.data(), out.data(), kRows, kWidth, 0.0};
  on_threads(kRows, sum_row, &work);
#ifdef PLANT_SHIFT
  opaque = int64_t{1} << (opaque + 64);
#endif
#ifdef PLANT_OVERFLOW
  opaque = static_cast<int>(opaque) + INT_MAX + static_cast<int>(in[0]);
#endif
#ifdef PLANT_USE_AFTER_FREE
  const float* gone = std::vector<float>(kRows, 1.0f).data();
  opaque = static_cast<int64_t>(gone[opaque]);
#endif
  for (const float sum : out)
    if (sum != kWidth) return 1;
  std::puts("right");
}
