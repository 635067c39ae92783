// SPDX-License-Identifier: Apache-2.0
// Products of a few fp32 rows in shared memory with a matrix of a packed ranker. Knows the packed format, and nothing
// of what the rows are. The order of every sum depends on the matrix's shape only.
#pragma once

#include "launch.cuh"
#include "srr.h"

namespace srr::cuda {

// Rows a block works on at once.
constexpr int kTileRows = 4;

// A warp's product of kTileRows rows with one panel of 16 columns. Lane l sums columns 4 (l % 4) .. + 3 over every 8th
// k, or pair of k where weights are 16 bits wide, starting at l / 4: a warp's load is 512 neighbouring bytes.
struct PanelProduct {
  static_assert(kTileRows == 4 && kPanel == 16, "the lanes' columns and halves below are laid out for these");

  float acc[kTileRows * 4] = {};

  // Adds one K-block. `x` is [kTileRows, ld] in shared memory, `panel` the block's first weight of this panel.
  template <bool kBf16>
  __device__ void add(const float* x, int ld, const void* panel, int rows) {
    const int quad = lane_id() % 4;
    if constexpr (kBf16) {
      const uint4* weights = static_cast<const uint4*>(panel);
      for (int k = lane_id() / 4 * 2; k < rows; k += 16) {
        const uint4 w = weights[k / 2 * 4 + quad];  // per column, row k in the low half and row k + 1 in the high half
        add_row(x + k, ld, low(w.x), low(w.y), low(w.z), low(w.w));
        add_row(x + k + 1, ld, high(w.x), high(w.y), high(w.z), high(w.w));
      }
    } else {
      const float4* weights = static_cast<const float4*>(panel);
      for (int k = lane_id() / 4; k < rows; k += 8) {
        const float4 w = weights[k * 4 + quad];
        add_row(x + k, ld, w.x, w.y, w.z, w.w);
      }
    }
  }

  // Sums over the lanes that share columns. Lane l ends with two neighbouring elements of the tile: row row(),
  // columns column() and column() + 1 of the panel.
  __device__ float2 sum() {
    halve<8>();
    halve<4>();
    halve<2>();
    return make_float2(acc[0], acc[1]);
  }
  __device__ static int row() { return (lane_id() & 16 ? 2 : 0) + (lane_id() & 8 ? 1 : 0); }
  __device__ static int column() { return lane_id() % 4 * 4 + (lane_id() & 4 ? 2 : 0); }

 private:
  __device__ static float low(unsigned word) { return __uint_as_float(word << 16); }
  __device__ static float high(unsigned word) { return __uint_as_float(word & 0xffff0000u); }

  __device__ void add_row(const float* x, int ld, float w0, float w1, float w2, float w3) {
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      const float v = x[r * ld];
      acc[r * 4 + 0] = fmaf(v, w0, acc[r * 4 + 0]);
      acc[r * 4 + 1] = fmaf(v, w1, acc[r * 4 + 1]);
      acc[r * 4 + 2] = fmaf(v, w2, acc[r * 4 + 2]);
      acc[r * 4 + 3] = fmaf(v, w3, acc[r * 4 + 3]);
    }
  }

  // Trades halves of 2 * kHalf sums with the lane 2 * kHalf away: the upper lane keeps the upper half.
  template <int kHalf>
  __device__ void halve() {
    const bool upper = lane_id() & (2 * kHalf);
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float give = upper ? acc[i] : acc[i + kHalf];
      const float keep = upper ? acc[i + kHalf] : acc[i];
      acc[i] = keep + __shfl_xor_sync(kAllLanes, give, 2 * kHalf);
    }
  }
};

template <bool kBf16>
__device__ const void* panel_of(const PackedMatrix& m, const void* packed, int64_t block, int64_t panel) {
  return static_cast<const unsigned char*>(packed) + m.offset_bytes + m.panel_index(block, panel) * (kBf16 ? 2 : 4);
}

// Panels [panel0, panel0 + panels) of x W^T, over K-blocks [block0, block0 + blocks); x[r * ld] is row r at the first
// of these blocks, 0 past the matrix's K. The block's warps take panels in turn; emit(row, column, y) gets every
// element of the tile's panels once, two neighbouring columns at a time, always in the same thread.
template <bool kBf16, typename Emit>
__device__ void tile_product(const PackedMatrix& m, const void* packed, int64_t block0, int64_t blocks, int64_t panel0,
                             int64_t panels, const float* x, int ld, const Emit& emit) {
  for (int64_t panel = panel0 + warp_id(); panel < panel0 + panels; panel += blockDim.x / kWarp) {
    PanelProduct product;
    for (int64_t block = block0; block < block0 + blocks; ++block)
      product.add<kBf16>(x + (block - block0) * kBlockK, ld, panel_of<kBf16>(m, packed, block, panel),
                         static_cast<int>(m.block_rows(block)));
    const float2 y = product.sum();
    emit(PanelProduct::row(), panel * kPanel + PanelProduct::column(), y);
  }
}

}  // namespace srr::cuda
