// SPDX-License-Identifier: Apache-2.0
// The encoder over the sequences of a chunk, in fp32.

// Who shares the columns of a product.
struct Team {
  const Threads& threads;
  int64_t workers;
};

// Y = X W^T.
inline void gemm(RowsAt x, int64_t rows, const PackedMatrix& m, const void* packed, float* y, int64_t y_stride,
                 const Team& team) {
  const int64_t panels = all_panels(m).end;
  parallel(team.threads, team.workers, [&](int64_t worker) {
    const Panels own{panels * worker / team.workers, panels * (worker + 1) / team.workers};
    Tiles tiles;
    gemm_blocks(tiles, x, rows, m, packed, own, 0, m.blocks(), y + own.first * kPanel, y_stride, false);
  });
}

// y = norm(x) over the first p of the padded columns; weight and bias are zero beyond them, and so is y.
SRR_INLINE void layer_norm(const float* x, const float* weight, const float* bias, int64_t p, float* y) {
  F32x16 total = zero();
  const int64_t padded = round_up(p, kPanel);
  for (int64_t c = 0; c < padded; c += kPanel) total = total + load(x + c);
  const F32x16 mean = set1(sum(total) / static_cast<float>(p));
  F32x16 squares = zero();
  for (int64_t c = 0; c < padded; c += kPanel) {
    const F32x16 v = (load(x + c) - mean) * first_lanes(p - c);
    squares = fma(v, v, squares);
  }
  const float variance = sum(squares) / static_cast<float>(p);
  const F32x16 scale = set1(1.0f / __builtin_sqrtf(variance + 1e-5f));
  for (int64_t c = 0; c < padded; c += kPanel)
    store(y + c, fma((load(x + c) - mean) * scale, load(weight + c), load(bias + c)));
}

// What lies behind the rows of a chunk.
struct ChunkBuffers {
  float* x;      // [rows, p]
  float* qkv;    // [rows, 3 heads E]
  float* mixed;  // [rows, heads E]
  float* keys;   // [heads][panels of 16 keys][E][16]: k, transposed
};

SRR_INLINE void add_bias(float* y, const float* bias, int64_t columns) {
  for (int64_t c = 0; c < columns; c += kPanel) store(y + c, load(y + c) + load(bias + c));
}

// Rows [row0, row1): qkv = (pre-LN: norm1 of) x Wqkv + b.
inline void encode_qkv(const ScoreParams& a, const ScorePlan& plan, const PackedLayer& layer, const ChunkBuffers& c,
                       int64_t row0, int64_t row1, float* scratch, const Team& team) {
  const float* x = c.x + row0 * plan.p;
  if (a.layout.norm_first) {
    for (int64_t r = row0; r < row1; ++r)
      layer_norm(c.x + r * plan.p, at_bytes(a.packed, layer.norm1_weight_bytes),
                 at_bytes(a.packed, layer.norm1_bias_bytes), a.layout.p, scratch + (r - row0) * plan.p);
    x = scratch;
  }
  float* y = c.qkv + row0 * plan.qkv;
  gemm(RowsAt{x, plan.p}, row1 - row0, layer.qkv, a.packed, y, plan.qkv, team);
  for (int64_t r = 0; r < row1 - row0; ++r)
    add_bias(y + r * plan.qkv, at_bytes(a.packed, layer.qkv_bias_bytes), plan.qkv);
}

// Transposes the keys of one head of rows [begin, end) into panels of 16; missing keys of the last panel are zero.
inline void transpose_keys(const ScorePlan& plan, int64_t E, int64_t head, const ChunkBuffers& c, int64_t begin,
                           int64_t end) {
  float* out = c.keys + head * E * plan.keys;
  for (int64_t k0 = begin; k0 < end; k0 += kPanel, out += E * kPanel) {
    const int64_t n = end - k0 < kPanel ? end - k0 : kPanel;
    const float* k = c.qkv + k0 * plan.qkv + plan.mixed + head * E;
    for (int64_t e = 0; e < E; ++e)
      for (int64_t i = 0; i < kPanel; ++i) out[e * kPanel + i] = i < n ? k[i * plan.qkv + e] : 0.0f;
  }
}

// Queries [row0, row1) of the sequence of rows [begin, end): mixed = softmax(q k^T / sqrt(e)) v for one head. Keys are
// taken block by block; what was summed before a larger logit came up is scaled down to it.
inline void attend(const ScoreParams& a, const ScorePlan& plan, int64_t head, const ChunkBuffers& c, int64_t begin,
                   int64_t end, int64_t row0, int64_t row1, float* logits) {
  const int64_t E = a.layout.head_padded(), S = end - begin, rows = row1 - row0;
  const F32x16 scale = set1(1.0f / __builtin_sqrtf(static_cast<float>(a.layout.head_dim())));
  const float* k = c.keys + head * E * plan.keys;
  const float* v = c.qkv + begin * plan.qkv + 2 * plan.mixed + head * E;
  const RowsAt q{c.qkv + row0 * plan.qkv + head * E, plan.qkv};
  float* out = c.mixed + row0 * plan.mixed + head * E;
  float most[kQueryRowsLong];
  F32x16 total[kQueryRowsLong];
  for (int64_t k0 = 0; k0 < S; k0 += kKeyBlock) {
    const int64_t n = at_most(S - k0, kKeyBlock), keys = round_up(n, kPanel);
    gemm_panels(q, rows, k + k0 * E, E * kPanel, kPanel, E, keys / kPanel, logits, keys, false);
    for (int64_t r = 0; r < rows; ++r) {
      float* row = logits + r * keys;
      F32x16 top = set1(-3.4028235e38f);
      int64_t i = 0;
      for (; i + kPanel <= n; i += kPanel) top = max(top, load(row + i));
      float peak = max_lane(top);
      for (; i < n; ++i) peak = row[i] > peak ? row[i] : peak;
      if (k0 == 0) {
        total[r] = zero();
      } else if (peak > most[r]) {
        const F32x16 factor = exp((set1(most[r]) - set1(peak)) * scale);
        total[r] = total[r] * factor;
        for (int64_t e = 0; e < E; e += kPanel)
          store(out + r * plan.mixed + e, load(out + r * plan.mixed + e) * factor);
      } else {
        peak = most[r];
      }
      most[r] = peak;
      const F32x16 shift = set1(peak);
      for (i = n; i < keys; ++i) row[i] = peak;  // no key: its zero may be so far above the others that exp overflows
      for (i = 0; i < keys; i += kPanel) {
        F32x16 e = exp((load(row + i) - shift) * scale);
        if (i + kPanel > n) e = e * first_lanes(n - i);
        store(row + i, e);
        total[r] = total[r] + e;
      }
    }
    for (int64_t j = 0; j < n; j += kBlockK)
      gemm_panels(RowsAt{logits + j, keys}, rows, v + (k0 + j) * plan.qkv, kPanel, plan.qkv, at_most(n - j, kBlockK),
                  E / kPanel, out, plan.mixed, k0 + j > 0);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const F32x16 inverse = set1(1.0f / sum(total[r]));
    for (int64_t e = 0; e < E; e += kPanel) store(out + r * plan.mixed + e, load(out + r * plan.mixed + e) * inverse);
  }
}

// Rows [row0, row1), after attention: output projection, residuals, norms and the feed-forward block, in place on x.
inline void encode_rest(const ScoreParams& a, const ScorePlan& plan, const PackedLayer& layer, const ChunkBuffers& c,
                        int64_t row0, int64_t row1, float* scratch, const Team& team) {
  const RankerLayout& l = a.layout;
  const int64_t rows = row1 - row0;
  float *y = scratch, *hidden = scratch + kTileRows * plan.p, *x = c.x + row0 * plan.p;
  const auto norm = [&](const float* from, int64_t weight, int64_t bias, float* to) {
    layer_norm(from, at_bytes(a.packed, weight), at_bytes(a.packed, bias), l.p, to);
  };
  const auto add_to_x = [&](int64_t r, int64_t bias_bytes) {
    const float* bias = at_bytes(a.packed, bias_bytes);
    for (int64_t i = 0; i < plan.p; i += kPanel)
      store(x + r * plan.p + i, load(x + r * plan.p + i) + (load(y + r * plan.p + i) + load(bias + i)));
  };
  gemm(RowsAt{c.mixed + row0 * plan.mixed, plan.mixed}, rows, layer.out, a.packed, y, plan.p, team);
  for (int64_t r = 0; r < rows; ++r) {
    add_to_x(r, layer.out_bias_bytes);
    if (l.norm_first)
      norm(x + r * plan.p, layer.norm2_weight_bytes, layer.norm2_bias_bytes, y + r * plan.p);
    else
      norm(x + r * plan.p, layer.norm1_weight_bytes, layer.norm1_bias_bytes, x + r * plan.p);
  }
  gemm(RowsAt{l.norm_first ? y : x, plan.p}, rows, layer.ffn1, a.packed, hidden, plan.ffn, team);
  const float* bias1 = at_bytes(a.packed, layer.ffn1_bias_bytes);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < plan.ffn; i += kPanel)
      store(hidden + r * plan.ffn + i, gelu(load(hidden + r * plan.ffn + i) + load(bias1 + i)));
  gemm(RowsAt{hidden, plan.ffn}, rows, layer.ffn2, a.packed, y, plan.p, team);
  for (int64_t r = 0; r < rows; ++r) {
    add_to_x(r, layer.ffn2_bias_bytes);
    if (!l.norm_first) norm(x + r * plan.p, layer.norm2_weight_bytes, layer.norm2_bias_bytes, x + r * plan.p);
  }
}

// All layers over the sequences of a chunk, x in place. `tile`: plan.tile_floats for each worker. Workers share tiles
// of rows; where there is one tile alone, the columns of its products.
inline void encode_layers(const ScoreParams& a, const ScorePlan& plan, const Chunk& chunk, int64_t sequences,
                          float* tile, const Threads& threads) {
  const ChunkBuffers c{chunk.x, chunk.behind, chunk.behind + plan.chunk_rows * plan.qkv,
                       chunk.behind + plan.chunk_rows * (plan.qkv + plan.mixed)};
  const int64_t rows = chunk.begin[sequences], heads = a.layout.heads;
  const int64_t workers = at_most(plan.tile_workers, (rows + kTileRows - 1) / kTileRows);
  const Team team{threads, workers > 1 ? 1 : plan.tile_workers};
  const auto for_tiles = [&](int64_t count, int64_t height, auto&& body) {
    const int64_t tiles = (count + height - 1) / height;
    parallel(threads, workers, [&](int64_t worker) {
      for (int64_t t = tiles * worker / workers; t < tiles * (worker + 1) / workers; ++t)
        body(t * height, at_most(count, (t + 1) * height), tile + worker * plan.tile_floats);
    });
  };
  for (int64_t i = 0; i < a.layout.layers; ++i) {
    const PackedLayer layer = a.layout.layer(i);
    for_tiles(rows, kTileRows,
              [&](int64_t r0, int64_t r1, float* scratch) { encode_qkv(a, plan, layer, c, r0, r1, scratch, team); });
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t begin = chunk.begin[s], end = chunk.begin[s + 1];
      for (int64_t head = 0; head < heads; ++head) transpose_keys(plan, a.layout.head_padded(), head, c, begin, end);
      for_tiles(end - begin, query_rows(end - begin), [&](int64_t r0, int64_t r1, float* scratch) {
        for (int64_t head = 0; head < heads; ++head)
          attend(a, plan, head, c, begin, end, begin + r0, begin + r1, scratch);
      });
    }
    for_tiles(rows, kTileRows,
              [&](int64_t r0, int64_t r1, float* scratch) { encode_rest(a, plan, layer, c, r0, r1, scratch, team); });
  }
}
