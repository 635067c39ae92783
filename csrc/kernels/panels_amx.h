// SPDX-License-Identifier: Apache-2.0
// Products of bfloat16 rows on AMX, as the encoder wants them; in dot products: gemm_dot.h.

constexpr int64_t kBf16TileRows = 2 * kTileHeight;   // rows that go through the feed-forward block together
constexpr int64_t kBf16QueryRows = 2 * kTileHeight;  // queries of one attention tile
constexpr int64_t kTileFloats = kTileHeight * kPanel;
constexpr int64_t kSumFloats = 2 * 4 * kTileFloats;  // what panels_bf16() has on its way
static_assert(kMaxPanels == 2 * kTilePanels, "workers share strips as wide as what stands under one tile");

// Rows of X in tiles of one height: all in one tile, or in pairs of tiles. Where rows are fewer than tiles hold, the
// lower tile of the last pair begins earlier, and some rows are multiplied twice.
struct EvenRows {
  int64_t height, pairs;  // no pairs: one tile
  explicit EvenRows(int64_t rows)
      : height(rows), pairs(rows > kTileHeight ? (rows + 2 * kTileHeight - 1) / (2 * kTileHeight) : 0) {
    if (pairs > 0) height = (rows + 2 * pairs - 1) / (2 * pairs);
  }
};

// Panels of X W^T, whose sums meet nothing but the first-level cache: calls done(row, rows, column, panels, sums), a
// row of sums being 16 * panels floats, in the middle of the products that follow, or right after them where they are
// few: by then the sums have arrived. X has whole steps of columns. `sums`: kSumFloats.
template <class Done>
inline void panels_bf16(Tiles& tiles, const uint16_t* x, int64_t x_stride, int64_t rows, const PackedMatrix& m,
                        const void* packed, Panels panels, float* sums, Done&& done) {
  alignas(64) uint16_t padded[2 * kTilePanels * kBlockK * kPanel];  // the last rows of W, zeros behind them
  const int64_t whole = m.K / kBlockK, K = m.K % kBlockK;
  const EvenRows even(rows);
  const int64_t most = even.pairs > 0 ? kTilePanels : 2 * kTilePanels;
  const int64_t together = even.pairs > 0 ? 2 * even.height : rows;
  struct {
    int64_t row, rows, column, panels;
    const float* sums;
  } last{};
  const auto finish = [&] {
    if (last.rows > 0) done(last.row, last.rows, last.column, last.panels, last.sums);
  };
  int64_t turn = 0;
  tiles.shape(even.height, even.height);
  for (int64_t panel = panels.first; panel < panels.end; panel += most) {
    const int64_t width = at_most(panels.end - panel, most), stride = width * kPanel;
    const auto blocks = [&](int64_t first, int64_t end) {
      return TileWeights{bf16_block(m, packed, first) + panel * kBlockK * kPanel, kBlockK * kPanel,
                         kBlockK * m.N_padded(), end - first, kBlockK / kStep};
    };
    const int64_t distance = round_up(K, 2) * kPanel;
    TileWeights rest{bf16_block(m, packed, whole) + panel * distance, distance, 0, 1, (K + kStep - 1) / kStep};
    if (K % kStep != 0) {
      for (int64_t c = 0; c < width; ++c) copy_w(rest.w + c * distance, round_up(K, 2), padded + c * kBlockK * kPanel);
      rest.w = padded;
      rest.panel = kBlockK * kPanel;
    }
    for (int64_t row = 0; row < rows; row += together, turn ^= 1) {
      const int64_t here = at_most(rows - row, together), lower = here - even.height;
      const uint16_t* from = x + row * x_stride;
      float* to = sums + turn * 4 * kTileFloats;
      const auto run = [&](auto R, auto P) {
        unrolled<R.value>([&](auto r) { unrolled<P.value>([&](auto c) { zero_tile<2 * r.value + c.value>(); }); });
        const auto add = [&](int64_t column, const TileWeights& w) {
          add_products<R.value, P.value>(from + column, x_stride, lower * x_stride, w);
        };
        const int64_t half = whole / 2;
        if (half > 0) {
          add(0, blocks(0, half));
          finish();
        }
        if (whole > half) add(half * kBlockK, blocks(half, whole));
        if (K > 0) add(whole * kBlockK, rest);
        unrolled<R.value>([&](auto r) {
          unrolled<P.value>([&](auto c) {
            store_tile<2 * r.value + c.value>(to + r.value * lower * stride + c.value * kPanel, 4 * stride);
          });
        });
        if (half == 0) finish();
      };
      if (even.pairs > 0)
        with_int<kTilePanels>(width, [&](auto P) { run(Int<2>{}, P); });
      else
        with_int<2 * kTilePanels>(width, [&](auto P) { run(Int<1>{}, P); });
      last = {row, here, panel * kPanel, width, to};
    }
  }
  finish();
}

// Tiles [steps][panels at `panel` elements] of the columns of one operand of attention.
SRR_INLINE TileWeights own_weights(const uint16_t* w, int64_t panel, int64_t steps) {
  constexpr int64_t most = kBlockK / kStep;
  const int64_t blocks = (steps + most - 1) / most;
  return {w, panel, kBlockK * kPanel, blocks, steps - (blocks - 1) * most};
}

// Y (+)= X W for at most two tiles of rows. Panels of W lie `panel` elements apart; both have zeros behind K, up to a
// whole step.
SRR_INLINE void own_product(Tiles& tiles, const uint16_t* x, int64_t x_stride, int64_t rows, const uint16_t* w,
                            int64_t K, int64_t panel, int64_t panels, float* y, int64_t y_stride, bool add) {
  const EvenRows even(rows);
  const int64_t height = even.height, lower = rows - height, most = even.pairs > 0 ? kTilePanels : 2 * kTilePanels;
  tiles.shape(height, height);
  for (int64_t at = 0; at < panels; at += most) {
    TileRows pair[2] = {{x, x_stride, height, y + at * kPanel},
                        {x + lower * x_stride, x_stride, height, y + lower * y_stride + at * kPanel}};
    const TileWeights weights = own_weights(w + at * panel, panel, (K + kStep - 1) / kStep);
    if (even.pairs > 0)
      with_int<kTilePanels>(at_most(panels - at, most),
                            [&](auto P) { tile_amx<1, 2, P.value>(pair, weights, y_stride, add); });
    else
      with_int<2 * kTilePanels>(at_most(panels - at, most),
                                [&](auto P) { tile_amx<1, 1, P.value>(pair, weights, y_stride, add); });
  }
}
