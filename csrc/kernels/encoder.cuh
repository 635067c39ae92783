// SPDX-License-Identifier: Apache-2.0
// One encoder layer over the slots of all sequences, in three launches: q, k and v of every slot; attention of every
// slot and head over its own sequence; the rest of the layer. Knows slots and sequences, not lists or candidates.
// What a slot gets depends on its sequence only, never on where its tile or its warp begins.
#pragma once

#include "matmul.cuh"
#include "reduce.cuh"
#include "score_workspace.cuh"

namespace srr::cuda {

constexpr float kNormEps = 1e-5f;
constexpr int kLayerWarps = 4;
constexpr int kLayerThreads = kLayerWarps * kWarp;
static_assert(kLayerWarps == kTileRows, "a warp per row where a row is normalised");

// What the launches of one layer share.
struct LayerArgs {
  PackedLayer layer;
  const unsigned char* packed;
  int64_t p, P;         // width, and padded to panels
  int64_t heads, e, E;  // heads, width of one, and padded to panels
  int64_t ffn_padded;
  bool norm_first;
  const Slot* slots;
  int64_t slot_count;
  SlotStates states;  // the layer's input
  float* x;           // [slots, P]: its output
  float* qkv;         // [slots, 3 * heads * E]

  __device__ int64_t HE() const { return heads * E; }
  __device__ const float* vector(int64_t offset_bytes) const {
    return reinterpret_cast<const float*>(packed + offset_bytes);
  }
};

// Loads the tile's states, 0 for slots that are not in use. False if none is: the same in every thread.
__device__ inline bool load_tile(const LayerArgs& a, int64_t slot0, float* x) {
  bool any = false;
  for (int r = 0; r < kTileRows; ++r) {
    const int64_t slot = slot0 + r;
    const bool used = slot < a.slot_count && a.slots[slot].row >= 0;
    any = any || used;
    const float* from = used ? a.states.of(a.slots, slot) : nullptr;
    for (int64_t i = threadIdx.x; i < a.P; i += kLayerThreads) x[r * a.P + i] = used ? from[i] : 0.0f;
  }
  return any;
}

// to = LayerNorm(from), by one warp; the padding of `to` becomes 0. `to` may be `from`.
__device__ inline void warp_layer_norm(const LayerArgs& a, const float* from, int64_t weight_bytes, int64_t bias_bytes,
                                       float* to) {
  const float *weight = a.vector(weight_bytes), *bias = a.vector(bias_bytes);
  float sum = 0.0f;
  for (int64_t i = lane_id(); i < a.p; i += kWarp) sum += from[i];
  const float mean = warp_reduce<Sum>(sum) / static_cast<float>(a.p);
  float squares = 0.0f;
  for (int64_t i = lane_id(); i < a.p; i += kWarp) squares = fmaf(from[i] - mean, from[i] - mean, squares);
  const float rstd = 1.0f / sqrtf(warp_reduce<Sum>(squares) / static_cast<float>(a.p) + kNormEps);
  for (int64_t i = lane_id(); i < a.P; i += kWarp)
    to[i] = i < a.p ? fmaf((from[i] - mean) * rstd, weight[i], bias[i]) : 0.0f;
}

// A block owns kTileRows slots.
template <bool kBf16>
__global__ void __launch_bounds__(kLayerThreads, 4) qkv_kernel(LayerArgs a) {
  SRR_DYNAMIC_SHARED(shared);
  float* x = reinterpret_cast<float*>(shared);  // [kTileRows, P]
  const int64_t slot0 = int64_t{blockIdx.x} * kTileRows;
  if (!load_tile(a, slot0, x)) return;
  __syncthreads();  // the tile is in shared memory
  if (a.norm_first) {
    float* row = x + warp_id() * a.P;
    warp_layer_norm(a, row, a.layer.norm1_weight_bytes, a.layer.norm1_bias_bytes, row);
    __syncthreads();  // every row is normalised
  }
  const PackedMatrix& matrix = a.layer.qkv;
  const float* bias = a.vector(a.layer.qkv_bias_bytes);
  const auto store = [&](int r, int64_t n, float2 y) {
    if (slot0 + r >= a.slot_count) return;
    *reinterpret_cast<float2*>(a.qkv + (slot0 + r) * 3 * a.HE() + n) = make_float2(y.x + bias[n], y.y + bias[n + 1]);
  };
  tile_product<kBf16>(matrix, a.packed, 0, matrix.blocks(), 0, matrix.N_padded() / kPanel, x, static_cast<int>(a.P),
                      store);
}

constexpr int64_t attention_shared_bytes(int64_t E) { return kLayerWarps * (E + kWarp) * 4; }

// A warp owns one head of one slot and walks its sequence, 32 keys at a time: a lane per key for the logits, a lane per
// kSpan columns of v for the mix. Softmax on line: sums so far are rescaled when the highest logit rises. The mix
// overwrites q, which nobody else reads.
template <int kSpan>
__global__ void __launch_bounds__(kLayerThreads, 4) attention_kernel(LayerArgs a) {
  SRR_DYNAMIC_SHARED(shared);
  float* q = reinterpret_cast<float*>(shared) + warp_id() * (a.E + kWarp);  // [E], scaled
  float* weights = q + a.E;                                                 // [32], of the keys at hand
  const int64_t item = int64_t{blockIdx.x} * kLayerWarps + warp_id();
  const int64_t slot = item / a.heads, head = item % a.heads;
  if (slot >= a.slot_count || a.slots[slot].row < 0) return;  // whole warps, and no barrier of the block follows

  const int64_t first = a.slots[slot].first, length = a.slots[slot].length;
  const int64_t HE = a.HE(), stride = 3 * HE;
  float* own = a.qkv + slot * stride + head * a.E;
  const float* keys = a.qkv + first * stride + HE + head * a.E;
  const float* values = keys + HE;
  const float scale = 1.0f / sqrtf(static_cast<float>(a.e));
  for (int64_t i = lane_id(); i < a.E; i += kWarp) q[i] = own[i] * scale;
  __syncwarp();  // q is in shared memory

  float highest = -INFINITY, total = 0.0f;  // total: this lane's keys only
  float mix[kSpan] = {};
  for (int64_t key0 = 0; key0 < length; key0 += kWarp) {
    float logit = -INFINITY;
    if (key0 + lane_id() < length) {
      const float* key = keys + (key0 + lane_id()) * stride;
      float4 dot = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      for (int64_t i = 0; i < a.E; i += 4) {
        const float4 k = *reinterpret_cast<const float4*>(key + i);
        dot.x = fmaf(q[i], k.x, dot.x);
        dot.y = fmaf(q[i + 1], k.y, dot.y);
        dot.z = fmaf(q[i + 2], k.z, dot.z);
        dot.w = fmaf(q[i + 3], k.w, dot.w);
      }
      logit = (dot.x + dot.y) + (dot.z + dot.w);
    }
    const float higher = fmaxf(highest, warp_reduce<Max>(logit));
    const float rescale = expf(highest - higher);
    const float weight = expf(logit - higher);
    highest = higher;
    total = fmaf(total, rescale, weight);
    weights[lane_id()] = weight;
    __syncwarp();  // the weights of these keys are in shared memory
#pragma unroll
    for (int s = 0; s < kSpan; ++s) mix[s] *= rescale;
    const int count = static_cast<int>(length - key0 < kWarp ? length - key0 : kWarp);
    for (int t = 0; t < count; ++t) {
      const float* value = values + (key0 + t) * stride;
#pragma unroll
      for (int s = 0; s < kSpan; ++s) {
        const int i = s * kWarp + lane_id();
        if (i < a.E) mix[s] = fmaf(weights[t], value[i], mix[s]);
      }
    }
    __syncwarp();  // the weights have been read and may be overwritten
  }
  total = warp_reduce<Sum>(total);
#pragma unroll
  for (int s = 0; s < kSpan; ++s) {
    const int i = s * kWarp + lane_id();
    if (i < a.E) own[i] = mix[s] / total;
  }
}

// Columns of attention's output, or of the hidden layer, held in shared memory at a time.
constexpr int kChunk = 512;
static_assert(kChunk % kBlockK == 0 && kChunk % kPanel == 0, "a chunk is whole K-blocks and whole panels");

constexpr int64_t rest_shared_bytes(int64_t P) { return kTileRows * (2 * P + kChunk) * 4; }

__device__ inline float gelu(float v) { return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f)); }

// A block owns kTileRows slots, from attention's output to the layer's: output projection, residual, norms, and the
// feed-forward net with its hidden layer a chunk at a time.
template <bool kBf16>
__global__ void __launch_bounds__(kLayerThreads, 4) rest_kernel(LayerArgs a) {
  SRR_DYNAMIC_SHARED(shared);
  float* x = reinterpret_cast<float*>(shared);  // [kTileRows, P]: the residual, then what feed-forward reads
  float* y = x + kTileRows * a.P;               // [kTileRows, P]: sums
  float* chunk = y + kTileRows * a.P;           // [kTileRows, kChunk]
  const int64_t slot0 = int64_t{blockIdx.x} * kTileRows, panels = a.P / kPanel, HE = a.HE();
  if (!load_tile(a, slot0, x)) return;
  for (int64_t i = threadIdx.x; i < kTileRows * a.P; i += kLayerThreads) y[i] = 0.0f;

  const auto add_to_y = [&](int r, int64_t n, float2 v) {
    y[r * a.P + n] += v.x;
    y[r * a.P + n + 1] += v.y;
  };
  for (int64_t k0 = 0; k0 < HE; k0 += kChunk) {
    const int64_t width = HE - k0 < kChunk ? HE - k0 : kChunk;
    __syncthreads();  // y is 0, or the chunk before has been read
    for (int r = 0; r < kTileRows; ++r) {
      const bool used = slot0 + r < a.slot_count && a.slots[slot0 + r].row >= 0;
      for (int64_t i = threadIdx.x; i < width; i += kLayerThreads)
        chunk[r * kChunk + i] = used ? a.qkv[(slot0 + r) * 3 * HE + k0 + i] : 0.0f;
    }
    __syncthreads();  // the chunk is in shared memory
    tile_product<kBf16>(a.layer.out, a.packed, k0 / kBlockK, ceil_div(width, kBlockK), 0, panels, chunk, kChunk,
                        add_to_y);
  }
  __syncthreads();  // y holds the whole output projection

  const float *out_bias = a.vector(a.layer.out_bias_bytes), *ffn1_bias = a.vector(a.layer.ffn1_bias_bytes),
              *ffn2_bias = a.vector(a.layer.ffn2_bias_bytes);
  float *row_x = x + warp_id() * a.P, *row_y = y + warp_id() * a.P;  // this warp's row, where rows are finished
  for (int64_t i = lane_id(); i < a.P; i += kWarp) row_y[i] += row_x[i] + out_bias[i];
  __syncwarp();  // the row's residual is complete
  if (a.norm_first) {
    warp_layer_norm(a, row_y, a.layer.norm2_weight_bytes, a.layer.norm2_bias_bytes, row_x);
  } else {
    warp_layer_norm(a, row_y, a.layer.norm1_weight_bytes, a.layer.norm1_bias_bytes, row_x);
    __syncwarp();  // the norm is complete
    for (int64_t i = lane_id(); i < a.P; i += kWarp) row_y[i] = row_x[i];
  }
  __syncthreads();  // x holds what feed-forward reads, y the residual, in every row

  for (int64_t n0 = 0; n0 < a.ffn_padded; n0 += kChunk) {
    const int64_t width = a.ffn_padded - n0 < kChunk ? a.ffn_padded - n0 : kChunk;
    const auto store_hidden = [&](int r, int64_t n, float2 v) {
      chunk[r * kChunk + n - n0] = gelu(v.x + ffn1_bias[n]);
      chunk[r * kChunk + n - n0 + 1] = gelu(v.y + ffn1_bias[n + 1]);
    };
    tile_product<kBf16>(a.layer.ffn1, a.packed, 0, a.layer.ffn1.blocks(), n0 / kPanel, width / kPanel, x,
                        static_cast<int>(a.P), store_hidden);
    __syncthreads();  // the hidden chunk is complete
    const int64_t block0 = n0 / kBlockK, blocks = a.layer.ffn2.blocks() - block0;
    tile_product<kBf16>(a.layer.ffn2, a.packed, block0, blocks < kChunk / kBlockK ? blocks : kChunk / kBlockK, 0,
                        panels, chunk, kChunk, add_to_y);
    __syncthreads();  // the chunk has been read; after the last, y is complete
  }

  for (int64_t i = lane_id(); i < a.P; i += kWarp) row_y[i] += ffn2_bias[i];
  __syncwarp();  // the row's sums are complete
  if (!a.norm_first) {
    warp_layer_norm(a, row_y, a.layer.norm2_weight_bytes, a.layer.norm2_bias_bytes, row_x);
    __syncwarp();  // the norm is complete
  }
  const int64_t slot = slot0 + warp_id();
  if (slot >= a.slot_count || a.slots[slot].row < 0) return;
  const float* result = a.norm_first ? row_y : row_x;
  for (int64_t i = lane_id(); i < a.P; i += kWarp) a.x[slot * a.P + i] = result[i];
}

}  // namespace srr::cuda
