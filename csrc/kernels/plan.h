// SPDX-License-Identifier: Apache-2.0
// How a call of score() is shared between the blocks of its launch. The answers have the same bits for every plan, so
// this is about time alone. Knows neither CUDA nor how anything is computed.
#pragma once

#include "srr.h"

namespace srr::cuda {

// Blocks that can wait for one another: none, those of a cluster (Hopper and later), or the whole grid.
enum class Together { kNone, kCluster, kGrid };

// Teams of blocks, each with lists of its own. Together::kNone has teams of one block, Together::kGrid one team.
struct ScorePlan {
  Together together;
  int teams, team_size;
  // Matrix products of the encoder are shared by the blocks of the one team, not tiles of rows. Only where
  // can_be_wide().
  bool wide = false;
};

// Whether a wide plan has the bits of the others: not where parts of a block share a product's k's, nor for pairs.
bool can_be_wide(const ScoreParams& params);

// `tokens`: null, or what candidates are pooled from.
ScorePlan plan_score(const ScoreParams& params, const TokenSpans* tokens, int multiprocessors, bool has_clusters);
// As their namesakes in srr.h, with a plan; where tokens are summed it must have one team.
int64_t score_workspace_bytes(const ScoreParams& params, const TokenSpans* tokens, const ScorePlan& plan);
int score(const ScoreParams& params, const TokenSpans* tokens, const ScorePlan& plan, void* workspace, void* stream);

}  // namespace srr::cuda
