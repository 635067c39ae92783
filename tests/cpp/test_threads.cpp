// SPDX-License-Identifier: Apache-2.0
// When the CPU kernels ask for more than one worker: for work that pays, and only then.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../csrc/kernels/srr.h"

namespace {

int64_t widest = 0;  // most workers asked for at once

void in_turn(int64_t n, void (*body)(void* ctx, int64_t i), void* ctx) {
  widest = n > widest ? n : widest;
  for (int64_t i = 0; i < n; ++i) body(ctx, i);
}

struct Aligned {
  explicit Aligned(int64_t bytes) : data(std::aligned_alloc(64, srr::round_up(bytes, 64))) {
    for (int64_t i = 0; i < bytes; ++i) static_cast<unsigned char*>(data)[i] = 0;
  }
  ~Aligned() { std::free(data); }
  void* data;
};

// Most workers that scoring N candidates of width d asks for, with `threads` to be had.
int64_t score_workers(int64_t N, int64_t d, int threads) {
  const srr::RankerLayout layout{d, 64, 1, 1, 256, false, false};
  const Aligned packed(layout.size_bytes());
  const std::vector<float> inst(d, 1.0f), resp(N * d, 1.0f);
  std::vector<float> scores(N), probs(N);
  int64_t best;
  const srr::ScoreParams params{layout,
                                packed.data,
                                {inst.data(), srr::DType::kFloat32, d},
                                {resp.data(), srr::DType::kFloat32, d},
                                nullptr,
                                1,
                                N,
                                srr::Scope::kList,
                                0.1f,
                                scores.data(),
                                probs.data(),
                                &best};
  const srr::Threads use{in_turn, threads};
  const Aligned workspace(srr::score_cpu_workspace_bytes(params, use));
  widest = 0;
  srr::score_cpu(params, workspace.data, use);
  return widest;
}

int64_t pool_workers(int64_t M, int64_t T, int64_t d, int threads) {
  const std::vector<float> states(M * T * d, 1.0f);
  std::vector<int64_t> spans(2 * M);
  for (int64_t m = 0; m < M; ++m) spans[2 * m + 1] = T;
  std::vector<float> out(M * d);
  srr::PoolParams params{};
  params.in = {states.data(), srr::DType::kFloat32, T * d, d, M, T, d, spans.data(), 2, 1, srr::Pooling::kMean,
               nullptr};
  params.out = out.data();
  params.out_stride = d;
  widest = 0;
  srr::pool_cpu(params, {in_turn, threads});
  return widest;
}

}  // namespace

int main() {
  int failed = 0, passed = 0;
  const auto check = [&](const char* what, int64_t got, int64_t wanted) {
    if (got == wanted) {
      ++passed;
      return;
    }
    ++failed;
    std::printf("%s: wanted %ld workers, got %ld\n", what, static_cast<long>(wanted), static_cast<long>(got));
  };
  for (const char* const* isa = srr::cpu_isas(); *isa; ++isa) {
    srr::select_cpu_isa(*isa);
    check("score, a long list", score_workers(600, 2048, 4), 4);
    check("score, one thread", score_workers(600, 2048, 1), 0);
    check("score, two candidates", score_workers(2, 64, 4), 0);
    check("pool, many tokens", pool_workers(8, 64, 2048, 4), 4);
    check("pool, one thread", pool_workers(8, 64, 2048, 1), 0);
    check("pool, few tokens", pool_workers(8, 2, 64, 4), 0);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed > 0;
}
