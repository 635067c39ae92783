// SPDX-License-Identifier: Apache-2.0
// The projection of all rows, K-slice by K-slice, and its sum when a row is first read.

// The elements of columns [column, column + n) of a row of states, as fp32 at `to`.
template <class State>
SRR_INLINE void widen(const typename State::Bits* row, int64_t n, float* to) {
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) store(to + i, State::load16(row + i));
  for (; i < n; ++i) {
    float v[16];
    store(v, load_first<State>(row + i, 1));
    to[i] = v[0];
  }
}

// Where the states of a row lie, and the row from `column` on, as elements of their dtype.
SRR_INLINE const StateRows& rows_of(const ScoreParams& a, int64_t row) { return row < a.B ? a.inst : a.resp; }
template <class T>
SRR_INLINE const T* state_at(const ScoreParams& a, int64_t row, int64_t column) {
  const StateRows& from = rows_of(a, row);
  return static_cast<const T*>(from.data) + (row < a.B ? row : row - a.B) * from.stride + column;
}

#if defined(SRR_BF16_DOT)
// Where states and weights are bfloat16 the products are taken as they are; only an odd last column is copied, to
// stand beside a zero.
SRR_INLINE void project_block_dot(const ScoreParams& a, const ScorePlan& plan, int64_t block, int64_t row0,
                                  int64_t row1, unsigned char* scratch, float* partial, bool add) {
  const PackedMatrix m = a.layout.projection();
  const int64_t column = block * kBlockK, valid = at_most(a.layout.d - column, kBlockK);
  const uint16_t** pointers = reinterpret_cast<const uint16_t**>(scratch);
  uint16_t* copies = reinterpret_cast<uint16_t*>(scratch + 8 * plan.row_group);
  for (int64_t r = row0; r < row1; ++r) {
    const uint16_t* row = state_at<uint16_t>(a, r, column);
    if (valid % 2) {
      uint16_t* copy = copies + (r - row0) * kBlockK;
      for (int64_t i = 0; i < valid; ++i) copy[i] = row[i];
      copy[valid] = 0;
      row = copy;
    }
    pointers[r - row0] = row;
  }
  gemm_block_dot(DotPointers{pointers}, row1 - row0, m, a.packed, block, partial, plan.p, add);
}
#endif

// The first digit block of a K-slice, and its first K-block.
SRR_INLINE int64_t slice_digits(const PackedMatrix& m, const ScorePlan& plan, int64_t slice) {
  return m.digit_blocks() * slice / plan.slices;
}
SRR_INLINE int64_t slice_begin(const PackedMatrix& m, const ScorePlan& plan, int64_t slice) {
  return at_most(m.blocks(), slice_digits(m, plan, slice) * (kDigitBlock / kBlockK));
}

// partial[row - row0] = K-slice `slice` of strip `strip` of the projection of rows [row0, row1); no bias yet.
inline void project_slice(const ScoreParams& a, const ScorePlan& plan, int64_t slice, [[maybe_unused]] int64_t strip,
                          int64_t row0, int64_t row1, unsigned char* scratch, float* partial) {
  const PackedMatrix m = a.layout.projection();
  const int64_t block0 = slice_begin(m, plan, slice), block1 = slice_begin(m, plan, slice + 1);
  const float** pointers = reinterpret_cast<const float**>(scratch);
  float* widened = reinterpret_cast<float*>(scratch + 8 * plan.row_group);
  Tiles tiles;
#if defined(SRR_AMX)
  if (in_tiles(a)) {
    const Panels panels{strip * kStripPanels, at_most(plan.p / kPanel, (strip + 1) * kStripPanels)};
    TileRows parts[2];
    int64_t count = 0;
    for (int64_t r = row0; r < row1; r += parts[count++].rows) {
      const int64_t end = r < a.B ? at_most(a.B, row1) : row1;
      parts[count] = {state_at<uint16_t>(a, r, 0), rows_of(a, r).stride, end - r,
                      partial + (r - row0) * plan.p + panels.first * kPanel};
    }
    const bool few = count == 2 && row1 - row0 <= kTileHeight && (block1 < m.blocks() || m.K % kBlockK == 0);
    if (few)
      few_rows_dot(tiles, parts, m, a.packed, panels, block0, block1, plan.p);
    else
      gemm_blocks_dot(tiles, parts, count, m, a.packed, panels, block0, block1, plan.p);
    return;
  }
#endif
  if (a.inst.dtype == DType::kFloat32 && a.resp.dtype == DType::kFloat32) {
    for (int64_t r = row0; r < row1; ++r) pointers[r - row0] = state_at<float>(a, r, block0 * kBlockK);
    gemm_blocks(tiles, RowPointers{pointers}, row1 - row0, m, a.packed, all_panels(m), block0, block1, partial, plan.p,
                false);
    return;
  }
#if defined(SRR_BF16_DOT)
  if (m.bf16 && a.inst.dtype == DType::kBFloat16 && a.resp.dtype == DType::kBFloat16) {
    for (int64_t block = block0; block < block1; ++block)
      project_block_dot(a, plan, block, row0, row1, scratch, partial, block > block0);
    return;
  }
#endif
  for (int64_t block = block0; block < block1; block += kDigitBlock / kBlockK) {
    const int64_t column = block * kBlockK, valid = at_most(a.layout.d - column, kDigitBlock);
    for (int64_t r = row0; r < row1; ++r) {
      const DType dtype = rows_of(a, r).dtype;
      float* to = widened + (r - row0) * kDigitBlock;
      pointers[r - row0] = dtype == DType::kFloat32 ? state_at<float>(a, r, column) : to;
      if (dtype == DType::kFloat16) widen<StateF16>(state_at<uint16_t>(a, r, column), valid, to);
      if (dtype == DType::kBFloat16) widen<StateBF16>(state_at<uint16_t>(a, r, column), valid, to);
    }
    gemm_blocks(tiles, RowPointers{pointers}, row1 - row0, m, a.packed, all_panels(m), block,
                at_most(block1, block + kDigitBlock / kBlockK), partial, plan.p, block > block0);
  }
}

// K-slices [slice, end), plan.rows * plan.p floats apart.
inline void project(const ScoreParams& a, const ScorePlan& plan, int64_t slice, int64_t end, int64_t strip,
                    int64_t row0, int64_t row1, unsigned char* scratch, float* partial) {
  const int64_t distance = plan.rows * plan.p;
#if defined(SRR_AMX)
  // Without a break, so that rows of the next slice are split while tiles of this one are multiplied.
  if (!a.layout.bf16 && a.inst.dtype == DType::kFloat32 && a.resp.dtype == DType::kFloat32) {
    const PackedMatrix m = a.layout.projection();
    const int64_t first = slice_digits(m, plan, slice);
    const float** pointers = reinterpret_cast<const float**>(scratch);
    for (int64_t r = row0; r < row1; ++r) pointers[r - row0] = state_at<float>(a, r, first * kDigitBlock);
    Tiles tiles;
    gemm_digits(tiles, RowPointers{pointers}, row1 - row0, m, a.packed, all_panels(m), first,
                slice_digits(m, plan, end), plan.p, [&](int64_t i) {
                  int64_t here = slice;
                  while (slice_digits(m, plan, here + 1) <= first + i) ++here;
                  return DigitTarget{partial + (here - slice) * distance, first + i > slice_digits(m, plan, here)};
                });
    return;
  }
#endif
  for (int64_t s = slice; s < end; ++s, partial += distance)
    project_slice(a, plan, s, strip, row0, row1, scratch, partial);
}

// x = the projected state of `row`: its slices in order, plus the bias. Returns whether all of it is finite and at most
// kLargestProjected.
SRR_INLINE bool projected(const ScoreParams& a, const ScorePlan& plan, const float* partial, int64_t row, float* x) {
  const float* bias = at_bytes(a.packed, a.layout.projection_bias_bytes());
  F32x16 room = set1(0.0f);  // the least distance to the limit
  for (int64_t c = 0; c < plan.p; c += kPanel) {
    F32x16 v = load(partial + row * plan.p + c);
    for (int64_t s = 1; s < plan.slices; ++s) v = v + load(partial + (s * plan.rows + row) * plan.p + c);
    v = v + load(bias + c);
    store(x + c, v);
    room = min(room, set1(kLargestProjected) - abs(v));  // min(., NaN) is NaN
    room = where_positive(room, room, set1(-1.0f));
  }
  return not_negative(room);
}
