// SPDX-License-Identifier: Apache-2.0
// Products of bfloat16 rows and bfloat16 weights by the instruction that adds the products of pairs to fp32 sums. On
// AMX: gemm_amx.h and panels_amx.h. The bits of a row depend on that row and W alone here too.

constexpr int64_t kStep = 32;  // rows of bfloat16 that the encoder keeps are padded to whole steps of so many columns
constexpr int64_t kBf16TileRows = 8 * kMaxRows;                 // rows that go through the feed-forward block together
constexpr int64_t kBf16QueryRows = 8 * kMaxRows;                // queries of one attention tile
constexpr int64_t kSumFloats = kMaxRows * kMaxPanels * kPanel;  // what panels_bf16() has on its way

// Rows of X, by pointer or at a stride.
struct DotPointers {
  const uint16_t* const* rows;
};
struct DotRowsAt {
  const uint16_t* data;
  int64_t stride;
};
SRR_INLINE const uint16_t* row_at(const DotPointers& x, int64_t r) { return x.rows[r]; }
SRR_INLINE const uint16_t* row_at(const DotRowsAt& x, int64_t r) { return x.data + r * x.stride; }

// Panels of W under a tile: `blocks` whole K-blocks, `block` elements apart; then, at `last`, any even number of rows,
// `rest`, whose panels are `last_panel` elements apart.
struct DotWeights {
  const uint16_t* w;
  int64_t block, blocks;
  const uint16_t* last;
  int64_t last_panel, rest;
};
SRR_INLINE DotWeights block_weights(const PackedMatrix& m, const void* packed, int64_t block, int64_t end,
                                    int64_t panel) {
  const int64_t whole = at_most(end, m.K_padded() / kBlockK);
  DotWeights w{
      bf16_block(m, packed, block) + panel * kBlockK * kPanel, kBlockK * m.N_padded(), whole - block, nullptr, 0, 0};
  if (whole == end) return w;
  w.rest = m.block_rows(whole);
  w.last_panel = w.rest * kPanel;
  w.last = bf16_block(m, packed, whole) + panel * w.last_panel;
  return w;
}

// acc += X W for columns [k, end) of X, an even number; the panels of W start at w.
template <int R, int P>
SRR_INLINE void add_dots(const uint16_t* const (&a)[R], int64_t k, int64_t end, const uint16_t* w, int64_t panel,
                         F32x16 (&acc)[R][P]) {
  for (; k < end; k += 2, w += 2 * kPanel) {
    Pairs b[P];
#pragma GCC unroll 8
    for (int c = 0; c < P; ++c) {
      b[c] = load_pairs(w + c * panel);
      __builtin_prefetch(w + c * panel + kNextBlock<P>, 0, 2);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Pairs s = set1_pair(a[r] + k);
#pragma GCC unroll 8
      for (int c = 0; c < P; ++c) acc[r][c] = dot_pairs(s, b[c], acc[r][c]);
    }
  }
}

// One tile of Y (+)= X W. Under whole K-blocks the next one of X is fetched.
template <int R, int P, class X>
__attribute__((noinline)) void tile_dot(const X& x, int64_t row0, const DotWeights& w, float* y, int64_t y_stride,
                                        bool add) {
  const uint16_t* a[R];
  for (int r = 0; r < R; ++r) a[r] = row_at(x, row0 + r);
  F32x16 acc[R][P];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < P; ++c) acc[r][c] = zero();
  int64_t k = 0;
  const uint16_t* block = w.w;
  for (const int64_t whole = w.blocks * kBlockK; k < whole; block += w.block)
    for (int64_t i = 0; i < kBlockK; i += kStep, k += kStep) {
      for (int r = 0; r < R; ++r) __builtin_prefetch(a[r] + k + kBlockK);
      add_dots(a, k, k + kStep, block + i * kPanel, kBlockK * kPanel, acc);
    }
  if (w.rest > 0) add_dots(a, k, k + w.rest, w.last, w.last_panel, acc);
  put_tile(acc, y, y_stride, add);
}

// Y[r] (+)= X[r] W^T over one K-block. Rows hold K_padded elements each.
inline void gemm_block_dot(const DotPointers& x, int64_t rows, const PackedMatrix& m, const void* packed, int64_t block,
                           float* y, int64_t y_stride, bool add) {
  for_tiles(rows, m.N_padded() / kPanel, [&](auto R, auto P, int64_t row0, int64_t panel) {
    tile_dot<R.value, P.value>(x, row0, block_weights(m, packed, block, block + 1, panel),
                               y + row0 * y_stride + panel * kPanel, y_stride, add);
  });
}

// Panels of X W^T, tile by tile: calls done(row, rows, column, panels, sums), a row of sums being 16 * panels floats.
// `sums`: kSumFloats.
template <class Done>
inline void panels_bf16(Tiles&, const uint16_t* x, int64_t x_stride, int64_t rows, const PackedMatrix& m,
                        const void* packed, Panels panels, float* sums, Done&& done) {
  const DotRowsAt all{x, x_stride};
  for (int64_t panel = panels.first; panel < panels.end; panel += kMaxPanels) {
    const int64_t width = at_most(panels.end - panel, kMaxPanels);
    const DotWeights w = block_weights(m, packed, 0, m.blocks(), panel);
    for_row_tiles(rows, [&](int64_t row0, int64_t height) {
      with_int<kMaxPanels>(width, [&](auto P) {
        with_int<kMaxRows>(height,
                           [&](auto R) { tile_dot<R.value, P.value>(all, row0, w, sums, P.value * kPanel, false); });
      });
      done(row0, height, panel * kPanel, width, static_cast<const float*>(sums));
    });
  }
}

// Y (+)= X W. Panels of W lie `panel` elements apart; both have zeros behind an odd K.
SRR_INLINE void own_product(Tiles&, const uint16_t* x, int64_t x_stride, int64_t rows, const uint16_t* w, int64_t K,
                            int64_t panel, int64_t panels, float* y, int64_t y_stride, bool add) {
  const DotRowsAt all{x, x_stride};
  for_tiles(rows, panels, [&](auto R, auto P, int64_t row0, int64_t at) {
    tile_dot<R.value, P.value>(all, row0, DotWeights{nullptr, 0, 0, w + at * panel, panel, round_up(K, 2)},
                               y + row0 * y_stride + at * kPanel, y_stride, add);
  });
}
