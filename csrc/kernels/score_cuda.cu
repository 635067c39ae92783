// SPDX-License-Identifier: Apache-2.0
// Scores candidate lists on a GPU, in one launch. Never looks at what device pointers hold.
#include "finish.cuh"
#include "project.cuh"
#include "share.cuh"
#include "team.cuh"
#include "tile.cuh"
#include "wide.cuh"

namespace srr::cuda {
namespace {

// Weights the team will want after the projection, brought to L2 while it is at work.
__device__ inline void prefetch_encoder(const ScoreJob& job, const Team& team) {
#if defined(__CUDA_ARCH__)
  if (team.index != 0 || job.params.layout.layers == 0) return;
  constexpr int64_t kLine = 128;
  const int64_t begin = (int64_t{team.rank} * kThreads + threadIdx.x) * kLine;
  const int64_t step = int64_t{team.size} * kThreads * kLine;
#pragma unroll 1
  for (int layer = 0; layer < job.params.layout.layers; ++layer) {
    const unsigned char* from = job.packed(0) + layer * job.layer_bytes;
    const auto fetch = [&](const PackedMatrix& m) {
#pragma unroll 1
      for (int64_t at = begin; at < m.weight_bytes(); at += step)
        asm volatile("prefetch.global.L2 [%0];" ::"l"(from + m.offset_bytes + at));
    };
    fetch(job.layer0.qkv);
    fetch(job.layer0.out);
    fetch(job.layer0.ffn1);
    fetch(job.layer0.ffn2);
  }
#else
  (void)job, (void)team;
#endif
}

// Sums of tokens become rows that are projected as any others. A row without tokens is NaN.
__device__ inline void pool_candidates(const ScoreJob& job, const Team& team, float* shared) {
  const TokenSpans& in = job.tokens;
  if (in.pooling == Pooling::kGated) {
    with_dtype(in.dtype, [&](auto* type) {
      using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
      gate_tokens<T>(in, job.gates, job.tokens_aligned, team.rank, team.size);
    });
    team.sync();  // the gates are complete
  }
  with_dtype(in.dtype, [&](auto* type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    pool_tokens<T>(in, {job.pooled, in.d, nullptr}, job.gates, job.tokens_aligned, team.rank, team.size, shared);
  });
  team.sync();  // the rows are complete, and shared memory has been read
}

// The tile at hand: a block's rows, where their x comes from, where their q, k and v go and what they attend to.
// Scope::kList: neighbouring rows of the share. Scope::kPair, once projected: rows 2i and 2i + 1 are the sequence of
// candidate share.m0 + pair0 + i, and the block's own.
struct Tile {
  const ScoreJob& job;
  const Share& share;
  bool pairs;
  int first;  // row of the share, or pair
  int rows;

  __device__ int candidate(int r) const { return share.m0 + first + r / 2; }
  // -1: of no valid list (pairs only).
  __device__ int64_t row(int r) const {
    if (!pairs) return share.row(job, first + r);
    const int b = list_of(job, share, candidate(r));
    return b < 0 || r % 2 == 0 ? b : job.params.B + candidate(r);
  }
  __device__ float* qkv(int layer, int r) const {
    const int stride = 3 * job.HE;
    if (pairs) return job.qkv + (int64_t{blockIdx.x} * 2 * kTileRows + r) * stride;
    return job.qkv + layer % 2 * job.qkv_turn + row(r) * stride;
  }
  __device__ Keys keys(int layer, int r) const {
    if (pairs) {
      const float* inst = qkv(layer, r / 2 * 2);
      return {qkv(layer, r), inst, inst + 3 * job.HE, nullptr, 2};
    }
    const int64_t B = job.params.B, own = row(r), stride = 3 * job.HE;
    const float* all = job.qkv + layer % 2 * job.qkv_turn;
    Keys keys{all + own * stride, nullptr, nullptr, nullptr, 0};
    const int64_t b = own < B ? own : list_of(job, share, static_cast<int>(own - B));
    if (b < 0 || job.out[own] || job.out[b]) return keys;
    const ListAt list = list_at(job, b);
    keys.first = all + b * stride;
    keys.rest = all + (B + list.begin) * stride;
    keys.out = job.out + B + list.begin;
    keys.count = list.end > list.begin ? static_cast<int>(1 + list.end - list.begin) : 0;
    return keys;
  }
};

// The scores of a tile's pairs, a warp to each.
__device__ inline void score_pairs(const Tile& tile, const TileMemory& memory) {
  const ScoreJob& job = tile.job;
  const ScoreParams& params = job.params;
  __syncthreads();  // every row is complete
#pragma unroll 1
  for (int i = warp_id(); i < tile.rows / 2; i += kWarps) {
    const int m = tile.candidate(2 * i), b = list_of(job, tile.share, m);
    if (b < 0) continue;
    const float* inst = memory.x + 2 * i * job.P;
    const float s = warp_cosine(inst, inst + job.P, static_cast<int>(params.layout.p));
    const bool in = !job.out[b] && !job.out[params.B + m] && is_finite(s);
    if (lane_id() == 0) params.scores[m] = in ? s : -INFINITY;
  }
  __syncthreads();  // the tile has been read and may be overwritten
}

// Of each layer of a stage the rest, then q, k and v of the layer after. Layer -1 is what comes before the first: it
// has no rest.
struct StageLayers {
  int begin, end;
};

// stage: negative for a wave of the projection, else counted from the first stage after.
__device__ inline StageLayers layers_of(int stage, int layers, bool pairs) {
  if (stage < 0) return {-1, pairs ? -1 : 0};  // pairs begin where both rows are at hand
  return pairs ? StageLayers{-1, layers} : StageLayers{stage, stage + 1};
}

// A team takes its share from states to answers in stages with a barrier between two: tokens are pooled where
// candidates are sums of them; waves of rows are projected; then a stage for each layer, or one for all layers where
// sequences are pairs. Last cosines and softmax, a list to a block.
template <bool kBf16>
__global__ void __launch_bounds__(kThreads, 1) score_kernel(const __grid_constant__ ScoreJob job) {
  SRR_DYNAMIC_SHARED(shared);
  const Team team(job.together, job.team_size);
  if (job.candidates == Candidates::kPooled) pool_candidates(job, team, reinterpret_cast<float*>(shared));
  const Share share = find_share(job, team, reinterpret_cast<int64_t*>(shared));
  const int layers = static_cast<int>(job.params.layout.layers);
  const bool pairs = layers > 0 && job.params.scope == Scope::kPair;

  if (share.m0 < share.m1) {
    prefetch_encoder(job, team);
    const TileMemory memory(job, shared);
    const Groups groups(share);
    float* partials = job.partials + int64_t{team.index} * job.splits * job.wave_rows() * job.P;
    const int waves = (groups.count + job.wave_groups - 1) / job.wave_groups;
#pragma unroll 1
    for (int stage = 0; stage < waves + (pairs ? 1 : layers); ++stage) {
      const bool projects = stage < waves, of_pairs = pairs && !projects;
      const int group0 = stage * job.wave_groups;
      int begin = 0, end = of_pairs ? share.m1 - share.m0 : share.rows();
      if (projects) {
        const int group1 = groups.count < group0 + job.wave_groups ? groups.count : group0 + job.wave_groups;
        project_wave<kBf16>(job, team, share, groups, group0, group1, reinterpret_cast<float*>(shared), partials);
        begin = groups.row_from(group0 * kGroupRows);
        end = groups.row_from(group1 * kGroupRows);
        team.sync();  // the wave's partial sums are complete
      }
      const StageLayers here = layers_of(stage - waves, layers, pairs);

      // Every block has a tile before one has two.
      const int most = of_pairs ? job.most_rows / 2 : job.most_rows, even = (end - begin + team.size - 1) / team.size;
      const int height = even < most ? even : most;
#pragma unroll 1
      for (int first = begin + team.rank * height; first < end; first += team.size * height) {
        const int count = end - first < height ? end - first : height;
        const Tile tile{job, share, of_pairs, first, of_pairs ? 2 * count : count};
#pragma unroll 1
        for (int r = warp_id(); r < tile.rows; r += kWarps) {
          float* x = memory.x + r * job.P;
          const int64_t row = tile.row(r);
          if (projects)
            gather_row(job, share, groups, first + r, group0, partials, x);
          else
            warp_copy(x, row < 0 ? nullptr : job.x + row * job.P, job.P);
        }
#pragma unroll 1
        for (int layer = here.begin; layer < here.end; ++layer) {
          if (layer >= 0) tile_rest<kBf16>(job, memory, layer, tile.rows, [&](int r) { return tile.keys(layer, r); });
          if (layer + 1 < layers)
            tile_qkv<kBf16>(job, memory, layer + 1, tile.rows, [&](int r) { return tile.qkv(layer + 1, r); });
        }
        if (of_pairs)
          score_pairs(tile, memory);
        else if (!projects)
#pragma unroll 1
          for (int r = warp_id(); r < tile.rows; r += kWarps)
            warp_copy(job.x + tile.row(r) * job.P, memory.x + r * job.P, job.P);
      }
      team.sync();  // what the stage wrote is complete, and the partial sums have been read
    }
  }
  for (int b = share.b0 + team.rank; b < share.b1; b += team.size) finish_list(job, b, pairs, shared);
}

// The same for a wide ranker with few rows: one team, whose blocks share every product of the encoder.
template <bool kBf16>
__global__ void __launch_bounds__(kThreads, 1) score_wide_kernel(const __grid_constant__ ScoreJob job) {
  SRR_DYNAMIC_SHARED(shared);
  const Team team(job.together, job.team_size);
  if (job.candidates == Candidates::kPooled) pool_candidates(job, team, reinterpret_cast<float*>(shared));
  const Share share = find_share(job, team, reinterpret_cast<int64_t*>(shared));
  if (share.m0 < share.m1) {
    prefetch_encoder(job, team);
    const WideMemory memory(shared);
    const Groups groups(share);
#pragma unroll 1
    for (int group0 = 0; group0 < groups.count; group0 += job.wave_groups) {
      const int group1 = groups.count < group0 + job.wave_groups ? groups.count : group0 + job.wave_groups;
      project_wave<kBf16>(job, team, share, groups, group0, group1, reinterpret_cast<float*>(shared), job.partials);
      team.sync();  // the wave's partial sums are complete
      const int end = groups.row_from(group1 * kGroupRows);
      int row = groups.row_from(group0 * kGroupRows) + team.rank * kWarps + warp_id();
#pragma unroll 1
      for (; row < end; row += team.size * kWarps)
        gather_row(job, share, groups, row, group0, job.partials, memory.x + warp_id() * kWideK);
      team.sync();  // the projected rows are complete, and the partial sums have been read
    }
    const Tile all{job, share, false, 0, share.rows()};
    encode_wide<kBf16>(job, team, memory, share.rows(), [&](int r) { return all.keys(0, r); });
  }
#pragma unroll 1
  for (int b = share.b0 + team.rank; b < share.b1; b += team.size) finish_list(job, b, false, shared);
}

bool supported(const ScoreParams& params) {
  const RankerLayout& layout = params.layout;
  constexpr int64_t kMostRows = 0x7fffffff;
  return layout.d > 0 && layout.p > 0 && layout.p <= kMaxProjDim && layout.heads > 0 && layout.layers >= 0 &&
         layout.ffn >= 0 && params.B >= 0 && params.M >= 0 && params.B + params.M <= kMostRows;
}

cudaError_t run(const ScoreParams& params, const TokenSpans* tokens, const ScorePlan& plan, void* workspace,
                cudaStream_t stream) {
  Device device{};
  cudaError_t error = current_device(device);
  if (error != cudaSuccess) return error;
  if (!supported(params)) return cudaErrorInvalidValue;
  ScoreJob job = job_of(params, tokens, plan, workspace);
  if (job.candidates == Candidates::kPooled && plan.teams != 1) return cudaErrorInvalidValue;
  const StateRows &inst = job.params.inst, &resp = job.params.resp;
  job.tokens_aligned = tokens && is_aligned(*tokens);
  job.inst_aligned = is_aligned(inst.data, inst.stride, inst.dtype);
  job.resp_aligned =
      job.candidates == Candidates::kLastTokens ? job.tokens_aligned : is_aligned(resp.data, resp.stride, resp.dtype);
  if (params.B + params.M == 0) return cudaSuccess;

  static Granted granted[2][2];
  const bool bf16 = params.layout.bf16;
  const auto kernel = plan.wide ? bf16 ? &score_wide_kernel<true> : &score_wide_kernel<false>
                      : bf16    ? &score_kernel<true>
                                : &score_kernel<false>;
  int64_t shared_bytes = plan.wide ? WideMemory::bytes() : TileMemory::bytes(job.most_rows, job.P, job.E);
  if (shared_bytes < kProjectSharedBytes) shared_bytes = kProjectSharedBytes;
  if (shared_bytes < kFinishSharedBytes) shared_bytes = kFinishSharedBytes;
  if (job.candidates == Candidates::kPooled && shared_bytes < kPoolSharedBytes) shared_bytes = kPoolSharedBytes;
  error = grant_shared(granted[plan.wide][bf16], kernel, device);
  if (error != cudaSuccess) return error;
  return launch(kernel, plan.together, int64_t{plan.teams} * plan.team_size, plan.team_size, kThreads, shared_bytes,
                stream, job);
}

}  // namespace

constexpr int kMostClusterBlocks = 8;  // what every device with clusters grants
// Rows at which the blocks of a cluster have a tile each, but for one that has two.
constexpr int64_t kClusterRows = kMostClusterBlocks * kTileRows + kTileRows;

// Rows up to which the blocks of a GPU share the products of a wide ranker.
constexpr int64_t kMostWideRows = 512;

bool can_be_wide(const ScoreParams& params) {
  return params.layout.p_padded() > kWarps / 2 * kTileColumns && params.layout.layers > 0 &&
         params.scope == Scope::kList;
}

ScorePlan plan_score(const ScoreParams& params, const TokenSpans* tokens, int multiprocessors, bool has_clusters) {
  const int64_t B = params.B > 0 ? params.B : 1, rows = params.B + params.M, per_list = ceil_div(rows, B);
  const bool wide = can_be_wide(params) && rows <= kMostWideRows;
  // Tokens are most of what is read: every multiprocessor takes a part.
  if (wide || (tokens && tokens->pooling != Pooling::kLast)) return {Together::kGrid, 1, multiprocessors, wide};
  if (per_list <= kClusterRows) {
    const int64_t lists = kClusterRows / (per_list > 0 ? per_list : 1), teams = ceil_div(B, lists);
    int size = kMostClusterBlocks;
    while (size > 1 && teams * size > multiprocessors) size /= 2;
    if (size > 1 && has_clusters) return {Together::kCluster, static_cast<int>(teams), size, false};
    const int64_t most = params.layout.p_padded() > 128 ? multiprocessors : 2 * multiprocessors;
    if (size == 1) return {Together::kNone, static_cast<int>(teams < most ? teams : most), 1, false};
  } else if (B >= multiprocessors) {
    return {Together::kNone, multiprocessors, 1, false};
  }
  const int64_t items = ceil_div(rows, kGroupRows) * kMostSplits, tiles = ceil_div(rows, kTileRows / 2);
  const int64_t wanted = items > tiles ? items : tiles;
  return {Together::kGrid, 1, static_cast<int>(wanted < multiprocessors ? wanted : multiprocessors), false};
}

int64_t score_workspace_bytes(const ScoreParams& params, const TokenSpans* tokens, const ScorePlan& plan) {
  return job_of(params, tokens, plan, nullptr).bytes;
}

int score(const ScoreParams& params, const TokenSpans* tokens, const ScorePlan& plan, void* workspace, void* stream) {
  return run(params, tokens, plan, workspace, static_cast<cudaStream_t>(stream));
}

}  // namespace srr::cuda

namespace srr {
namespace {

cudaError_t plan_here(const ScoreParams& params, const TokenSpans* tokens, cuda::ScorePlan& plan) {
  cuda::Device device{};
  cudaError_t error = cuda::current_device(device);
  if (error != cudaSuccess) return error;
  static cuda::CompiledFor compiled_for;
  bool clusters = false;
  error = cuda::runs_clusters(device, compiled_for, &cuda::score_kernel<false>, clusters);
  if (error == cudaSuccess) plan = cuda::plan_score(params, tokens, device.multiprocessors, clusters);
  return error;
}

int64_t workspace_bytes_here(const ScoreParams& params, const TokenSpans* tokens) {
  cuda::ScorePlan plan{};
  return plan_here(params, tokens, plan) == cudaSuccess ? cuda::score_workspace_bytes(params, tokens, plan) : 0;
}

int score_here(const ScoreParams& params, const TokenSpans* tokens, void* workspace, void* stream) {
  cuda::ScorePlan plan{};
  const cudaError_t error = plan_here(params, tokens, plan);
  return error == cudaSuccess ? cuda::score(params, tokens, plan, workspace, stream) : error;
}

}  // namespace

int64_t score_cuda_workspace_bytes(const ScoreParams& params) { return workspace_bytes_here(params, nullptr); }

int score_cuda(const ScoreParams& params, void* workspace, void* stream) {
  return score_here(params, nullptr, workspace, stream);
}

int64_t rank_cuda_workspace_bytes(const RankParams& params) {
  return workspace_bytes_here(params.score, &params.tokens);
}

int rank_cuda(const RankParams& params, void* workspace, void* stream) {
  return score_here(params.score, &params.tokens, workspace, stream);
}

}  // namespace srr
