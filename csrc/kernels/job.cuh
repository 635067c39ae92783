// SPDX-License-Identifier: Apache-2.0
// One call of score() or rank() as its kernel sees it: what to compute, which teams share it, and where they leave
// things for one another in global memory. Knows no arithmetic.
//
// Rows are the instructions, then the candidates: B + M of them, projected row r in x[r]. A team owns whole lists; what
// it writes is read by itself alone, so teams never wait for one another.
#pragma once

#include "plan.h"
#include "pool.cuh"
#include "product.cuh"
#include "srr.h"

namespace srr::cuda {

// Rows are projected in groups of tiles, each group over a split of d at a time: a block's item. Its warps share the
// split between its kSplitParts; sums are added part by part, then split by split. All of it follows from d alone.
constexpr int kGroupTiles = 3;
constexpr int kGroupRows = kGroupTiles * kTileRows;
constexpr int kSplitParts = 4;
constexpr int kMostSplits = 8;
constexpr int kItemColumns = kWarps / kSplitParts * kTileColumns;

// Columns of the attention's output, or of the hidden layer, that a block holds at a time.
constexpr int kChunk = 256;
constexpr int kChunkK = 64;  // of a chunk, what a warp adds up on tensor cores at a time

// A list of the call: candidates [begin, end). A list that is not well formed, or overlaps one before it, is empty.
// `reach`: where the valid lists up to this one end.
struct ListAt {
  int64_t begin, end, reach;
};

// What the stages of a wide encoder leave for one another, row by row of the call.
struct WideRows {
  float* mix;     // [HE]: attention's output
  float* y;       // [P]: its projection and the residual
  float* fed;     // [P]: what feed-forward reads
  float* hidden;  // [ffn]
};

// Where candidates come from: rows of params.resp; the last tokens of spans, read where they lie; or sums of the tokens
// of spans, which one team that owns everything writes to params.resp first.
enum class Candidates { kRows, kLastTokens, kPooled };

struct ScoreJob {
  ScoreParams params;
  Candidates candidates;
  TokenSpans tokens;                                // but for kRows
  float *pooled, *gates;                            // kPooled: [M, d], and those of the tokens
  bool inst_aligned, resp_aligned, tokens_aligned;  // rows may be read 16 bytes at a time
  Together together;
  int teams, team_size;
  int equal;  // candidates of every list, where there are no offsets

  int P, HE, E, ffn;  // widths, padded to panels
  int chunks, splits;
  int most_rows;  // that a block encodes together
  PackedLayer layer0;
  int64_t layer_bytes;  // from one layer to the next

  float* x;          // [B + M, P]: projected, then encoded
  uint8_t* out;      // [B + M]: 1 where a projected state is not finite; its x is 0
  ListAt* lists;     // [B]
  float* qkv;        // list: [2 or 1][B + M, 3 HE], layers take turns; pair: [blocks, 16, 3 HE]
  int64_t qkv_turn;  // elements from one turn to the other
  float* partials;   // [teams, splits, wave_groups * kGroupRows, P]
  int wave_groups;   // groups of rows that a team projects between two barriers
  WideRows wide;
  int64_t bytes;

  __host__ __device__ int wave_rows() const { return wave_groups * kGroupRows; }
  __device__ const float* vector(int64_t offset_bytes, int layer) const {
    return reinterpret_cast<const float*>(static_cast<const unsigned char*>(params.packed) + offset_bytes +
                                          layer * layer_bytes);
  }
  __device__ const unsigned char* packed(int layer) const {
    return static_cast<const unsigned char*>(params.packed) + layer * layer_bytes;
  }
};

// Fills in what follows from the sizes, and where things lie from `base` on. `tokens`: null, or of the candidates.
inline ScoreJob job_of(const ScoreParams& params, const TokenSpans* tokens, const ScorePlan& plan, void* base) {
  ScoreJob job{};
  const RankerLayout& layout = params.layout;
  job.params = params;
  if (tokens) {
    job.tokens = *tokens;
    job.candidates = tokens->pooling == Pooling::kLast ? Candidates::kLastTokens : Candidates::kPooled;
  }
  job.together = plan.together;
  job.teams = plan.teams;
  job.team_size = plan.team_size;
  job.equal = static_cast<int>(params.M / (params.B > 0 ? params.B : 1));
  job.P = static_cast<int>(layout.p_padded());
  job.E = static_cast<int>(layout.head_padded());
  job.HE = static_cast<int>(layout.heads_padded());
  job.ffn = static_cast<int>(layout.ffn_padded());
  job.chunks = static_cast<int>(layout.projection().blocks());
  const int64_t splits = ceil_div(job.chunks, kSplitParts);
  job.splits = static_cast<int>(splits < kMostSplits ? splits : kMostSplits);
  job.most_rows = job.P <= kWarps / 2 * kTileColumns ? 2 * kTileRows : kTileRows;
  job.layer0 = layout.layer(0);
  job.layer_bytes = layout.layer(1).qkv.offset_bytes - job.layer0.qkv.offset_bytes;

  const int64_t rows = params.B + params.M, blocks = int64_t{plan.teams} * plan.team_size;
  // No more than there may be: candidates begin a tile of their own. Beyond, what keeps a team busy.
  const int64_t groups = ceil_div(rows, kGroupRows) + 2;
  const int64_t most = plan.together == Together::kGrid ? 64 : plan.team_size == 1 && job.P > 128 ? 1 : 3;
  job.wave_groups = static_cast<int>(groups < most ? groups : most);

  const auto take = [&](auto*& pointer, int64_t n) {
    pointer =
        reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(reinterpret_cast<uintptr_t>(base) + job.bytes);
    job.bytes += round_up(n * static_cast<int64_t>(sizeof *pointer), 256);
  };
  if (job.candidates == Candidates::kPooled) {
    take(job.pooled, params.M * layout.d);
    if (tokens->pooling == Pooling::kGated) take(job.gates, gate_count(*tokens));
    job.params.resp = {job.pooled, DType::kFloat32, layout.d};
  }
  take(job.x, rows * job.P);
  take(job.out, rows);
  take(job.lists, params.B);
  if (layout.layers > 0) {
    const bool pair = params.scope == Scope::kPair;
    job.qkv_turn = pair || plan.wide || layout.layers == 1 ? 0 : rows * 3 * job.HE;
    take(job.qkv, pair ? blocks * 2 * kTileRows * 3 * job.HE : rows * 3 * job.HE + job.qkv_turn);
  }
  if (plan.wide) {
    take(job.wide.mix, rows * job.HE);
    take(job.wide.y, rows * job.P);
    take(job.wide.fed, rows * job.P);
    take(job.wide.hidden, rows * job.ffn);
  }
  take(job.partials, int64_t{plan.teams} * job.splits * job.wave_rows() * job.P);
  return job;
}

}  // namespace srr::cuda
