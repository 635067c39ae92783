// SPDX-License-Identifier: Apache-2.0
// The CPU kernels, once for every instruction set this machine runs; odd attempts use several threads.
#include <cstdlib>
#include <cstring>
#include <thread>

#include "engine.h"

namespace srr::test {
namespace {

void on_threads(int64_t n, void (*body)(void* ctx, int64_t i), void* ctx) {
  std::vector<std::thread> threads;
  for (int64_t i = n - 1; i >= 0; --i) threads.emplace_back([=] { body(ctx, i); });
  for (std::thread& thread : threads) thread.join();
}

Threads threads_of(int attempt) { return attempt % 2 == 0 ? Threads{} : Threads{on_threads, 2 + attempt}; }

class CpuEngine : public Engine {
 public:
  explicit CpuEngine(const char* isa) : isa_(isa) {}
  std::string name() const override { return std::string("cpu/") + isa_; }
  void select() override {
    if (!select_cpu_isa(isa_) || std::strcmp(cpu_isa(), isa_) != 0) std::abort();
  }
  void* allocate(size_t bytes) override {
    void* memory = nullptr;
    return posix_memalign(&memory, 64, bytes) == 0 ? memory : nullptr;
  }
  void release(void* memory) override { std::free(memory); }
  bool answers_bad_offsets() const override { return false; }
  bool rounds() const override { return std::strcmp(isa_, "amx") == 0 || std::strcmp(isa_, "avx512_bf16") == 0; }
  void pool(const PoolParams& params, int attempt) override { pool_cpu(params, threads_of(attempt)); }
  void pool_update(const PoolUpdateParams& params, int attempt) override {
    pool_update_cpu(params, threads_of(attempt));
  }
  void score(const ScoreParams& params, int attempt) override {
    const Threads threads = threads_of(attempt);
    const int64_t bytes = score_cpu_workspace_bytes(params, threads);
    void* workspace = allocate(bytes);
    std::memset(workspace, 0xff, bytes);
    score_cpu(params, workspace, threads);
    release(workspace);
  }
  void rank(const RankParams& params, int) override {
    std::vector<float> pooled(params.score.M * params.score.layout.d);
    pool({params.tokens, pooled.data(), params.score.layout.d}, 0);
    ScoreParams on_pooled = params.score;
    on_pooled.resp = {pooled.data(), DType::kFloat32, params.score.layout.d};
    score(on_pooled, 0);
  }

 private:
  const char* isa_;
};

}  // namespace

std::vector<std::unique_ptr<Engine>> engines() {
  std::vector<std::unique_ptr<Engine>> all;
  for (const char* const* isa = cpu_isas(); *isa; ++isa) all.push_back(std::make_unique<CpuEngine>(*isa));
  return all;
}

}  // namespace srr::test
