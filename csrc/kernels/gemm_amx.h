// SPDX-License-Identifier: Apache-2.0
// gemm_block() on AMX for bfloat16 weights: tiles sum products of bfloat16 in fp32. A float32 of X is the exact sum of
// three bfloat16, its leading, middle and last eight bits: three planes, whose products are summed alike. The bits of a
// row depend on that row and W alone here too: tiles of any height add the products of one element in the same order.

constexpr int64_t kStep = 32;        // columns of X that one instruction sums
constexpr int64_t kTileHeight = 16;  // most rows of a tile
constexpr int64_t kTilePanels = 2;   // panels side by side under two tiles of rows; under one, twice as many
constexpr int64_t kPlanes = 3;
constexpr int64_t kMostRows = 96;  // of X in one call

// The shape of this thread's tiles: one or two of X above one another, `upper` and `lower` rows high. Tiles 0, 1 are of
// Y and 4 of X, in the upper row; 2, 3 and 5 in the lower; 6, 7 of W. One tile of X alone may take all four of Y.
class Tiles {
 public:
  Tiles() = default;
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  ~Tiles() {
    if (upper_ != 0) asm volatile("tilerelease" ::: "memory");
  }
  SRR_INLINE void shape(int64_t upper, int64_t lower) {
    if (upper == upper_ && lower == lower_) return;
    upper_ = upper;
    lower_ = lower;
    struct {
      uint8_t palette, start_row, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } config = {1, 0, {}, {}, {}};
    const uint8_t high = static_cast<uint8_t>(upper_), low = static_cast<uint8_t>(lower_);
    const uint8_t rows[8] = {high, high, low, low, high, low, kTileHeight, kTileHeight};
    for (int t = 0; t < 8; ++t) {
      config.row_bytes[t] = 64;
      config.rows[t] = rows[t];
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }

 private:
  int64_t upper_ = 0, lower_ = 0;
};

template <int T>
SRR_INLINE void load_tile(const void* from, int64_t stride_bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride_bytes), "i"(T) : "memory");
}
template <int T>
SRR_INLINE void store_tile(void* to, int64_t stride_bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride_bytes), "i"(T) : "memory");
}
template <int T>
SRR_INLINE void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}
// Tile Y += tile X times tile W.
template <int Y, int X, int W>
SRR_INLINE void dot_tiles() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Y), "i"(X), "i"(W));
}

// Calls body(Int<i>{}) for i in 0 .. N - 1.
template <int N, class Body>
SRR_INLINE void unrolled(Body&& body) {
  if constexpr (N > 1) unrolled<N - 1>(body);
  body(Int<N - 1>{});
}

// Rows of X and of Y, in elements. Planes lie kBlockK apart.
struct TileRows {
  const uint16_t* x;
  int64_t x_stride, rows;
  float* y;
};
// K-blocks of the panels of W under a tile. Every block but the last has kBlockK / kStep steps.
struct TileWeights {
  const uint16_t* w;
  int64_t panel, block;  // distances
  int64_t blocks, last_steps;
};

// R tiles of rows times P panels, R * P <= 4. `add`: Y holds a partial sum already. While one tile of W stays, the
// products with it follow one another: that is what an instruction waits for least. Under two tiles of rows the first
// line of each tile of the next K-block is fetched.
template <int Planes, int R, int P>
__attribute__((noinline)) void tile_amx(const TileRows* rows, const TileWeights& w, int64_t y_stride, bool add) {
  const auto for_y = [&](auto&& body) {
    unrolled<R>([&](auto r) {
      unrolled<P>([&](auto c) { body(Int<2 * r.value + c.value>{}, rows[r.value].y + c.value * kPanel); });
    });
  };
  for_y([&](auto tile, float* at) {
    if (add)
      load_tile<tile.value>(at, 4 * y_stride);
    else
      zero_tile<tile.value>();
  });
  const uint16_t *const upper = rows[0].x, *const lower = rows[R - 1].x;
  const int64_t upper_stride = 2 * rows[0].x_stride, lower_stride = 2 * rows[R - 1].x_stride, distance = w.panel;
  int64_t at = 0;
  for (int64_t block = 0; block < w.blocks; ++block) {
    const int64_t steps = block + 1 < w.blocks ? kBlockK / kStep : w.last_steps;
    const uint16_t* panels = w.w + block * w.block;
    for (int64_t s = 0; s < steps; ++s, panels += kStep * kPanel, at += kStep) {
      unrolled<P>([&](auto c) {
        if (Planes == 1 && R == 2) __builtin_prefetch(panels + w.block + c.value * distance);
        load_tile<6 + c.value % 2>(panels + c.value * distance, 4 * kPanel);
        unrolled<R>([&](auto r) {
          unrolled<Planes>([&](auto plane) {
            if (Planes > 1 || c.value == 0)
              load_tile<4 + r.value>((r.value ? lower : upper) + at + plane.value * kBlockK,
                                     r.value ? lower_stride : upper_stride);
            dot_tiles<2 * r.value + c.value, 4 + r.value, 6 + c.value % 2>();
          });
        });
      });
    }
  }
  for_y([&](auto tile, float* at) { store_tile<tile.value>(at, 4 * y_stride); });
}

// The tiles of Y += X W over the K-blocks of `w`, for R tiles of rows `lower` apart times P panels. A few lines of the
// panels to their right are fetched now and then: from there the hardware goes on by itself.
template <int R, int P>
__attribute__((noinline)) void add_products(const uint16_t* x, int64_t x_stride, int64_t lower, const TileWeights& w) {
  for (int64_t block = 0; block < w.blocks; ++block) {
    const uint16_t* panels = w.w + block * w.block;
    const uint16_t* ahead = panels + P * w.panel;
    const int64_t steps = block + 1 < w.blocks ? kBlockK / kStep : w.last_steps;
    for (int64_t s = 0; s < steps; ++s, panels += kStep * kPanel, ahead += P * kStep * kPanel, x += kStep) {
      for (int64_t line = 0; line < 2; ++line) __builtin_prefetch(ahead + line * 2 * kPanel, 0, 2);
      unrolled<P>([&](auto c) {
        load_tile<6 + c.value % 2>(panels + c.value * w.panel, 4 * kPanel);
        unrolled<R>([&](auto r) {
          if (c.value == 0) load_tile<4 + r.value>(x + r.value * lower, 2 * x_stride);
          dot_tiles<2 * r.value + c.value, 4 + r.value, 6 + c.value % 2>();
        });
      });
    }
  }
}

// The rows of all `parts` in tiles, y moved on to `panel`s: calls body(Int<R>{}, Int<P>{}, tiles, panel) for one or two
// tiles at a time. A low tile shares the weights it loads with the next one; a tile of full height stands alone and
// takes more panels.
template <class Body>
SRR_INLINE void for_row_panels(const TileRows* parts, int64_t count, int64_t panels, int64_t y_stride, Body&& body) {
  TileRows pair[2];
  int n = 0;
  const auto flush = [&] {
    const int64_t most = n == 1 ? 2 * kTilePanels : kTilePanels;
    for (int64_t panel = 0; panel < panels; panel += most) {
      TileRows here[2] = {pair[0], pair[1]};
      for (int i = 0; i < n; ++i) here[i].y += panel * kPanel;
      if (n == 1)
        with_int<2 * kTilePanels>(at_most(panels - panel, most), [&](auto P) { body(Int<1>{}, P, here, panel); });
      else
        with_int<kTilePanels>(at_most(panels - panel, most), [&](auto P) { body(Int<2>{}, P, here, panel); });
    }
    n = 0;
  };
  for (int64_t part = 0; part < count; ++part) {
    const TileRows& all = parts[part];
    for (int64_t row = 0; row < all.rows; row += kTileHeight) {
      const int64_t height = at_most(all.rows - row, kTileHeight);
      pair[n++] = {all.x + row * all.x_stride, all.x_stride, height, all.y + row * y_stride};
      if (n == 2 || height == kTileHeight) flush();
    }
  }
  if (n > 0) flush();
}

// K rows of one panel of W, zeros behind them up to a whole step.
SRR_INLINE void copy_w(const uint16_t* w, int64_t K, uint16_t* to) {
  for (int64_t k = 0; k < round_up(K, kStep); k += 2)
    _mm512_storeu_si512(to + k * kPanel, k < K ? _mm512_loadu_si512(w + k * kPanel) : _mm512_setzero_si512());
}

// The rows of `parts` times these panels of K-blocks [block, block + blocks), which are whole where they are several.
template <int Planes>
SRR_INLINE void blocks_amx(Tiles& tiles, const TileRows* parts, int64_t count, const PackedMatrix& m,
                           const void* packed, Panels all, int64_t block, int64_t blocks, int64_t y_stride, bool add) {
  alignas(64) uint16_t padded[2 * kTilePanels * kBlockK * kPanel];
  const int64_t K = m.block_rows(block);
  for_row_panels(parts, count, all.count(), y_stride, [&](auto R, auto P, TileRows* here, int64_t panel) {
    TileWeights w{bf16_block(m, packed, block) + (all.first + panel) * K * kPanel, K * kPanel, kBlockK * m.N_padded(),
                  blocks, (K + kStep - 1) / kStep};
    if (K % kStep != 0) {
      for (int64_t c = 0; c < P.value; ++c) copy_w(w.w + c * w.panel, K, padded + c * kBlockK * kPanel);
      w.w = padded;
      w.panel = kBlockK * kPanel;
    }
    tiles.shape(here[0].rows, here[R.value - 1].rows);
    tile_amx<Planes, R.value, P.value>(here, w, y_stride, add);
  });
}

// The leading eight bits of every lane, and what they leave.
SRR_INLINE __m512i leading(F32x16 a) {
  return _mm512_and_si512(_mm512_castps_si512(a.v), _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
}
SRR_INLINE F32x16 rest(F32x16 a) { return {_mm512_sub_ps(a.v, _mm512_castsi512_ps(leading(a)))}; }

// The planes of 32 columns of a row.
SRR_INLINE void split(F32x16 a, F32x16 b, uint16_t* to) {
  const __m512i upper = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25,
                                         23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
#pragma GCC unroll 3
  for (int i = 0; i < kPlanes; ++i, a = rest(a), b = rest(b))
    _mm512_storeu_si512(to + i * kBlockK,
                        _mm512_permutex2var_epi16(_mm512_castps_si512(a.v), upper, _mm512_castps_si512(b.v)));
}

// The planes of columns [0, n) of a row, zeros behind them up to a whole step.
SRR_INLINE void split_row(const float* x, int64_t n, uint16_t* to) {
  int64_t i = 0;
  for (; i + kStep <= n; i += kStep) split(load(x + i), load(x + i + 16), to + i);
  if (i == n) return;
  const int64_t left = n - i;
  split(left >= 16 ? load(x + i) : load_first<StateF32>(x + i, left),
        left > 16 ? load_first<StateF32>(x + i + 16, left - 16) : zero(), to + i);
}

// Y[r] (+)= X[r] W^T over one K-block of a packed bfloat16 matrix, at most kMostRows rows; X's first column is the
// block's first row.
template <class X>
inline void gemm_block(Tiles& tiles, const X& x, int64_t rows, const PackedMatrix& m, const void* packed, Panels panels,
                       int64_t block, float* y, int64_t y_stride, bool add) {
  alignas(64) uint16_t planes[kMostRows * kPlanes * kBlockK];
  const int64_t columns = at_most(m.K - block * kBlockK, kBlockK), stride = kPlanes * kBlockK;
  for (int64_t r = 0; r < rows; ++r) split_row(row_at(x, r), columns, planes + r * stride);
  const TileRows all{planes, stride, rows, y};
  blocks_amx<kPlanes>(tiles, &all, 1, m, packed, panels, block, 1, y_stride, add);
}

// The same for bfloat16 rows, read where they lie, and some panels, over K-blocks [block, end). X's first column is the
// matrix's first row.
inline void gemm_blocks_dot(Tiles& tiles, const TileRows* parts, int64_t count, const PackedMatrix& m,
                            const void* packed, Panels panels, int64_t block, int64_t end, int64_t y_stride) {
  const int64_t first = block, whole = at_most(m.K / kBlockK, end);
  TileRows here[2];
  if (block < whole) {
    for (int64_t i = 0; i < count; ++i) {
      here[i] = parts[i];
      here[i].x += block * kBlockK;
    }
    blocks_amx<1>(tiles, here, count, m, packed, panels, block, whole - block, y_stride, false);
    block = whole;
  }
  if (block == end) return;
  alignas(64) uint16_t copies[kMostRows * kBlockK];  // of the last columns, zeros behind them
  const int64_t columns = m.K - block * kBlockK;
  uint16_t* to = copies;
  for (int64_t i = 0; i < count; ++i) {
    here[i] = {to, kBlockK, parts[i].rows, parts[i].y};
    for (int64_t r = 0; r < parts[i].rows; ++r, to += kBlockK)
      for (int64_t c = 0; c < round_up(columns, kStep); c += kStep) {
        const int64_t left = at_most(columns - c, kStep);
        const __mmask32 mask = left < kStep ? (__mmask32{1} << left) - 1 : ~__mmask32{0};
        _mm512_storeu_si512(to + c,
                            _mm512_maskz_loadu_epi16(mask, parts[i].x + r * parts[i].x_stride + block * kBlockK + c));
      }
  }
  blocks_amx<1>(tiles, here, count, m, packed, panels, block, 1, y_stride, block > first);
}

// The same for rows in two places, together at most a tile, over whole K-blocks: they are copied side by side one block
// ahead, so that weights are read once. Y's rows follow one another.
inline void few_rows_dot(Tiles& tiles, const TileRows* parts, const PackedMatrix& m, const void* packed, Panels panels,
                         int64_t block, int64_t end, int64_t y_stride) {
  constexpr int64_t stride = kBlockK + kStep;
  alignas(64) uint16_t together[2][kTileHeight * stride];
  const int64_t rows = parts[0].rows + parts[1].rows;
  const auto copy = [&](int64_t b) {
    uint16_t* to = together[b % 2];
    for (int64_t r = 0; r < rows; ++r, to += stride) {
      const TileRows& part = parts[r >= parts[0].rows];
      const uint16_t* from = part.x + (r < parts[0].rows ? r : r - parts[0].rows) * part.x_stride + b * kBlockK;
#pragma GCC unroll 4
      for (int64_t c = 0; c < kBlockK; c += kStep) _mm512_store_si512(to + c, _mm512_loadu_si512(from + c));
    }
  };
  tiles.shape(rows, rows);
  for (int64_t panel = panels.first; panel < panels.end; panel += 2 * kTilePanels)
    with_int<2 * kTilePanels>(at_most(panels.end - panel, 2 * kTilePanels), [&](auto P) {
      unrolled<P.value>([&](auto c) { zero_tile<c.value>(); });
      copy(block);
      for (int64_t b = block; b < end; ++b) {
        if (b + 1 < end) copy(b + 1);
        const TileWeights w{bf16_block(m, packed, b) + panel * kBlockK * kPanel, kBlockK * kPanel, 0, 1,
                            kBlockK / kStep};
        add_products<1, P.value>(together[b % 2], stride, 0, w);
      }
      unrolled<P.value>(
          [&](auto c) { store_tile<c.value>(parts[0].y + (panel - panels.first + c.value) * kPanel, 4 * y_stride); });
    });
}
