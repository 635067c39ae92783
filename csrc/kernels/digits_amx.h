// SPDX-License-Identifier: Apache-2.0
// float32 products on AMX, whose tiles multiply bytes twice as fast as bfloat16 and sum them without rounding. Rows of
// X become whole numbers of three signed bytes as the weights are in the packed ranker, a scale for each row and digit
// block. Of the nine products of digits the six largest are kept, each sum of the same weight in a tile of its own.
//
// What is left out is of one size in units of the scales, so that the sums themselves tell whether it matters: where
// those of a row and a panel are small, because large elements of one factor meet small ones of the other, that row and
// panel are multiplied as float32. Large language models have a few columns that are hundreds of times the others: such
// elements are set apart beforehand and multiplied as float32.
//
// The bits of a row depend on that row and W alone: its scale is its own, and sums of whole numbers have no order.

constexpr int64_t kDigitTile = kTileHeight * kDigitStep;  // bytes of one digit of a tile, of X or of W
constexpr int64_t kDigitSums = kDigits * kTileHeight * kPanel;
// Rows and columns whose largest magnitudes are a and b times their root mean squares give sums of 2^30 / (a b) times
// the square root of their length, if signs are as random ones. Of those of a panel at least half must be as large as
// half of them are where a b is kDigitSpreads: what is left out is then below 1e-6 of them.
constexpr float kDigitSpreads = 20;
SRR_INLINE float least_digit_sum(int64_t columns) {
  return 0.67f * 1073741824.0f / kDigitSpreads * __builtin_sqrtf(static_cast<float>(columns));
}
// Of a row with elements more than kStandOut times as large as the least of sixteen maxima, each of every sixteenth
// column, those beyond kApart times it are set apart, at most kMostApart.
constexpr float kStandOut = 8, kApart = 4;
constexpr int64_t kMostApart = 16;

// An element that is zero among the digits.
struct ApartElement {
  int32_t row, column;
  float value;
};

// The rows of a tile of X in one digit block.
struct DigitRows {
  alignas(64) int8_t digits[kDigitBlock / kDigitStep * kDigits * kDigitTile];  // [steps][kDigits][16 rows][64]
  float scale[kTileHeight];                                                    // negative where a row has no digits
  bool any;                                                                    // whether a row has digits
  ApartElement apart[kTileHeight * kMostApart];                                // by row
  int64_t apart_count;
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

SRR_INLINE __m512i magnitude_bits(F32x16 a) {
  return _mm512_castps_si512(abs(a).v);
}  // those of NaN are above all others
SRR_INLINE float float_of(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

// Digits of one row, v(i) its i-th sixteen columns, zeros behind the last; `top` is the largest magnitude. Returns its
// scale; where digits cannot hold it they are zero and the scale negative.
template <int Steps, class Vectors>
SRR_INLINE float put_row_digits(Vectors&& v, float top, int8_t* to) {
  if (top != 0 && !(top >= kDigitFrom && top <= kDigitTo)) {
    for (int i = 0; i < Steps * kDigits; ++i) _mm512_store_si512(to + i * kDigitTile, _mm512_setzero_si512());
    return -1;
  }
  const F32x16 scale = set1(top > 0 ? kDigitMost / top : 0), offset = set1(static_cast<float>(0x808080));
#pragma GCC unroll 8
  for (int s = 0; s < Steps; ++s) {
    __m512i n[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) n[i] = _mm512_cvtps_epi32(fma(v(4 * s + i), scale, offset).v);
    put_digits(n, to + s * kDigits * kDigitTile);
  }
  return top * (1 / kDigitMost);
}

// The same for a row of one or two steps, which stays in registers.
template <int Steps>
__attribute__((noinline)) float split_short(const float* x, int8_t* to) {
  constexpr int kVectors = Steps * kDigitStep / 16;
  F32x16 v[kVectors];
  __m512i most[4];
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) {
    v[i] = load(x + 16 * i);
    most[i % 4] = i < 4 ? magnitude_bits(v[i]) : _mm512_max_epu32(most[i % 4], magnitude_bits(v[i]));
  }
  const __m512i largest = _mm512_max_epu32(_mm512_max_epu32(most[0], most[1]), _mm512_max_epu32(most[2], most[3]));
  return put_row_digits<Steps>([&](int i) { return v[i]; }, float_of(_mm512_reduce_max_epu32(largest)), to);
}

// Splits the rows of X tile by tile, row by row.
template <class X>
class Splitter {
 public:
  Splitter(const X& x, const PackedMatrix& m, const void* packed) : x_(x), m_(m), packed_(packed) {}

  // Next: rows [row, end) of digit block `block`, whose first column of X is `column`.
  SRR_INLINE void open(int64_t row, int64_t end, int64_t block, int64_t column, DigitRows* to) {
    first_ = row_ = row;
    end_ = end;
    column_ = column;
    columns_ = m_.digit_rows(block);
    has_digits_ = *at_bytes(packed_, m_.scales_bytes() + 4 * block * m_.N_padded()) >= 0;
    to_ = to;
    to_->apart_count = 0;
    to_->any = false;
    if (is_long()) look_at_next();
  }
  SRR_INLINE void one() {
    if (row_ == end_) return;
    const int64_t r = row_++ - first_;
    int8_t* to = to_->digits + r * kDigitStep;
    const float scale = !has_digits_ ? -1 : is_long() ? split_long(to) : split(row_at(x_, row_ - 1) + column_, to);
    to_->scale[r] = scale;
    to_->any |= scale >= 0;
    if (is_long() && row_ < end_) look_at_next();
  }
  SRR_INLINE void all() {
    while (row_ < end_) one();
  }

 private:
  static constexpr int kLong = kDigitBlock / kDigitStep;
  SRR_INLINE bool is_long() const { return columns_ > 2 * kDigitStep; }

  SRR_INLINE float split(const float* x, int8_t* to) {
    if (columns_ % kDigitStep != 0) x = copy(x);
    return columns_ > kDigitStep ? split_short<2>(x, to) : split_short<1>(x, to);
  }

  // The largest magnitude of the next row and what may be set apart, found early: nothing waits for it then.
  __attribute__((noinline)) void look_at_next() {
    if (!has_digits_) return;
    from_ = row_at(x_, row_) + column_;
    if (columns_ < kDigitBlock) from_ = copy(from_);
    __m512i most[4] = {};
    for (const float* x = from_; x < from_ + kDigitBlock; x += kDigitStep)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        most[i] = _mm512_max_epu32(most[i], magnitude_bits(load(x + 16 * i)));
        __builtin_prefetch(x + 16 * i + kDigitBlock, 0, 2);
      }
    const __m512i largest = _mm512_max_epu32(_mm512_max_epu32(most[0], most[1]), _mm512_max_epu32(most[2], most[3]));
    top_ = float_of(_mm512_reduce_max_epu32(largest));
    low_ = float_of(_mm512_reduce_min_epu32(largest));
  }

  __attribute__((noinline)) float split_long(int8_t* to) {
    if (top_ > kStandOut * low_ && top_ <= kDigitTo) set_apart();
    return put_row_digits<kLong>([&](int i) { return load(from_ + 16 * i); }, top_, to);
  }

  // Sets apart what is larger than kApart * low_; top_ is then the largest of the others. Does nothing where it is too
  // much.
  __attribute__((noinline)) void set_apart() {
    const __m512 limit = _mm512_set1_ps(kApart * low_);
    const int32_t row = static_cast<int32_t>(row_ - 1 - first_);
    ApartElement* to = to_->apart + to_->apart_count;
    int64_t count = 0;
    F32x16 top = zero();
    for (int32_t i = 0; i < kDigitBlock; i += 16) {
      const F32x16 v = load(from_ + i);
      uint32_t large = _mm512_cmp_ps_mask(abs(v).v, limit, _CMP_GT_OQ);
      const F32x16 rest = {_mm512_maskz_mov_ps(static_cast<__mmask16>(~large), v.v)};
      top = max(top, abs(rest));
      if (count + __builtin_popcount(large) > kMostApart) return;
      for (; large != 0; large &= large - 1) {
        const int32_t column = i + __builtin_ctz(large);
        to[count++] = {row, column, from_[column]};
      }
      store(rest_ + i, rest);
    }
    to_->apart_count += count;
    top_ = max_lane(top);
    from_ = rest_;
  }

  // The row with zeros behind its columns.
  SRR_INLINE const float* copy(const float* from) {
    for (int64_t i = 0; i < kDigitBlock; ++i) padded_[i] = i < columns_ ? from[i] : 0;
    return padded_;
  }

  const X& x_;
  const PackedMatrix& m_;
  const void* packed_;
  int64_t first_ = 0, row_ = 0, end_ = 0, column_ = 0, columns_ = 0;
  bool has_digits_ = false;
  DigitRows* to_ = nullptr;
  // Of the next row, where it is long.
  const float* from_ = nullptr;
  float top_ = 0, low_ = 0;
  float padded_[kDigitBlock], rest_[kDigitBlock];
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

// Sums of a tile of rows and a panel on their way to Y.
struct DigitSums {
  const int32_t* sums;
  const DigitRows* rows;
  int64_t row, count, block, panel;
  float* y;
  bool add;
};

// Y (+)= the products in float32 of the rows that `which` has bits of.
template <class X>
__attribute__((noinline)) void put_products(const DigitSums& from, uint32_t which, const X& x, const PackedMatrix& m,
                                            const void* packed, int64_t y_stride) {
  const float* rows[kTileHeight];
  float* y[kTileHeight];
  int64_t count = 0;
  for (; which != 0; which &= which - 1) {
    const int64_t r = __builtin_ctz(which);
    rows[count] = row_at(x, from.row + r);
    y[count++] = from.y + r * y_stride;
  }
  const int64_t first = from.block * kDigitBlock / kBlockK;
  float products[kTileHeight * kPanel];
  for (int64_t b = first; b < at_most(m.blocks(), first + kDigitBlock / kBlockK); ++b) {
    gemm_block_f32(RowPointers{rows, (b - first) * kBlockK}, count, m, packed, Panels{from.panel, from.panel + 1}, b,
                   products, kPanel, false);
    for (int64_t i = 0; i < count; ++i) {
      const F32x16 before = from.add || b > first ? load(y[i]) : zero();
      store(y[i], before + load(products + i * kPanel));
    }
  }
}

// Y += products of the elements set apart, but for the rows that `but` has bits of.
__attribute__((noinline)) inline void put_apart(const DigitSums& from, uint32_t but, const PackedMatrix& m,
                                                const void* packed, int64_t y_stride) {
  for (int64_t i = 0; i < from.rows->apart_count; ++i) {
    const ApartElement& e = from.rows->apart[i];
    if (but >> e.row & 1) continue;
    float* y = from.y + e.row * y_stride;
    const int64_t at = m.index(from.block * kDigitBlock + e.column, from.panel * kPanel);
    store(y, fma(set1(e.value), load(at_bytes(packed, m.offset_bytes) + at), load(y)));
  }
}

// Y (+)= what the sums stand for, or, for a row where they are too small, its products in float32. A sum fits float32.
template <class X>
__attribute__((noinline)) void put_digit_sums(const DigitSums& from, const X& x, const PackedMatrix& m,
                                              const void* packed, int64_t y_stride) {
  const float* scales = at_bytes(packed, m.scales_bytes()) + from.block * m.N_padded() + from.panel * kPanel;
  const F32x16 scale = load(scales), upper = set1(65536.0f), middle = set1(256.0f);
  const __m512 least = _mm512_set1_ps(least_digit_sum(m.digit_rows(from.block)));
  const int columns = __builtin_popcount(_mm512_cmp_ps_mask(scale.v, _mm512_setzero_ps(), _CMP_GT_OQ));
  const int enough = (columns + 1) / 2;
  const float* row_scale = from.rows->scale;
  uint32_t failed = from.rows->any ? 0 : ~0u >> (32 - from.count);
  float* y = from.y;
  for (int64_t r = 0; r < from.count && from.rows->any; ++r, y += y_stride) {
    const auto sum = [&](int i) {
      return F32x16{_mm512_cvtepi32_ps(_mm512_load_si512(from.sums + (i * kTileHeight + r) * kPanel))};
    };
    const F32x16 whole = fma(sum(0), upper, fma(sum(1), middle, sum(2)));
    const int large = __builtin_popcount(_mm512_cmp_ps_mask(abs(whole).v, least, _CMP_GE_OQ));
    if (__builtin_expect(row_scale[r] < 0 || (large < enough && row_scale[r] != 0), 0)) {
      failed |= 1u << r;
      continue;
    }
    const F32x16 value = whole * set1(row_scale[r]);
    store(y, from.add ? fma(value, scale, load(y)) : value * scale);
  }
  if (failed != 0) put_products(from, failed, x, m, packed, y_stride);
  if (from.rows->apart_count != 0) put_apart(from, failed, m, packed, y_stride);
}

// Where the products of a block go.
struct DigitTarget {
  float* y;
  bool add;
};

// X[r] W^T over digit blocks [block, end) of a packed float32 matrix, the block at place i of them to target(i); X's
// first column is the first block's first row. While the tiles of one block are multiplied, the rows of the next are
// split and the sums before are put to Y.
template <class X, class Target>
inline void gemm_digits(Tiles& tiles, const X& x, int64_t rows, const PackedMatrix& m, const void* packed,
                        Panels panels, int64_t block, int64_t end, int64_t y_stride, Target&& target) {
  DigitRows split[2];
  alignas(64) int32_t sums[2][kDigitSums];
  const int64_t row_tiles = (rows + kTileHeight - 1) / kTileHeight;
  if (rows <= 0) return;
  const int64_t height = (rows + row_tiles - 1) / row_tiles, turns = (end - block) * row_tiles;
  tiles.shape(height, height);
  Splitter<X> splitter(x, m, packed);
  const auto open = [&](int64_t turn) {
    const int64_t row = turn % row_tiles * height, k = turn / row_tiles;
    splitter.open(row, at_most(rows, row + height), block + k, k * kDigitBlock, split + turn % 2);
  };
  DigitSums ready{};
  const auto put = [&] {
    if (ready.sums != nullptr)
      put_digit_sums(ready, from_column(x, (ready.block - block) * kDigitBlock), m, packed, y_stride);
    ready.sums = nullptr;
  };
  open(0);
  splitter.all();
  for (int64_t turn = 0, next_sums = 0; turn < turns; ++turn) {
    const int64_t row = turn % row_tiles * height, k = turn / row_tiles, here = block + k;
    const int64_t steps = m.digit_steps(here);
    const int8_t* w = reinterpret_cast<const int8_t*>(at_bytes(packed, m.digits_bytes(here, 0)));
    const DigitRows& from = split[turn % 2];
    // Rows are split one every so often, where there is time between them.
    const int64_t pause = kMeanwhile * steps * panels.count() / kTileHeight;
    int64_t wait = 0;
    const DigitTarget at = target(k);
    if (turn + 1 < turns) open(turn + 1);
    for (int64_t panel = panels.first; panel < panels.end; ++panel, next_sums ^= 1) {
      if (from.any)
        digit_sums(from.digits, w + panel * steps * kDigits * kDigitTile, steps, sums[next_sums], [&](int64_t i) {
          if (--wait < 0) {
            splitter.one();
            wait = pause - 1;
          }
          if (i == 1) put();
        });
      else
        put();
      ready = {sums[next_sums],
               &from,
               row,
               at_most(rows - row, height),
               here,
               panel,
               at.y + row * y_stride + (panel - panels.first) * kPanel,
               at.add};
    }
    splitter.all();
    put();
  }
}

// The same for any packed matrix, over K-blocks [block, end) that begin a digit block and end one; of a bfloat16 one at
// most kMostRows rows.
template <class X>
inline void gemm_blocks(Tiles& tiles, const X& x, int64_t rows, const PackedMatrix& m, const void* packed,
                        Panels panels, int64_t block, int64_t end, float* y, int64_t y_stride, bool add) {
  constexpr int64_t kBlocks = kDigitBlock / kBlockK;
  if (!m.bf16)
    return gemm_digits(tiles, x, rows, m, packed, panels, block / kBlocks, (end + kBlocks - 1) / kBlocks, y_stride,
                       [&](int64_t i) { return DigitTarget{y, add || i > 0}; });
  for (int64_t b = block; b < end; ++b)
    gemm_block(tiles, from_column(x, (b - block) * kBlockK), rows, m, packed, panels, b, y, y_stride, add || b > block);
}
