// SPDX-License-Identifier: Apache-2.0
// How a call of score() on the CPU is cut into work, and where everything lies in its workspace.

struct ScorePlan {
  // Projection.
  int64_t rows;       // B + M
  int64_t slices;     // K-slices
  int64_t strips;     // panels side by side that are multiplied apart
  int64_t row_group;  // rows of one projection item
  int64_t row_groups;
  int64_t workers;  // of the projection
  // Encoder. A chunk is a run of lists (or pairs) that are encoded together.
  int64_t chunk_rows;    // most rows of one chunk
  int64_t shares;        // of the call, each worked through a chunk at a time
  int64_t tile_workers;  // workers inside one chunk
  // Sizes in floats, and where things lie in the workspace.
  int64_t p, qkv, mixed, ffn, keys;
  int64_t chunk_floats, tile_floats, block_bytes;
  int64_t partial_at, block_at, chunk_at, tile_at, index_at, total_bytes;
};

constexpr int64_t kChunkRows = 48;     // what a chunk of short sequences grows to, in fp32
constexpr int64_t kTileRows = 8 * 6;   // rows that go through the feed-forward block together
constexpr int64_t kQueryRows = 2 * 6;  // queries of one attention tile, of short sequences and of long ones
constexpr int64_t kQueryRowsLong = 8 * 6;
constexpr int64_t kKeyBlock = 4 * kBlockK;  // keys that an attention tile looks at together; longer sequences are long
constexpr int64_t kRowGroup = 96;           // rows of one projection item
constexpr int64_t kSliceColumns = 1024;     // K-slices are about this long, at most kMaxSlices of them
constexpr int64_t kMaxSlices = 8;
// Where sums stay in tiles, the panels of a strip, and the bytes of a slice of one: a part of a L2 cache.
constexpr int64_t kStripPanels = 4;
constexpr int64_t kSliceBytes = 1 << 19;
// Less than this per extra worker is not worth waking it.
#if defined(SRR_AMX)
constexpr double kParallelFlop = 4e6, kParallelFlopBf16 = 16e6;
#else
constexpr double kParallelFlop = 2e6, kParallelFlopBf16 = 2e6;
#endif

inline int64_t sequence_rows(const ScoreParams& a, int64_t list) {
  const int64_t N = a.list_begin(list + 1) - a.list_begin(list);
  return a.scope == Scope::kList ? N + 1 : 2;
}

// What a chunk of short sequences grows to.
constexpr int64_t chunk_rows([[maybe_unused]] const RankerLayout& l) {
#if defined(SRR_BF16)
  if (l.bf16) return kBf16ChunkRows;
#endif
  return kChunkRows;
}

constexpr int64_t query_rows(int64_t sequence) { return sequence > kKeyBlock ? kQueryRowsLong : kQueryRows; }

// Whether tiles multiply the states as they are: every sum of a slice stays in a tile from its first product to its
// last.
inline bool in_tiles([[maybe_unused]] const ScoreParams& a) {
#if defined(SRR_AMX)
  return a.layout.bf16 && a.inst.dtype == DType::kBFloat16 && a.resp.dtype == DType::kBFloat16;
#else
  return false;
#endif
}

inline ScorePlan make_plan(const ScoreParams& a, const Threads& threads) {
  const RankerLayout& l = a.layout;
  ScorePlan plan{};
  const int64_t available = threads.run ? threads.threads : 1;
  plan.rows = a.B + a.M;
  plan.p = l.p_padded();
  plan.qkv = l.layers ? 3 * l.heads_padded() : 0;
  plan.mixed = l.layers ? l.heads_padded() : 0;
  plan.ffn = l.layers ? l.ffn_padded() : 0;
  int64_t longest = 0;
  for (int64_t b = 0; b < a.B; ++b) {
    const int64_t rows = sequence_rows(a, b);
    longest = rows > longest ? rows : longest;
  }
  const int64_t total = a.scope == Scope::kList ? a.B + a.M : 2 * a.M;
  plan.keys = round_up(longest, kPanel);

  plan.strips = in_tiles(a) ? (plan.p / kPanel + kStripPanels - 1) / kStripPanels : 1;
  plan.slices = in_tiles(a) ? l.projection().size_bytes() / plan.strips / kSliceBytes : l.d / kSliceColumns;
  plan.slices = plan.slices < 1 ? 1 : plan.slices > kMaxSlices ? kMaxSlices : plan.slices;
  plan.slices = at_most(plan.slices, l.projection().digit_blocks());
  const double projection_flop = 2.0 * plan.rows * l.d * plan.p;
  const double parallel_flop = l.bf16 ? kParallelFlopBf16 : kParallelFlop;
  plan.workers = at_most(available, 1 + static_cast<int64_t>(projection_flop / parallel_flop));
  plan.row_groups = (plan.rows + kRowGroup - 1) / kRowGroup;
  if (plan.slices * plan.strips % plan.workers != 0) plan.row_groups = round_up(plan.row_groups, plan.workers);
  plan.row_group = plan.workers == 1 ? kRowGroup : (plan.rows + plan.row_groups - 1) / plan.row_groups;
  if (plan.rows > 0) plan.row_groups = (plan.rows + plan.row_group - 1) / plan.row_group;  // none without rows

  const double encoder_flop =
      l.layers * (2.0 * total * plan.p * (plan.qkv + plan.mixed + 2 * plan.ffn) + 4.0 * total * longest * plan.mixed);
  const int64_t useful = at_most(available, 1 + static_cast<int64_t>(encoder_flop / parallel_flop));
  plan.chunk_rows = at_most(chunk_rows(l), (total + useful - 1) / useful);
  plan.chunk_rows = plan.chunk_rows > longest ? plan.chunk_rows : longest;
  const int64_t chunks = plan.chunk_rows ? (total + plan.chunk_rows - 1) / plan.chunk_rows : 0;
  if (chunks >= useful) {
    plan.shares = useful;
    plan.tile_workers = 1;
  } else {
    plan.shares = 1;
    plan.tile_workers = useful;
  }

  int64_t behind = plan.chunk_rows * (plan.qkv + plan.mixed) + plan.mixed * plan.keys;
  const int64_t attention_floats = query_rows(longest) * at_most(plan.keys, kKeyBlock);
  const int64_t feed_floats = kTileRows * (plan.ffn + plan.p);
  plan.tile_floats = round_up(attention_floats > feed_floats ? attention_floats : feed_floats, kPanel);
#if defined(SRR_BF16)
  if (l.bf16) {
    const Bf16Sizes sizes = bf16_sizes(l, plan.keys);
    behind = bf16_chunk_bytes(l, sizes, plan.chunk_rows) / 4;
    plan.tile_floats = bf16_tile_bytes(l, sizes) / 4;
  }
#endif
  plan.chunk_floats = round_up(plan.chunk_rows * plan.p + behind, kPanel);
  plan.block_bytes = round_up(plan.row_group * (8 + 4 * kDigitBlock), 64);
  int64_t at = 0;
  const auto take = [&](int64_t bytes) {
    const int64_t here = at;
    at += round_up(bytes, 64);
    return here;
  };
  plan.partial_at = take(4 * plan.slices * plan.rows * plan.p);
  plan.block_at = take(plan.workers * plan.block_bytes);
  plan.chunk_at = take(4 * plan.shares * plan.chunk_floats);
  plan.tile_at = take(4 * plan.shares * plan.tile_workers * plan.tile_floats);
  plan.index_at = take(plan.shares * 8 * (2 * plan.chunk_rows + 1));
  plan.total_bytes = at;
  return plan;
}

// A run of whole sequences that are encoded together.
struct Chunk {
  float* x;            // [rows, p]
  float* behind;       // whatever the encoder keeps of its rows
  int64_t* candidate;  // [rows]: which candidate a row is, -1 for an instruction
  int64_t* begin;      // [sequences + 1]: first row of every sequence
};
