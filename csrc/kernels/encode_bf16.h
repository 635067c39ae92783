// SPDX-License-Identifier: Apache-2.0
// The encoder over the sequences of a chunk, for bfloat16 weights, on AMX or with dot products. What a product reads is
// rounded to bfloat16; sums, norms, softmax and the rows between the steps stay fp32. A row depends on its own sequence
// alone: tiles hold rows of several sequences where rows are all that is multiplied, and of one where keys and values
// are.

// ---- element by element -----------------------------------------------------------------------------------------

// Rounds to nearest even.
SRR_INLINE void store_bf16(uint16_t* to, F32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v)));
}

// The same for a whole step of columns.
SRR_INLINE void store_bf16(uint16_t* to, F32x16 a, F32x16 b) {
  _mm512_storeu_si512(to, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b.v, a.v)));
}

// 2^x within 2.6e-6 of itself, for x <= 0; at least 2^-125.
SRR_INLINE F32x16 exp2_bf16(F32x16 x) {
  const F32x16 clamped = max(set1(-125.0f), x);  // in this order NaN stays NaN
  const F32x16 n = round(clamped), r = clamped - n;
  F32x16 y = set1(9.567738440e-3f);
  y = fma(y, r, set1(5.591749824e-2f));
  y = fma(y, r, set1(2.402481071e-1f));
  y = fma(y, r, set1(6.931219384e-1f));
  y = fma(y, r, set1(9.999992500e-1f));
  return scale_pow2(y, n);
}

// a (1 - Phi(a)), Phi the normal distribution: a parabola c0 + c1 a + c2 a^2 for every whole number next to 7 a, fitted
// for the least error.
alignas(64) constexpr float kTail[3][2 * 16] = {
    {0.0f,           6.9664042e-05f, 1.2262169e-03f, 6.0248547e-03f, 1.7858732e-02f, 3.9910745e-02f, 7.4113809e-02f,
     1.2039439e-01f, 1.7639050e-01f, 2.3770423e-01f, 2.9861069e-01f, 3.5303849e-01f, 3.9558715e-01f, 4.2236155e-01f,
     4.3155065e-01f, 4.2312098e-01f, 3.9937460e-01f, 3.6361161e-01f, 3.1990078e-01f, 2.7237395e-01f, 2.2471924e-01f,
     1.7985001e-01f, 1.3975948e-01f, 1.0553676e-01f, 7.7496857e-02f, 5.5372093e-02f, 3.8517788e-02f, 2.6097890e-02f,
     1.7230995e-02f, 1.1090309e-02f, 6.9607464e-03f, 4.2616958e-03f},
    {4.9998340e-01f,  4.9849075e-01f,  4.8811415e-01f,  4.6159396e-01f,  4.1452259e-01f,  3.4608069e-01f,
     2.5908247e-01f,  1.5937476e-01f,  5.4749332e-02f,  -4.6387993e-02f, -1.3632205e-01f, -2.0907511e-01f,
     -2.6104397e-01f, -2.9117730e-01f, -3.0081859e-01f, -2.9275879e-01f, -2.7136168e-01f, -2.4104266e-01f,
     -2.0607944e-01f, -1.7010486e-01f, -1.3587476e-01f, -1.0521218e-01f, -7.9086088e-02f, -5.7772957e-02f,
     -4.1052073e-02f, -2.8396206e-02f, -1.9132730e-02f, -1.2563788e-02f, -8.0444040e-03f, -5.0242636e-03f,
     -3.0620333e-03f, -1.8215516e-03f},
    {-3.9839640e-01f, -3.9045841e-01f, -3.6700532e-01f, -3.3024836e-01f, -2.8336191e-01f, -2.3020279e-01f,
     -1.7484313e-01f, -1.2111377e-01f, -7.2224162e-02f, -3.0505611e-02f, 2.7009277e-03f,  2.7017431e-02f,
     4.2888444e-02f,  5.1367808e-02f,  5.3896710e-02f,  5.1970173e-02f,  4.7149725e-02f,  4.0723305e-02f,
     3.3731274e-02f,  2.6923291e-02f,  2.0776136e-02f,  1.5537356e-02f,  1.1280722e-02f,  7.9622529e-03f,
     5.4693920e-03f,  3.6594698e-03f,  2.3865809e-03f,  1.5179699e-03f,  9.4208127e-04f,  5.7072734e-04f,
     3.3762545e-04f,  1.9509133e-04f}};

// x Phi(x) within 1.6e-5.
SRR_INLINE F32x16 gelu_bf16(F32x16 x) {
  const F32x16 a = min(set1(4.4999f), abs(x));
  const __m512i nearest = _mm512_castps_si512(fma(set1(7.0f), a, set1(8388608.0f)).v);  // in the last bits
  const auto c = [&](int i) {
    return F32x16{_mm512_permutex2var_ps(_mm512_load_ps(kTail[i]), nearest, _mm512_load_ps(kTail[i] + 16))};
  };
  return max(zero(), x) - fma(fma(c(2), a, c(1)), a, c(0));
}

// ---- products ---------------------------------------------------------------------------------------------------

// Who shares the panels of a product, by strips of kMaxPanels.
struct Bf16Team {
  const Threads& threads;
  int64_t workers;
  Tiles& tiles;           // of one worker alone; several set up their own
  float* sums;            // of the first worker
  int64_t sums_distance;  // to the next one's
};

// X W^T, done() as panels_bf16() calls it, by several workers at once. The last strip alone may have an odd panel: the
// feed-forward block stores panels in twos.
template <class Done>
inline void product_bf16(const Bf16Team& team, const uint16_t* x, int64_t x_stride, int64_t rows, const PackedMatrix& m,
                         const void* packed, Done&& done) {
  constexpr int64_t together = kMaxPanels;
  static_assert(together % 2 == 0, "see above");
  const int64_t panels = all_panels(m).end, strips = (panels + together - 1) / together;
  parallel(team.threads, team.workers, [&](int64_t worker) {
    Tiles others;
    panels_bf16(
        team.workers > 1 ? others : team.tiles, x, x_stride, rows, m, packed,
        {strips * worker / team.workers * together, at_most(panels, strips * (worker + 1) / team.workers * together)},
        team.sums + worker * team.sums_distance, done);
  });
}

// ---- the layer --------------------------------------------------------------------------------------------------

// A row as products read it, zeros behind its p columns.
SRR_INLINE void round_row(const float* x, int64_t p, int64_t columns, uint16_t* to) {
  int64_t c = 0;
  for (; c + kStep <= p; c += kStep) store_bf16(to + c, load(x + c), load(x + c + kPanel));
  if (c < columns) store_bf16(to + c, load(x + c), zero());
}

// Rows [row0, row1): q, k and v of (pre-LN: norm1 of) x, q scaled so that 2^(q k) is what softmax wants.
inline void encode_qkv_bf16(const ScoreParams& a, const ScorePlan& plan, const Bf16Sizes& n, const PackedLayer& layer,
                            const Bf16Team& team, const float* x, const Bf16Chunk& c, int64_t row0, int64_t row1,
                            const Bf16Tile& t) {
  const RankerLayout& l = a.layout;
  const int64_t E = l.head_padded();
  for (int64_t r = row0; r < row1; ++r) {
    const float* row = x + r * plan.p;
    float normed[kMaxProjDim];
    if (l.norm_first) {
      layer_norm(row, at_bytes(a.packed, layer.norm1_weight_bytes), at_bytes(a.packed, layer.norm1_bias_bytes), l.p,
                 normed);
      row = normed;
    }
    round_row(row, plan.p, n.x, t.x + (r - row0) * n.x);
  }
  const float* bias = at_bytes(a.packed, layer.qkv_bias_bytes);
  const F32x16 scale = set1(1.44269504f / __builtin_sqrtf(static_cast<float>(l.head_dim())));
  product_bf16(team, t.x, n.x, row1 - row0, layer.qkv, a.packed,
               [&](int64_t row, int64_t rows, int64_t column, int64_t panels, const float* sums) {
                 for (int64_t i = 0; i < panels; ++i, column += kPanel) {
                   const int64_t head = column / E, e = column % E;  // of all heads of q, then k, then v
                   const F32x16 b = load(bias + column), factor = head < l.heads ? scale : set1(1.0f);
                   uint16_t* to = c.qkv + (row0 + row) * 3 * n.heads + head * n.head + e;
                   const bool pad = e + kPanel == E && E < n.head;
                   for (int64_t r = 0; r < rows; ++r, to += 3 * n.heads) {
                     store_bf16(to, (load(sums + (r * panels + i) * kPanel) + b) * factor);
                     if (pad) store_bf16(to + kPanel, zero());
                   }
                 }
               });
}

// Transposes sixteen rows of sixteen pairs.
SRR_INLINE void transpose_pairs(__m512i (&v)[16]) {
  __m512i u[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    u[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
    u[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[4 * i] = _mm512_unpacklo_epi64(u[4 * i], u[4 * i + 2]);
    v[4 * i + 1] = _mm512_unpackhi_epi64(u[4 * i], u[4 * i + 2]);
    v[4 * i + 2] = _mm512_unpacklo_epi64(u[4 * i + 1], u[4 * i + 3]);
    v[4 * i + 3] = _mm512_unpackhi_epi64(u[4 * i + 1], u[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    u[i] = _mm512_shuffle_i32x4(v[i], v[4 + i], 0x88);
    u[4 + i] = _mm512_shuffle_i32x4(v[i], v[4 + i], 0xdd);
    u[8 + i] = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0x88);
    u[12 + i] = _mm512_shuffle_i32x4(v[8 + i], v[12 + i], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    v[i] = _mm512_shuffle_i32x4(u[i], u[8 + i], 0x88);
    v[8 + i] = _mm512_shuffle_i32x4(u[i], u[8 + i], 0xdd);
    v[4 + i] = _mm512_shuffle_i32x4(u[4 + i], u[12 + i], 0x88);
    v[12 + i] = _mm512_shuffle_i32x4(u[4 + i], u[12 + i], 0xdd);
  }
}

// The keys and values of the sequence of rows [begin, end), packed as weights are: zeros where there is none.
inline void pack_sequence(const ScoreParams& a, const Bf16Sizes& n, const Bf16Chunk& c, int64_t begin, int64_t end) {
  const int64_t S = end - begin, stride = 3 * n.heads, E = a.layout.head_padded(), keys = round_up(S, kStep);
  const __m512i none = _mm512_setzero_si512();
  for (int64_t head = 0; head < a.layout.heads; ++head) {
    const uint16_t* k = c.qkv + begin * stride + n.heads + head * n.head;
    uint16_t* to = c.keys + head * n.head * n.keys;
    for (int64_t k0 = 0; k0 < S; k0 += kPanel)
      for (int64_t e = 0; e < n.head; e += kStep, to += kStep * kPanel) {
        __m512i rows[16];
        const int64_t valid = S - k0;
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) rows[i] = i < valid ? _mm512_loadu_si512(k + (k0 + i) * stride + e) : none;
        transpose_pairs(rows);
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * kStep, rows[i]);
      }
    const uint16_t* v = c.qkv + begin * stride + 2 * n.heads + head * n.head;
    to = c.values + head * E * n.keys;
    const auto row = [&](int64_t i, int64_t e) {
      return i < S ? _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(v + i * stride + e)))
                   : none;
    };
    for (int64_t e = 0; e < E; e += kPanel)
      for (int64_t i = 0; i < keys; i += 2, to += 2 * kPanel)
        _mm512_storeu_si512(to, _mm512_or_si512(row(i, e), _mm512_slli_epi32(row(i + 1, e), 16)));
  }
}

// Queries [row0, row1) of the sequence of S rows that pack_sequence() saw: mixed = softmax(q k^T) v for one head. Keys
// are taken block by block; what was summed before a larger logit came up is scaled down to it.
inline void attend_bf16(const ScoreParams& a, const Bf16Sizes& n, int64_t head, Tiles& tiles, const Bf16Chunk& c,
                        int64_t S, int64_t row0, int64_t row1, const Bf16Tile& t) {
  const int64_t E = a.layout.head_padded(), rows = row1 - row0, stride = 3 * n.heads, all_keys = round_up(S, kStep);
  const uint16_t* q = c.qkv + row0 * stride + head * n.head;
  const uint16_t *k = c.keys + head * n.head * n.keys, *v = c.values + head * E * n.keys;
  float most[kBf16QueryRows], total[kBf16QueryRows];
  for (int64_t k0 = 0; k0 < S; k0 += kBf16KeyBlock) {
    const int64_t here = at_most(S - k0, kBf16KeyBlock), panels = (here + kPanel - 1) / kPanel;
    const int64_t keys = round_up(here, kStep), width = panels * kPanel;
    own_product(tiles, q, stride, rows, k + k0 * n.head, E, n.head * kPanel, panels, t.logits, width, false);
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = t.logits + r * width;
      uint16_t* to = t.shares + r * keys;
      const F32x16 lowest = set1(-3.4028235e38f);
      const int64_t last = width - kPanel, left = here - last;
      const F32x16 mask = first_lanes(left);
      F32x16 top = where_positive(mask - set1(0.5f), load(row + last), lowest);
      for (int64_t i = 0; i < last; i += kPanel) top = max(top, load(row + i));
      float peak = max_lane(top), sum_before = 0;
      if (k0 > 0) {
        peak = most[r] > peak ? most[r] : peak;
        const F32x16 factor = exp2_bf16(set1(most[r] - peak));
        float lanes[16];
        store(lanes, factor);
        sum_before = total[r] * lanes[0];
        for (int64_t e = 0; e < E; e += kPanel) store(t.out + r * E + e, load(t.out + r * E + e) * factor);
      }
      most[r] = peak;
      const F32x16 shift = set1(peak);
      F32x16 sums = zero();
      for (int64_t i = 0; i < last; i += kPanel) {
        const F32x16 share = exp2_bf16(load(row + i) - shift);
        store_bf16(to + i, share);
        sums = sums + share;
      }
      const F32x16 share = where_positive(mask - set1(0.5f), exp2_bf16(load(row + last) - shift), zero());
      store_bf16(to + last, share);
      if (width < keys) store_bf16(to + width, zero());
      total[r] = sum_before + sum(sums + share);
    }
    own_product(tiles, t.shares, keys, rows, v + k0 * kPanel, here, all_keys * kPanel, E / kPanel, t.out, E, k0 > 0);
  }
  uint16_t* to = c.mixed + row0 * n.mixed + head * E;
  for (int64_t r = 0; r < rows; ++r, to += n.mixed) {
    const F32x16 inverse = set1(1.0f / total[r]);
    for (int64_t e = 0; e < E; e += kPanel) store_bf16(to + e, load(t.out + r * E + e) * inverse);
    if (head + 1 == a.layout.heads && (head + 1) * E < n.mixed) store_bf16(to + E, zero());
  }
}

// Rows [row0, row1), after attention: output projection, residuals, norms and the feed-forward block, in place on x.
inline void encode_rest_bf16(const ScoreParams& a, const ScorePlan& plan, const Bf16Sizes& n, const PackedLayer& layer,
                             const Bf16Team& team, float* all_x, const Bf16Chunk& c, int64_t row0, int64_t row1,
                             const Bf16Tile& t) {
  const RankerLayout& l = a.layout;
  const int64_t rows = row1 - row0;
  float* x = all_x + row0 * plan.p;
  const auto norm = [&](const float* from, int64_t weight, int64_t bias, float* to) {
    layer_norm(from, at_bytes(a.packed, weight), at_bytes(a.packed, bias), l.p, to);
  };
  const auto add_to_x = [&](const float* bias) {
    return [x, bias, &plan](int64_t row, int64_t count, int64_t column, int64_t panels, const float* sums) {
      for (int64_t r = 0; r < count; ++r)
        for (int64_t i = 0; i < panels; ++i) {
          float* at = x + (row + r) * plan.p + column + i * kPanel;
          store(at, load(at) + (load(sums + (r * panels + i) * kPanel) + load(bias + column + i * kPanel)));
        }
    };
  };
  product_bf16(team, c.mixed + row0 * n.mixed, n.mixed, rows, layer.out, a.packed,
               add_to_x(at_bytes(a.packed, layer.out_bias_bytes)));
  for (int64_t r = 0; r < rows; ++r) {
    float* row = x + r * plan.p;
    float normed[kMaxProjDim];
    if (l.norm_first)
      norm(row, layer.norm2_weight_bytes, layer.norm2_bias_bytes, normed);
    else
      norm(row, layer.norm1_weight_bytes, layer.norm1_bias_bytes, row);
    round_row(l.norm_first ? normed : row, plan.p, n.x, t.x + r * n.x);
  }
  const float* bias1 = at_bytes(a.packed, layer.ffn1_bias_bytes);
  product_bf16(team, t.x, n.x, rows, layer.ffn1, a.packed,
               [&](int64_t row, int64_t count, int64_t column, int64_t panels, const float* sums) {
                 for (int64_t i = 0; i < panels; i += 2, column += kStep) {
                   const bool both = i + 1 < panels;
                   const F32x16 b0 = load(bias1 + column), b1 = both ? load(bias1 + column + kPanel) : zero();
                   const float* from = sums + i * kPanel;
                   uint16_t* to = t.hidden + row * n.ffn + column;
                   for (int64_t r = 0; r < count; ++r, from += panels * kPanel, to += n.ffn) {
                     const F32x16 first = gelu_bf16(load(from) + b0);
                     store_bf16(to, first, both ? gelu_bf16(load(from + kPanel) + b1) : zero());
                   }
                 }
               });
  product_bf16(team, t.hidden, n.ffn, rows, layer.ffn2, a.packed, add_to_x(at_bytes(a.packed, layer.ffn2_bias_bytes)));
  if (!l.norm_first)
    for (int64_t r = 0; r < rows; ++r)
      norm(x + r * plan.p, layer.norm2_weight_bytes, layer.norm2_bias_bytes, x + r * plan.p);
}

// All layers over the sequences of a chunk, x in place. `tile`: plan.tile_floats for each worker. Workers share tiles
// of rows; where there is one tile alone, the columns of its products.
inline void encode_layers_bf16(const ScoreParams& a, const ScorePlan& plan, const Chunk& chunk, int64_t sequences,
                               float* tile, const Threads& threads) {
  const Bf16Sizes n = bf16_sizes(a.layout, plan.keys);
  Pieces pieces{reinterpret_cast<unsigned char*>(chunk.behind)};
  const Bf16Chunk c = bf16_chunk(pieces, a.layout, n, plan.chunk_rows);
  const int64_t rows = chunk.begin[sequences];
  if (rows == 0) return;
  Tiles own;
  // Where workers are called, they set up their own tiles, perhaps this thread's.
  const auto for_tiles = [&](int64_t count, int64_t most, auto&& body) {
    const int64_t groups = (count + most - 1) / most, height = round_up((count + groups - 1) / groups, 2);
    const int64_t all = (count + height - 1) / height;
    const int64_t workers = at_most(plan.tile_workers, all);
    parallel(threads, workers, [&](int64_t worker) {
      Tiles others;
      Pieces scratch{reinterpret_cast<unsigned char*>(tile + worker * plan.tile_floats)};
      const Bf16Tile t = bf16_tile(scratch, a.layout, n);
      for (int64_t i = all * worker / workers; i < all * (worker + 1) / workers; ++i)
        body(plan.tile_workers > 1 ? others : own, t, i * height, at_most(count, (i + 1) * height));
    });
  };
  const auto team = [&](Tiles& tiles, const Bf16Tile& t) {
    return Bf16Team{threads, rows > n.tile_rows ? 1 : plan.tile_workers, tiles, t.sums, plan.tile_floats};
  };
  for (int64_t i = 0; i < a.layout.layers; ++i) {
    const PackedLayer layer = a.layout.layer(i);
    for_tiles(rows, n.tile_rows, [&](Tiles& tiles, const Bf16Tile& t, int64_t r0, int64_t r1) {
      encode_qkv_bf16(a, plan, n, layer, team(tiles, t), chunk.x, c, r0, r1, t);
    });
    for (int64_t s = 0; s < sequences; ++s) {
      const int64_t begin = chunk.begin[s], S = chunk.begin[s + 1] - begin;
      pack_sequence(a, n, c, begin, begin + S);
      for_tiles(S, kBf16QueryRows, [&](Tiles& tiles, const Bf16Tile& t, int64_t r0, int64_t r1) {
        for (int64_t head = 0; head < a.layout.heads; ++head)
          attend_bf16(a, n, head, tiles, c, S, begin + r0, begin + r1, t);
      });
    }
    for_tiles(rows, n.tile_rows, [&](Tiles& tiles, const Bf16Tile& t, int64_t r0, int64_t r1) {
      encode_rest_bf16(a, plan, n, layer, team(tiles, t), chunk.x, c, r0, r1, t);
    });
  }
}
