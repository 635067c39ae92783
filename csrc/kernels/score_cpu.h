// SPDX-License-Identifier: Apache-2.0
// score on the CPU: project all rows, encode sequences chunk by chunk, cosine, softmax over each list.
//
// The projection is cut into K-slices whose number depends on d, p and the types; a slice's partial sums are added in a
// fixed order when a row is first read. Everything after works on rows or on single sequences. So neither the number of
// threads nor the neighbours of a list can change its bits.

// ---- cosine -----------------------------------------------------------------------------------------------------

SRR_INLINE float cosine(const float* x, const float* y, int64_t columns) {
  F32x16 xy = zero(), xx = zero(), yy = zero();
  for (int64_t c = 0; c < columns; c += kPanel) {
    const F32x16 u = load(x + c), v = load(y + c);
    xy = fma(u, v, xy);
    xx = fma(u, u, xx);
    yy = fma(v, v, yy);
  }
  const float nx = __builtin_sqrtf(sum(xx)), ny = __builtin_sqrtf(sum(yy));
  const float value = sum(xy) / ((nx > 1e-8f ? nx : 1e-8f) * (ny > 1e-8f ? ny : 1e-8f));
  return value > 1 ? 1 : value < -1 ? -1 : value;
}

// Encodes and scores the sequences of one chunk. `tile`: plan.tile_floats for each worker.
inline void encode_chunk(const ScoreParams& a, const ScorePlan& plan, const Chunk& c, int64_t sequences, float* tile,
                         const Threads& threads) {
#if defined(SRR_BF16)
  if (a.layout.bf16)
    encode_layers_bf16(a, plan, c, sequences, tile, threads);
  else
#endif
    encode_layers(a, plan, c, sequences, tile, threads);
  for (int64_t s = 0; s < sequences; ++s) {
    const float* inst = c.x + c.begin[s] * plan.p;
    for (int64_t r = c.begin[s] + 1; r < c.begin[s + 1]; ++r) {
      const float value = cosine(inst, c.x + r * plan.p, plan.p);
      a.scores[c.candidate[r]] = value - value == 0 ? value : -__builtin_inff();
    }
  }
}

// ---- softmax over the candidates of a list ------------------------------------------------------------------------

inline void finish_list(const ScoreParams& a, int64_t list) {
  const int64_t begin = a.list_begin(list), end = a.list_begin(list + 1);
  int64_t best = -1;
  for (int64_t i = begin; i < end; ++i)
    if (a.scores[i] > -__builtin_inff() && (best < 0 || a.scores[i] > a.scores[best])) best = i;
  a.best[list] = best < 0 ? -1 : best - begin;
  if (best < 0) return;
  const F32x16 top = set1(a.scores[best]), tau = set1(a.temperature);
  float total = 0;  // one lane at a time: candidates that are out add an exact zero wherever they stand
  for (int64_t i = begin; i < end; i += kPanel) {
    const int64_t n = at_most(end - i, kPanel);
    float lanes[16];
    store(lanes, exp((load_first<StateF32>(a.scores + i, n) - top) / tau));
    for (int64_t j = 0; j < n; ++j) total += a.probs[i + j] = lanes[j];
  }
  for (int64_t i = begin; i < end; ++i) a.probs[i] /= total;
}

// ---- score ------------------------------------------------------------------------------------------------------

// What is left of a share: lists for list scope, candidates for pair scope. `list` is the one that holds `unit`.
struct Cursor {
  int64_t unit, end, list;
};

// One share of a call: nearly equal rows, cut at units.
inline Cursor share_of(const ScoreParams& a, int64_t share, int64_t shares) {
  if (a.scope == Scope::kPair) return {a.M * share / shares, a.M * (share + 1) / shares, 0};
  const auto first_list = [&](int64_t rows) {
    int64_t b = 0;
    while (b < a.B && a.list_begin(b) + b < rows) ++b;
    return b;
  };
  const int64_t rows = a.B + a.M, begin = first_list(rows * share / shares);
  return {begin, share + 1 == shares ? a.B : first_list(rows * (share + 1) / shares), begin};
}

// Fills a chunk with the valid rows of as many units as fit and moves the cursor past them. Returns the sequences.
inline int64_t fill_chunk(const ScoreParams& a, const ScorePlan& plan, const float* partial, const Chunk& c,
                          Cursor& cursor) {
  int64_t sequences = 0, rows = 0;
  c.begin[0] = 0;
  for (; cursor.unit < cursor.end; ++cursor.unit) {
    int64_t first = cursor.unit, stop = cursor.unit + 1;
    if (a.scope == Scope::kList) {
      cursor.list = cursor.unit;
      first = a.list_begin(cursor.list);
      stop = a.list_begin(cursor.list + 1);
    } else {
      while (a.list_begin(cursor.list + 1) <= cursor.unit) ++cursor.list;
    }
    if (rows + 1 + stop - first > plan.chunk_rows) break;
    float* inst = c.x + rows * plan.p;
    if (first == stop || !projected(a, plan, partial, cursor.list, inst)) continue;
    int64_t taken = 0;
    c.candidate[rows] = -1;
    for (int64_t i = first; i < stop; ++i)
      if (projected(a, plan, partial, a.B + i, inst + (1 + taken) * plan.p)) c.candidate[rows + 1 + taken++] = i;
    if (taken == 0) continue;
    rows += 1 + taken;
    c.begin[++sequences] = rows;
  }
  return sequences;
}

inline int64_t score_workspace_bytes(const ScoreParams& a, Threads threads) {
  return make_plan(a, threads).total_bytes;
}

inline void score(const ScoreParams& a, void* workspace, Threads threads) {
  const ScorePlan plan = make_plan(a, threads);
  unsigned char* base = static_cast<unsigned char*>(workspace);
  float* partial = reinterpret_cast<float*>(base + plan.partial_at);
  for (int64_t i = 0; i < a.M; ++i) {
    a.scores[i] = -__builtin_inff();
    a.probs[i] = 0;
  }
  const int64_t parts = plan.slices * plan.strips, items = parts * plan.row_groups;
  parallel(threads, plan.workers, [&](int64_t worker) {
    unsigned char* scratch = base + plan.block_at + worker * plan.block_bytes;
    const int64_t last = items * (worker + 1) / plan.workers;
    for (int64_t i = items * worker / plan.workers, slices; i < last; i += slices) {
      const int64_t slice = i % plan.slices, strip = i % parts / plan.slices, row0 = i / parts * plan.row_group;
      slices = at_most(last - i, plan.slices - slice);
      project(a, plan, slice, slice + slices, strip, row0, at_most(plan.rows, row0 + plan.row_group), scratch,
              partial + (slice * plan.rows + row0) * plan.p);
    }
  });
  parallel(threads, plan.shares, [&](int64_t share) {
    Cursor cursor = share_of(a, share, plan.shares);
    float* at = reinterpret_cast<float*>(base + plan.chunk_at) + share * plan.chunk_floats;
    int64_t* index = reinterpret_cast<int64_t*>(base + plan.index_at) + share * (2 * plan.chunk_rows + 1);
    const Chunk c{at, at + plan.chunk_rows * plan.p, index, index + plan.chunk_rows};
    float* tile = reinterpret_cast<float*>(base + plan.tile_at) + share * plan.tile_workers * plan.tile_floats;
    while (cursor.unit < cursor.end) {
      const int64_t sequences = fill_chunk(a, plan, partial, c, cursor);
      encode_chunk(a, plan, c, sequences, tile, threads);
    }
  });
  for (int64_t b = 0; b < a.B; ++b) finish_list(a, b);
}
