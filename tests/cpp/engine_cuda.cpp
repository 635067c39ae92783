// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels: on the CPU machine of tests/cuda_on_cpu, or with SRR_TEST_DEVICE on a GPU, in managed memory.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../csrc/kernels/plan.h"
#include "engine.h"

#if defined(SRR_TEST_DEVICE)
#include <cuda_runtime.h>
#endif

namespace srr::test {
namespace {

void check(int error, const char* what) {
  if (error == 0) return;
  std::fprintf(stderr, "%s: CUDA error %d\n", what, error);
  std::exit(2);
}

class CudaEngine : public Engine {
 public:
#if defined(SRR_TEST_DEVICE)
  std::string name() const override { return "cuda"; }
  void* allocate(size_t bytes) override {
    void* memory = nullptr;
    check(cudaMallocManaged(&memory, bytes > 0 ? bytes : 1), "cudaMallocManaged");
    return memory;
  }
  void release(void* memory) override { check(cudaFree(memory), "cudaFree"); }
#else
  std::string name() const override { return "cuda_on_cpu"; }
  void* allocate(size_t bytes) override {
    void* memory = nullptr;
    return posix_memalign(&memory, 64, bytes) == 0 ? memory : nullptr;
  }
  void release(void* memory) override { std::free(memory); }
#endif
  bool answers_bad_offsets() const override { return true; }
  void pool(const PoolParams& params, int) override {
    const Workspace workspace(*this, pool_cuda_workspace_bytes(params.in));
    finish(pool_cuda(params, workspace.data, nullptr), "pool_cuda");
  }
  void pool_update(const PoolUpdateParams& params, int) override {
    const Workspace workspace(*this, pool_cuda_workspace_bytes(params.in));
    finish(pool_update_cuda(params, workspace.data, nullptr), "pool_update_cuda");
  }
  void rank(const RankParams& params, int attempt) override {
    if (attempt == 0) {
      const Workspace workspace(*this, rank_cuda_workspace_bytes(params));
      finish(rank_cuda(params, workspace.data, nullptr), "rank_cuda");
      return;
    }
    using cuda::Together;
    const cuda::ScorePlan plan =
        attempt == 1 ? cuda::ScorePlan{Together::kGrid, 1, 3, false} : cuda::ScorePlan{Together::kNone, 1, 1, false};
    const Workspace workspace(*this, cuda::score_workspace_bytes(params.score, &params.tokens, plan));
    finish(cuda::score(params.score, &params.tokens, plan, workspace.data, nullptr), "score of tokens");
  }
  // Attempt 0: as the library plans it. Then the other ways to share the work between blocks.
  void score(const ScoreParams& params, int attempt) override {
    using cuda::Together;
    const int B = static_cast<int>(params.B);
    const cuda::ScorePlan plan = attempt == 1 ? cuda::ScorePlan{Together::kGrid, 1, 3, false}
                                              : cuda::ScorePlan{Together::kNone, B < 2 ? 1 : B / 2, 1, false};
    if (attempt == 0) {
      const Workspace workspace(*this, score_cuda_workspace_bytes(params));
      finish(score_cuda(params, workspace.data, nullptr), "score_cuda");
    } else {
      const Workspace workspace(*this, cuda::score_workspace_bytes(params, nullptr, plan));
      finish(cuda::score(params, nullptr, plan, workspace.data, nullptr), "score");
    }
  }

 private:
  // Of the very size, holding nothing of use.
  struct Workspace {
    CudaEngine& engine;
    void* data;

    Workspace(CudaEngine& engine, int64_t bytes) : engine(engine), data(engine.allocate(bytes)) {
      std::memset(data, 0xff, bytes);
    }
    ~Workspace() { engine.release(data); }
    Workspace(const Workspace&) = delete;
    Workspace& operator=(const Workspace&) = delete;
  };

  static void finish(int error, const char* what) {
    check(error, what);
#if defined(SRR_TEST_DEVICE)
    check(cudaDeviceSynchronize(), what);
#endif
  }
};

}  // namespace

std::vector<std::unique_ptr<Engine>> engines() {
#if defined(SRR_TEST_DEVICE)
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::puts("skipped: no GPU, or no driver for it");
    std::exit(77);
  }
#endif
  std::vector<std::unique_ptr<Engine>> all;
  all.push_back(std::make_unique<CudaEngine>());
  return all;
}

}  // namespace srr::test
