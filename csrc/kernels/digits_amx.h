// SPDX-License-Identifier: Apache-2.0
// float32 products on AMX, whose tiles multiply bytes twice as fast as bfloat16 and sum them without rounding. Rows of
// X become whole numbers of three signed bytes as the weights are in the packed ranker, a scale for each row and
// K-block. Of the nine products of digits the six largest are kept, each sum of the same weight in a tile of its own.
// What is left out is of the size of float32's own rounding errors as long as few elements are far below the largest;
// where many are, in a row or in the weights, that row's K-block goes the way of AVX-512.
//
// The bits of a row depend on that row and W alone: its scale is its own, and sums of whole numbers have no order.

constexpr int64_t kDigitTile = kTileHeight * kDigitStep;  // bytes of one digit of a tile, of X or of W
constexpr int64_t kDigitSums = kDigits * kTileHeight * kPanel;

// The rows of a tile of X in one K-block.
struct DigitRows {
  alignas(64) int8_t digits[kBlockK / kDigitStep * kDigits * kDigitTile];  // [steps][kDigits][16 rows][64]
  float scale[kTileHeight];                                                // 0 where a row has no digits
  int64_t uneven[kTileHeight];                                             // these rows
  int64_t uneven_count;
};

// Bits of a where those of mask are 1, else of b.
SRR_INLINE __m512i select_bits(__m512i mask, __m512i a, __m512i b) {
  return _mm512_ternarylogic_epi32(mask, a, b, 0xca);
}

// The digits of 64 columns: byte i of dword j is that of column 16 i + j. To each number 0x808080 is added, which makes
// bytes of signed digits.
SRR_INLINE void put_digits(const __m512i (&n)[4], int8_t* to) {
  const __m512i even = _mm512_set1_epi32(0x00ff00ff), lower = _mm512_set1_epi32(0x0000ffff);
  const __m512i sign = _mm512_set1_epi32(static_cast<int>(0x80808080u));
  // Bytes 0 and 2 of numbers 0 and 1, of 2 and 3; bytes 1 of the same.
  const __m512i a = select_bits(even, n[0], _mm512_slli_epi32(n[1], 8));
  const __m512i b = select_bits(even, n[2], _mm512_slli_epi32(n[3], 8));
  const __m512i c = select_bits(even, _mm512_srli_epi32(n[0], 8), n[1]);
  const __m512i d = select_bits(even, _mm512_srli_epi32(n[2], 8), n[3]);
  const __m512i digits[kDigits] = {select_bits(lower, _mm512_srli_epi32(a, 16), b),
                                   select_bits(lower, c, _mm512_slli_epi32(d, 16)),
                                   select_bits(lower, a, _mm512_slli_epi32(b, 16))};
#pragma GCC unroll 3
  for (int i = 0; i < kDigits; ++i) _mm512_store_si512(to + i * kDigitTile, _mm512_xor_si512(digits[i], sign));
}

// One row's digits, of whole steps with zeros behind the columns. Returns its scale, negative where digits do not fit.
template <int Steps>
__attribute__((noinline)) float split_digits(const float* x, int64_t columns, int8_t* to) {
  constexpr int kVectors = Steps * kDigitStep / 16;
  F16 v[kVectors];
  __m512i most[4];  // bits of magnitudes: those of NaN are above all others
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) {
    v[i] = load(x + 16 * i);
    __builtin_prefetch(x + 16 * (i + kVectors), 0, 2);  // the next K-block
    const __m512i magnitude = _mm512_castps_si512(abs(v[i]).v);
    most[i % 4] = i < 4 ? magnitude : _mm512_max_epu32(most[i % 4], magnitude);
  }
  const __m512i largest = _mm512_max_epu32(_mm512_max_epu32(most[0], most[1]), _mm512_max_epu32(most[2], most[3]));
  const uint32_t bits = _mm512_reduce_max_epu32(largest);
  float top;
  __builtin_memcpy(&top, &bits, 4);
  const __m512 least = _mm512_set1_ps(top * kFarBelow);
  int64_t far_below =
      top == 0 ? 0 : columns - Steps * kDigitStep;  // of all that are counted here, these are no columns
#pragma GCC unroll 4
  for (int i = 0; i < kVectors; i += 2)
    far_below += __builtin_popcount(_mm512_kunpackw(_mm512_cmp_ps_mask(abs(v[i]).v, least, _CMP_LT_OQ),
                                                    _mm512_cmp_ps_mask(abs(v[i + 1]).v, least, _CMP_LT_OQ)));
  if (far_below > most_far_below(columns) || !(top <= kDigitTo) || (top < kDigitFrom && top != 0)) return -1;
  const F16 scale = set1(top > 0 ? kDigitMost / top : 0), offset = set1(static_cast<float>(0x808080));
#pragma GCC unroll 2
  for (int s = 0; s < Steps; ++s) {
    __m512i n[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) n[i] = _mm512_cvtps_epi32(fma(v[4 * s + i], scale, offset).v);
    put_digits(n, to + s * kDigits * kDigitTile);
  }
  return top * (1 / kDigitMost);
}

// Splits the rows of X tile by tile, row by row.
template <class X>
class Splitter {
 public:
  Splitter(const X& x, const PackedMatrix& m, const void* packed) : x_(x), m_(m), packed_(packed) {}

  // Next: rows [row, end) of K-block `block`, whose first column of X is `column`.
  SRR_INLINE void open(int64_t row, int64_t end, int64_t block, int64_t column, DigitRows* to) {
    first_ = row_ = row;
    end_ = end;
    column_ = column;
    count_ = at_most(m_.K - block * kBlockK, kBlockK);
    has_digits_ = *at_bytes(packed_, m_.scales_bytes() + 4 * block * m_.N_padded()) >= 0;
    to_ = to;
    to_->uneven_count = 0;
  }
  SRR_INLINE void one() {
    if (row_ == end_) return;
    const int64_t r = row_++ - first_;
    const float scale = has_digits_ ? split(row_at(x_, first_ + r) + column_, to_->digits + r * kDigitStep) : -1;
    to_->scale[r] = scale < 0 ? 0 : scale;
    if (scale < 0) to_->uneven[to_->uneven_count++] = r;
  }
  SRR_INLINE void all() {
    while (row_ < end_) one();
  }

 private:
  SRR_INLINE float split(const float* x, int8_t* to) const {
    return count_ % kDigitStep == 0 ? split_steps(x, to) : split_rest(x, to);
  }
  SRR_INLINE float split_steps(const float* x, int8_t* to) const {
    return count_ > kDigitStep ? split_digits<2>(x, count_, to) : split_digits<1>(x, count_, to);
  }

  __attribute__((noinline)) float split_rest(const float* x, int8_t* to) const {
    float padded[kBlockK] = {};
    for (int64_t i = 0; i < count_; ++i) padded[i] = x[i];
    return split_steps(padded, to);
  }

  const X& x_;
  const PackedMatrix& m_;
  const void* packed_;
  int64_t first_ = 0, row_ = 0, end_ = 0, column_ = 0, count_ = 0;
  bool has_digits_ = false;
  DigitRows* to_ = nullptr;
};

// Tile Y += tile X times tile W.
template <int Y, int X, int W>
SRR_INLINE void dot_digits() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(Y), "i"(X), "i"(W));
}

// The sums of a tile of rows and a panel: digits whose numbers add up to 0, 1 and 2. Products that wait for each other
// are kept apart. Calls meanwhile(i), i counting up from 0, kMeanwhile times a step: what vectors do while tiles
// multiply.
constexpr int64_t kMeanwhile = 2;
template <class Meanwhile>
SRR_INLINE void digit_sums(const int8_t* x, const int8_t* w, int64_t steps, int32_t* sums, Meanwhile&& meanwhile) {
  unrolled<kDigits>([](auto i) { zero_tile<i.value>(); });
  for (int64_t s = 0; s < steps; ++s, x += kDigits * kDigitTile, w += kDigits * kDigitTile) {
    load_tile<3>(x, kDigitStep);
    load_tile<6>(w, 4 * kPanel);
    dot_digits<0, 3, 6>();
    load_tile<7>(w + kDigitTile, 4 * kPanel);
    dot_digits<1, 3, 7>();
    load_tile<4>(x + kDigitTile, kDigitStep);
    dot_digits<2, 4, 7>();
    meanwhile(kMeanwhile * s);
    dot_digits<1, 4, 6>();
    load_tile<7>(w + 2 * kDigitTile, 4 * kPanel);
    dot_digits<2, 3, 7>();
    load_tile<5>(x + 2 * kDigitTile, kDigitStep);
    dot_digits<2, 5, 6>();
    meanwhile(kMeanwhile * s + 1);
  }
  unrolled<kDigits>([&](auto i) { store_tile<i.value>(sums + i.value * kTileHeight * kPanel, 4 * kPanel); });
}

// Sums on their way to Y.
struct DigitSums {
  const int32_t* sums;
  const float *row_scale, *scale;  // of each row; of the panel's columns
  int64_t rows;
  float* y;
  bool add;
};

// Y (+)= what the sums stand for. Each of them fits float32.
__attribute__((noinline)) inline void put_digit_sums(const DigitSums& from, int64_t y_stride) {
  const F16 scale = load(from.scale), upper = set1(65536.0f), middle = set1(256.0f);
  const auto value = [&](int64_t r) {
    const auto sum = [&](int i) {
      return F16{_mm512_cvtepi32_ps(_mm512_load_si512(from.sums + (i * kTileHeight + r) * kPanel))};
    };
    return fma(sum(0), upper, fma(sum(1), middle, sum(2))) * set1(from.row_scale[r]);
  };
  float* y = from.y;
  for (int64_t r = 0; r < from.rows; ++r, y += y_stride)
    store(y, from.add ? fma(value(r), scale, load(y)) : value(r) * scale);
}

// Y (+)= the rows of a K-block that have no digits.
template <class X>
__attribute__((noinline)) void put_uneven(const X& x, int64_t row, const DigitRows& from, const PackedMatrix& m,
                                          const void* packed, Panels all, int64_t block, float* y, int64_t y_stride,
                                          bool add) {
  const float* rows[kTileHeight];
  for (int64_t i = 0; i < from.uneven_count; ++i) rows[i] = row_at(x, row + from.uneven[i]);
  const int64_t K = m.block_rows(block), panels = all.count();
  const float* w = at_bytes(packed, m.offset_bytes) + m.panel_index(block, all.first);
  float products[kTileHeight * kMaxPanels * kPanel];
  for (int64_t panel = 0; panel < panels; panel += kMaxPanels) {
    const int64_t width = at_most(panels - panel, kMaxPanels);
    gemm_panels(RowPointers{rows}, from.uneven_count, w + panel * K * kPanel, K * kPanel, kPanel, K, width, products,
                width * kPanel, false);
    for (int64_t i = 0; i < from.uneven_count; ++i)
      for (int64_t c = 0; c < width * kPanel; c += kPanel) {
        float* at = y + from.uneven[i] * y_stride + panel * kPanel + c;
        store(at, (add ? load(at) : zero()) + load(products + i * width * kPanel + c));
      }
  }
}

// Y[r] (+)= X[r] W^T over K-blocks [block, end) of a packed float32 matrix; X's first column is the first block's first
// row. While the tiles of one K-block are multiplied, the rows of the next are split and the sums before are put to Y.
template <class X>
inline void gemm_digits(Tiles& tiles, const X& x, int64_t rows, const PackedMatrix& m, const void* packed,
                        Panels panels, int64_t block, int64_t end, float* y, int64_t y_stride, bool add) {
  DigitRows split[2];
  alignas(64) int32_t sums[2][kDigitSums];
  const int64_t row_tiles = (rows + kTileHeight - 1) / kTileHeight;
  if (rows <= 0) return;
  const int64_t height = (rows + row_tiles - 1) / row_tiles, turns = (end - block) * row_tiles;
  tiles.shape(height, height);
  Splitter<X> splitter(x, m, packed);
  const auto open = [&](int64_t turn) {
    const int64_t row = turn % row_tiles * height, k = turn / row_tiles;
    splitter.open(row, at_most(rows, row + height), block + k, k * kBlockK, split + turn % 2);
  };
  DigitSums ready{};
  const auto put = [&] {
    if (ready.sums != nullptr) put_digit_sums(ready, y_stride);
    ready.sums = nullptr;
  };
  open(0);
  splitter.all();
  for (int64_t turn = 0, next_sums = 0; turn < turns; ++turn) {
    const int64_t row = turn % row_tiles * height, k = turn / row_tiles, here = block + k;
    const int64_t steps = m.digit_steps(here);
    const int8_t* w = reinterpret_cast<const int8_t*>(at_bytes(packed, m.digits_bytes(here, 0)));
    const float* scales = at_bytes(packed, m.scales_bytes()) + here * m.N_padded();
    const DigitRows& from = split[turn % 2];
    const int64_t count = at_most(rows - row, height);
    const bool added = add || k > 0, digits = from.uneven_count < count;
    if (turn + 1 < turns) open(turn + 1);
    for (int64_t panel = panels.first; panel < panels.end && digits; ++panel, next_sums ^= 1) {
      digit_sums(from.digits, w + panel * steps * kDigits * kDigitTile, steps, sums[next_sums], [&](int64_t i) {
        splitter.one();
        if (i == 1) put();
      });
      ready = {sums[next_sums],
               from.scale,
               scales + panel * kPanel,
               count,
               y + row * y_stride + (panel - panels.first) * kPanel,
               added};
    }
    splitter.all();
    put();
    if (from.uneven_count > 0)
      put_uneven(from_column(x, k * kBlockK), row, from, m, packed, panels, here, y + row * y_stride, y_stride,
                 added || digits);
  }
}

// The same for any packed matrix; at most kMostRows rows.
template <class X>
inline void gemm_blocks(Tiles& tiles, const X& x, int64_t rows, const PackedMatrix& m, const void* packed,
                        Panels panels, int64_t block, int64_t end, float* y, int64_t y_stride, bool add) {
  if (!m.bf16) return gemm_digits(tiles, x, rows, m, packed, panels, block, end, y, y_stride, add);
  for (int64_t b = block; b < end; ++b)
    gemm_block(tiles, from_column(x, (b - block) * kBlockK), rows, m, packed, panels, b, y, y_stride, add || b > block);
}
