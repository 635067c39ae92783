// SPDX-License-Identifier: Apache-2.0
// Y = X W^T for a packed matrix. The bits of a row depend on that row and W alone: every tile shape adds the
// products of one element in the same order.

// Panels [first, end) of a matrix. Y's first column is that of the first panel.
struct Panels {
  int64_t first, end;
  int64_t count() const { return end - first; }
};
SRR_INLINE Panels all_panels(const PackedMatrix& m) { return {0, m.N_padded() / kPanel}; }

// The rows of X: fp32, by pointer or at a stride.
struct RowPointers {
  const float* const* rows;
  int64_t column = 0;
};
struct RowsAt {
  const float* data;
  int64_t stride;
};
SRR_INLINE const float* row_at(const RowPointers& x, int64_t r) { return x.rows[r] + x.column; }
SRR_INLINE const float* row_at(const RowsAt& x, int64_t r) { return x.data + r * x.stride; }
SRR_INLINE RowPointers from_column(const RowPointers& x, int64_t column) { return {x.rows, x.column + column}; }
SRR_INLINE RowsAt from_column(const RowsAt& x, int64_t column) { return {x.data + column, x.stride}; }

SRR_INLINE int64_t at_most(int64_t n, int64_t most) { return n < most ? n : most; }
SRR_INLINE const float* at_bytes(const void* packed, int64_t bytes) {
  return reinterpret_cast<const float*>(static_cast<const unsigned char*>(packed) + bytes);
}

template <int V>
struct Int {
  static constexpr int value = V;
};

// Writes a tile to Y, or adds it.
template <int R, int P>
SRR_INLINE void put_tile(const F32x16 (&acc)[R][P], float* y, int64_t y_stride, bool add) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < P; ++c) {
      float* at = y + r * y_stride + c * kPanel;
      store(at, add ? load(at) + acc[r][c] : acc[r][c]);
    }
}

// How far ahead weights are fetched: the panels to the right of a tile's; where these are all there are, the same place
// in the next K-block.
template <int P>
constexpr int64_t kNextBlock = P * kBlockK * kPanel;

// One tile: R rows times P panels over K rows of weights. Panel c starts at w + c * panel_stride, its row k is
// k * row_stride further on. `add`: Y holds a partial sum already. Not inlined: the registers of the loop are all its
// own.
template <int R, int P, class X>
__attribute__((noinline)) void tile_f32(const X& x, int64_t row0, const float* w, int64_t panel_stride,
                                        int64_t row_stride, int64_t K, float* y, int64_t y_stride, bool add) {
  const float* a[R];
  for (int r = 0; r < R; ++r) a[r] = row_at(x, row0 + r);
  F32x16 acc[R][P];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < P; ++c) acc[r][c] = zero();
  for (int64_t k = 0; k < K; ++k) {
    F32x16 b[P];
#pragma GCC unroll 8
    for (int c = 0; c < P; ++c) {
      b[c] = load(w + c * panel_stride + k * row_stride);
      __builtin_prefetch(w + c * panel_stride + k * row_stride + kNextBlock<P>, 0, 2);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const F32x16 s = set1(a[r][k]);
#pragma GCC unroll 8
      for (int c = 0; c < P; ++c) acc[r][c] = fma(s, b[c], acc[r][c]);
    }
  }
  put_tile(acc, y, y_stride, add);
}

// The same with bfloat16 weights in interleaved pairs of rows.
template <int R, int P, class X>
__attribute__((noinline)) void tile_bf16(const X& x, int64_t row0, const uint16_t* w, int64_t panel_stride, int64_t K,
                                         float* y, int64_t y_stride, bool add) {
  const float* a[R];
  for (int r = 0; r < R; ++r) a[r] = row_at(x, row0 + r);
  F32x16 acc[R][P];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int c = 0; c < P; ++c) acc[r][c] = zero();
  const auto step = [&](int64_t k, auto pair) {
#pragma GCC unroll 8
    for (int c = 0; c < P; ++c) {
      F32x16 b0, b1;
      load_bf16_pairs(w + c * panel_stride + k * kPanel, b0, b1);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        acc[r][c] = fma(set1(a[r][k]), b0, acc[r][c]);
        if (pair.value) acc[r][c] = fma(set1(a[r][k + 1]), b1, acc[r][c]);
      }
    }
  };
  int64_t k = 0;
  for (; k + 1 < K; k += 2) step(k, Int<1>{});
  if (k < K) step(k, Int<0>{});
  put_tile(acc, y, y_stride, add);
}

// Calls body(Int<n>{}) for n in 1 .. V.
template <int V, class Body>
SRR_INLINE void with_int(int64_t n, Body&& body) {
  if constexpr (V > 1) {
    if (n < V) return with_int<V - 1>(n, body);
  }
  body(Int<V>{});
}

// Splits `rows` into tiles of at most kMaxRows and nearly equal height; calls body(row0, height).
template <class Body>
SRR_INLINE void for_row_tiles(int64_t rows, Body&& body) {
  const int64_t tiles = (rows + kMaxRows - 1) / kMaxRows;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t begin = rows * i / tiles;
    body(begin, rows * (i + 1) / tiles - begin);
  }
}

// Calls body(R, P, row0, panel) for tiles of R rows and P panels that cover all rows and panels.
template <class Body>
SRR_INLINE void for_tiles(int64_t rows, int64_t panels, Body&& body) {
  for (int64_t panel = 0; panel < panels; panel += kMaxPanels)
    with_int<kMaxPanels>(at_most(panels - panel, kMaxPanels), [&](auto P) {
      for_row_tiles(rows, [&](int64_t row0, int64_t height) {
        with_int<kMaxRows>(height, [&](auto R) { body(R, P, row0, panel); });
      });
    });
}

// Y[r] (+)= X[r] W^T for fp32 panels at w: panel c starts at w + c * panel_stride, its row k is k * row_stride on.
template <class X>
inline void gemm_panels(const X& x, int64_t rows, const float* w, int64_t panel_stride, int64_t row_stride, int64_t K,
                        int64_t panels, float* y, int64_t y_stride, bool add) {
  for_tiles(rows, panels, [&](auto R, auto P, int64_t row0, int64_t panel) {
    tile_f32<R.value, P.value>(x, row0, w + panel * panel_stride, panel_stride, row_stride, K,
                               y + row0 * y_stride + panel * kPanel, y_stride, add);
  });
}

SRR_INLINE const uint16_t* bf16_block(const PackedMatrix& m, const void* packed, int64_t block) {
  return reinterpret_cast<const uint16_t*>(at_bytes(packed, m.offset_bytes)) + m.panel_index(block, 0);
}

// Y[r] (+)= X[r] W^T over one K-block of a packed fp32 matrix; X's first column is the block's first row.
template <class X>
inline void gemm_block_f32(const X& x, int64_t rows, const PackedMatrix& m, const void* packed, Panels panels,
                           int64_t block, float* y, int64_t y_stride, bool add) {
  const int64_t K = m.block_rows(block);
  const float* w = at_bytes(packed, m.offset_bytes) + m.panel_index(block, panels.first);
  gemm_panels(x, rows, w, K * kPanel, kPanel, K, panels.count(), y, y_stride, add);
}

#if !defined(SRR_AMX)
struct Tiles {};  // nothing to set up: see gemm_amx.h

// The same for any packed matrix.
template <class X>
inline void gemm_block(Tiles&, const X& x, int64_t rows, const PackedMatrix& m, const void* packed, Panels panels,
                       int64_t block, float* y, int64_t y_stride, bool add) {
  if (!m.bf16) return gemm_block_f32(x, rows, m, packed, panels, block, y, y_stride, add);
  const int64_t K = m.block_rows(block), valid = at_most(m.K - block * kBlockK, K);
  const uint16_t* w = bf16_block(m, packed, block) + panels.first * K * kPanel;
  for_tiles(rows, panels.count(), [&](auto R, auto P, int64_t row0, int64_t panel) {
    tile_bf16<R.value, P.value>(x, row0, w + panel * K * kPanel, K * kPanel, valid,
                                y + row0 * y_stride + panel * kPanel, y_stride, add);
  });
}

// The same over K-blocks [block, end); X's first column is the first one's first row. Each block is summed afresh
// before it joins Y, which bounds the rounding error.
template <class X>
inline void gemm_blocks(Tiles& tiles, const X& x, int64_t rows, const PackedMatrix& m, const void* packed,
                        Panels panels, int64_t block, int64_t end, float* y, int64_t y_stride, bool add) {
  for (int64_t b = block; b < end; ++b)
    gemm_block(tiles, from_column(x, (b - block) * kBlockK), rows, m, packed, panels, b, y, y_stride, add || b > block);
}
#endif
