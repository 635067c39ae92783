// SPDX-License-Identifier: Apache-2.0
// Encoder layers of a tile: up to job.most_rows rows that one block takes from q, k and v to the layer's output. Knows
// rows and the keys they attend to, not lists. What a row gets depends on its keys only, never on the tile's others.
//
// Matrix products take their rows from shared memory as planes: piece 0 of every element, then pieces 1, then 2. Rows
// past the tile's are never stored; what lies there is nobody's business.
#pragma once

#include "job.cuh"
#include "reduce.cuh"

namespace srr::cuda {

constexpr float kNormEps = 1e-5f;
// Logits of a row that are kept; those of keys beyond are computed twice.
constexpr int kKeptLogits = 256;

// Elements from one row of a plane to the next: rows of a quarter-warp's 16-byte loads lie in different banks.
__host__ __device__ constexpr int plane_stride(int columns) { return (columns + 63) / 64 * 64 + 32; }

// The block's shared memory while it encodes. [rows] is job.most_rows throughout.
struct TileMemory {
  float* x;            // [rows, P]: the residual, or the input of a product
  float* y;            // [rows, P]: sums
  uint16_t* x_planes;  // planes [3, rows, plane_stride(P)]: x, or its norm
  uint16_t* chunk;     // planes [3, rows, plane_stride(kChunk)]: attention's output, or the hidden layer
  float* part_sums;    // [kWarps, rows, kTileColumns], in the place of chunk
  float* attention;    // [kWarps, E + kWarp + kKeptLogits]

  static __host__ __device__ constexpr int64_t bytes(int rows, int P, int E) {
    return int64_t{rows} * (8 * P + 6 * plane_stride(P) + 6 * plane_stride(kChunk)) +
           int64_t{kWarps} * (E + kWarp + kKeptLogits) * 4;
  }
  __device__ TileMemory(const ScoreJob& job, unsigned char* base) {
    const int rows = job.most_rows;
    x = reinterpret_cast<float*>(base);
    y = x + rows * job.P;
    x_planes = reinterpret_cast<uint16_t*>(y + rows * job.P);
    chunk = x_planes + kMostPieces * rows * plane_stride(job.P);
    part_sums = reinterpret_cast<float*>(chunk);
    attention = reinterpret_cast<float*>(chunk + kMostPieces * rows * plane_stride(kChunk));
  }
};
static_assert(kWarps * kTileColumns * 4 <= 2 * kMostPieces * plane_stride(kChunk),
              "parts' sums fit in the chunk's place");
// The largest rankers with tiles of 16 and of 8 rows.
static_assert(TileMemory::bytes(16, 128, 128) <= kMostSharedBytes, "16 rows");
static_assert(TileMemory::bytes(8, 512, 512) <= kMostSharedBytes, "8 rows");

// Two neighbouring elements of a row, the first at an even column.
__device__ inline void store_planes(uint16_t* planes, int rows, int stride, int row, int column, float v0, float v1) {
  uint32_t pieces[kMostPieces];
  split_pair(v0, v1, pieces);
#pragma unroll
  for (int i = 0; i < kMostPieces; ++i)
    *reinterpret_cast<uint32_t*>(planes + (i * rows + row) * stride + column) = pieces[i];
}

// Adds one tile of rows, `planes` on: its columns [0, width) times rows [row0, row0 + width) of a packed matrix,
// kChunkK at a time; row0 is a multiple of kChunkK. Every step-th of these is this warp's: the first, first + step ..
template <bool kBf16>
__device__ void add_product(LaneSums<1>& total, const LaneColumns& columns, const uint16_t* planes, int rows,
                            int stride, int row0, int width, int first, int step) {
#pragma unroll 1
  for (int k = first * kChunkK; k < width; k += step * kChunkK) {
    const int64_t block = (row0 + k) / kBlockK;
    const int in_block = static_cast<int>((row0 + k) % kBlockK);
    const auto load = [&](int at, uint32_t (&b)[1][kMostPieces][4]) {
      const int column = k + at - in_block + lane_k();
#pragma unroll
      for (int piece = 0; piece < kMostPieces; ++piece) {
        uint4 v = make_uint4(0, 0, 0, 0);
        if (column < width) v = *reinterpret_cast<const uint4*>(planes + (piece * rows + lane_row()) * stride + column);
        b[0][piece][0] = v.x;
        b[0][piece][1] = v.y;
        b[0][piece][2] = v.z;
        b[0][piece][3] = v.w;
      }
    };
    add_steps<kBf16, 1, kMostPieces, kChunkK / kStep>(total, columns.quad<kBf16>(block), in_block,
                                                      static_cast<int>(columns.matrix.block_rows(block)), 1, load);
  }
}

// The planes' whole product with a matrix; emit(row, column, sums) gets 4 neighbouring columns at a time. The warps
// take 32 columns in turn, from column tile `tile0` to `tile1`, and the tiles of rows one after another.
template <bool kBf16, typename Emit>
__device__ void tile_product(const ScoreJob& job, const PackedMatrix& matrix, const unsigned char* packed,
                             const uint16_t* planes, int tile0, int tile1, int rows, const Emit& emit) {
  const int stride = plane_stride(job.P);
#pragma unroll 1
  for (int tile = tile0 + warp_id(); tile < tile1; tile += kWarps) {
    const LaneColumns columns(matrix, packed, tile);
#pragma unroll 1
    for (int row0 = 0; row0 < rows; row0 += kTileRows) {
      LaneSums<1> sums;
      add_product<kBf16>(sums, columns, planes + row0 * stride, job.most_rows, stride, 0, job.P, 0, 1);
#pragma unroll
      for (int next = 0; next < 2; ++next) {
        const int row = row0 + lane_sum_row() + next;
        if (columns.exist && row < rows) emit(row, tile * kTileColumns + lane_column(), sums.row(0, next));
      }
    }
  }
}

// A product with a matrix of P columns whose rows come a chunk at a time. Up to 8 column tiles each have a warp, or as
// many as there are parts, which share the chunks' k's; more of them, up to 16, have half a warp. A warp has two sums:
// of both tiles of rows where its block has two, or of two column tiles. The parts' sums are added in their order.
template <bool kBf16>
struct ChunkedProduct {
  LaneSums<1> sums[2];
  int tiles, parts, part, tile;
  bool two_columns;

  __device__ explicit ChunkedProduct(const ScoreJob& job)
      : tiles((job.P + kTileColumns - 1) / kTileColumns),
        parts(tiles < kWarps ? kWarps / tiles : 1),
        part(tiles > kWarps ? 0 : warp_id() / tiles),
        tile(tiles > kWarps ? warp_id() : warp_id() % tiles),
        two_columns(tiles > kWarps) {}

  // Adds the chunk's columns [0, width), which meet the matrix's rows from row0 on.
  __device__ void add(const ScoreJob& job, const PackedMatrix& matrix, const unsigned char* packed,
                      const uint16_t* planes, int row0, int width, int rows) {
    if (part >= parts) return;
    constexpr int kStride = plane_stride(kChunk);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int column_tile = tile + (two_columns ? i * kWarps : 0), from = two_columns ? 0 : i * kTileRows;
      if (column_tile < tiles && from < rows)
        add_product<kBf16>(sums[i], LaneColumns(matrix, packed, column_tile), planes + from * kStride, job.most_rows,
                           kStride, row0, width, part, parts);
    }
  }

  // to[row, column] += the sums, in the order of the parts. Wants `to` and the chunk behind a barrier, leaves `to`
  // behind one.
  __device__ void finish(const ScoreJob& job, float* part_sums, int rows, float* to) {
    if (part < parts)
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int next = 0; next < 2; ++next) {
          const int row = (two_columns ? 0 : i * kTileRows) + lane_sum_row() + next;
          const int column = (tile + (two_columns ? i * kWarps : 0)) * kTileColumns + lane_column();
          if (row >= rows || column >= job.P) continue;
          const float4 v = sums[i].row(0, next);
          if (parts == 1) {
            float4* at = reinterpret_cast<float4*>(to + row * job.P + column);
            *at = make_float4(at->x + v.x, at->y + v.y, at->z + v.z, at->w + v.w);
          } else {
            const int at = (warp_id() * job.most_rows + row) * kTileColumns + lane_column();
            *reinterpret_cast<float4*>(part_sums + at) = v;
          }
        }
    __syncthreads();  // `to` is complete, or every part's sums are in shared memory
    if (parts == 1) return;
#pragma unroll 1
    for (int i = threadIdx.x; i < rows * job.P; i += kThreads) {
      const int row = i / job.P, column = i % job.P;
      const float* from = part_sums + (column / kTileColumns * job.most_rows + row) * kTileColumns;
      float v = from[column % kTileColumns];
#pragma unroll 1
      for (int l = 1; l < parts; ++l) v += from[l * tiles * job.most_rows * kTileColumns + column % kTileColumns];
      to[i] += v;
    }
    __syncthreads();  // `to` is complete; the sums may be overwritten
  }
};

// n floats, a multiple of 4, by one warp; zeros where `from` is null.
__device__ inline void warp_copy(float* to, const float* from, int n) {
#pragma unroll 1
  for (int i = 4 * lane_id(); i < n; i += 4 * kWarp)
    *reinterpret_cast<float4*>(to + i) =
        from ? *reinterpret_cast<const float4*>(from + i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}

// LayerNorm of a row in shared memory, in place, by one warp; what pads the row stays 0.
__device__ inline void warp_layer_norm(const ScoreJob& job, float* row, const float* weight, const float* bias) {
  const int p = static_cast<int>(job.params.layout.p);
  float sum = 0.0f;
#pragma unroll 1
  for (int i = lane_id(); i < p; i += kWarp) sum += row[i];
  const float mean = warp_reduce<Sum>(sum) / static_cast<float>(p);
  float squares = 0.0f;
#pragma unroll 1
  for (int i = lane_id(); i < p; i += kWarp) squares = fmaf(row[i] - mean, row[i] - mean, squares);
  const float rstd = 1.0f / sqrtf(warp_reduce<Sum>(squares) / static_cast<float>(p) + kNormEps);
#pragma unroll 1
  for (int i = lane_id(); i < p; i += kWarp) row[i] = fmaf((row[i] - mean) * rstd, weight[i], bias[i]);
  __syncwarp();  // the row is complete
}

// A row of x as planes, by the warp that has just written it.
__device__ inline void warp_to_planes(const ScoreJob& job, const float* row, int r, uint16_t* planes) {
#pragma unroll 1
  for (int i = 2 * lane_id(); i < job.P; i += 2 * kWarp)
    store_planes(planes, job.most_rows, plane_stride(job.P), r, i, row[i], row[i + 1]);
}

// q, k and v of the tile's rows from memory.x, which stays; row r of them goes to to(r) [3 HE]. Wants every row of x
// written by the warp that owns it: warp r % kWarps. Ends with shared memory read.
template <bool kBf16, typename To>
__device__ void tile_qkv(const ScoreJob& job, const TileMemory& memory, int layer, int rows, const To& to) {
  const PackedLayer& at = job.layer0;
  __syncwarp();  // the warp's rows are complete
#pragma unroll 1
  for (int r = warp_id(); r < rows; r += kWarps) {
    float* row = memory.x + r * job.P;
    if (job.params.layout.norm_first) {
      float* normed = memory.y + r * job.P;
      warp_copy(normed, row, job.P);
      __syncwarp();  // the copy is complete
      warp_layer_norm(job, normed, job.vector(at.norm1_weight_bytes, layer), job.vector(at.norm1_bias_bytes, layer));
      row = normed;
    }
    warp_to_planes(job, row, r, memory.x_planes);
  }
  __syncthreads();  // the planes are complete
  const float* bias = job.vector(at.qkv_bias_bytes, layer);
  const auto store = [&](int r, int n, float4 v) {
    const float4 b = *reinterpret_cast<const float4*>(bias + n);
    *reinterpret_cast<float4*>(to(r) + n) = make_float4(v.x + b.x, v.y + b.y, v.z + b.z, v.w + b.w);
  };
  tile_product<kBf16>(job, at.qkv, job.packed(layer), memory.x_planes, 0,
                      (3 * job.HE + kTileColumns - 1) / kTileColumns, rows, store);
  __syncthreads();  // the planes have been read
}

// What a row attends to: its own q, k, v at `own`; key 0 at `first`, key j > 0 at rest + (j - 1) * 3 HE, unless
// out[j - 1]. No keys: the row is not used.
struct Keys {
  const float *own, *first, *rest;
  const uint8_t* out;  // null: none is out
  int count;
};

// Attention of one row and head, by one warp: columns [c0, c1) of the head; out(i, v, next) gets columns c0 + i and
// c0 + i + 1. `memory`: [kWarps, E + kWarp + kKeptLogits] in shared memory. A lane per key for the logits, a lane per
// column for the mix, key after key. A key that is out weighs nothing, which changes no sum: the total is kept in units
// of 2^-40, as an integer.
template <int kSpans, typename Out>
__device__ void attend(const ScoreJob& job, float* memory, const Keys& keys, int head, int c0, int c1, const Out& out) {
  constexpr float kUnits = 1099511627776.0f;
  [[maybe_unused]] constexpr int kKeysAtOnce = 16 / kSpans;
  const int HE = job.HE, E = job.E;
  const int64_t stride = 3 * HE;
  float* q = memory + warp_id() * (E + kWarp + kKeptLogits);  // [E], scaled
  float* weights = q + E;                                     // [32], of the keys at hand
  float* kept = weights + kWarp;                              // [kKeptLogits]
  const float scale = 1.0f / sqrtf(static_cast<float>(job.params.layout.head_dim()));
  __syncwarp();  // the item before has been read
#pragma unroll 1
  for (int i = lane_id(); i < E; i += kWarp) q[i] = keys.own[head * E + i] * scale;
  __syncwarp();  // q is in shared memory

  const auto row_of = [&](int j) { return j == 0 ? keys.first : keys.rest + (j - 1) * stride; };
  const auto logit_of = [&](int j) {
    if (j >= keys.count || (j > 0 && keys.out && keys.out[j - 1])) return -INFINITY;
    const float* key = row_of(j) + HE + head * E;
    float4 dot = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
    for (int i = 0; i < E; i += 4) {
      const float4 k = *reinterpret_cast<const float4*>(key + i);
      const float4 v = *reinterpret_cast<const float4*>(q + i);
      dot.x = fmaf(v.x, k.x, dot.x);
      dot.y = fmaf(v.y, k.y, dot.y);
      dot.z = fmaf(v.z, k.z, dot.z);
      dot.w = fmaf(v.w, k.w, dot.w);
    }
    return (dot.x + dot.y) + (dot.z + dot.w);
  };

  float highest = -INFINITY;
#pragma unroll 1
  for (int j = lane_id(); j < keys.count; j += kWarp) {
    const float logit = logit_of(j);
    if (j < kKeptLogits) kept[j] = logit;
    highest = fmaxf(highest, logit);
  }
  highest = warp_reduce<Max>(highest);  // each lane reads back what it kept itself

  long long total = 0;  // this lane's keys only
  float mix[kSpans] = {};
#pragma unroll 1
  for (int j0 = 0; j0 < keys.count; j0 += kWarp) {
    const int j = j0 + lane_id();
    const float logit = j >= keys.count ? -INFINITY : j < kKeptLogits ? kept[j] : logit_of(j);
    const float weight = logit == -INFINITY ? 0.0f : expf(logit - highest);
    total += static_cast<long long>(weight * kUnits);
    weights[lane_id()] = weight;
    __syncwarp();  // the weights of these keys are in shared memory
    const int count = keys.count - j0 < kWarp ? keys.count - j0 : kWarp;
#pragma unroll kKeysAtOnce
    for (int t = 0; t < count; ++t) {
      const float* value = row_of(j0 + t) + 2 * HE + head * E + c0;
      const float w = weights[t];
#pragma unroll
      for (int s = 0; s < kSpans; ++s) {
        const int i = s * kWarp + lane_id();
        if (i < c1 - c0) mix[s] = fmaf(w, value[i], mix[s]);
      }
    }
    __syncwarp();  // the weights have been read and may be overwritten
  }
  const float sum = static_cast<float>(warp_reduce<Sum>(total)) / kUnits;
#pragma unroll
  for (int s = 0; s < kSpans; ++s) {
    const int i = s * kWarp + lane_id();
    const float v = i < c1 - c0 && keys.count > 0 ? mix[s] / sum : 0.0f;
    const float other = __shfl_xor_sync(kAllLanes, v, 1);
    if (i < c1 - c0 && lane_id() % 2 == 0) out(i, v, other);
  }
}

__device__ inline float gelu(float v) { return 0.5f * v * (1.0f + erff(v * 0.70710678118654752f)); }

// The rest of a layer: from q, k and v to the layer's output, in place of its input in memory.x. keys_of(r): what row r
// attends to. Wants x written by any warp, behind a barrier; leaves every row written by the warp that owns it.
template <bool kBf16, typename KeysOf>
__device__ void tile_rest(const ScoreJob& job, const TileMemory& memory, int layer, int rows, const KeysOf& keys_of) {
  const PackedLayer& at = job.layer0;
  const unsigned char* packed = job.packed(layer);
  const int P = job.P;

  ChunkedProduct<kBf16> attended(job);
#pragma unroll 1
  for (int k0 = 0; k0 < job.HE; k0 += kChunk) {
    const int width = job.HE - k0 < kChunk ? job.HE - k0 : kChunk;
    const int head0 = k0 / job.E, head1 = static_cast<int>(ceil_div(k0 + width, job.E)), count = head1 - head0;
#pragma unroll 1
    for (int item = warp_id(); item < rows * count; item += kWarps) {
      const int r = item / count, head = head0 + item % count, begin = head * job.E, end = begin + job.E;
      const int c0 = begin < k0 ? k0 : begin, c1 = end < k0 + width ? end : k0 + width;
      const Keys keys = keys_of(r);
      const auto out = [&](int i, float v, float next) {
        store_planes(memory.chunk, job.most_rows, plane_stride(kChunk), r, c0 - k0 + i, v, next);
      };
      if (c1 - c0 <= 2 * kWarp)
        attend<2>(job, memory.attention, keys, head, c0 - begin, c1 - begin, out);
      else
        attend<kChunk / kWarp>(job, memory.attention, keys, head, c0 - begin, c1 - begin, out);
    }
    __syncthreads();  // the chunk is complete
    attended.add(job, at.out, packed, memory.chunk, k0, width, rows);
    __syncthreads();  // the chunk has been read
  }
  const float* out_bias = job.vector(at.out_bias_bytes, layer);
#pragma unroll 1
  for (int i = threadIdx.x; i < rows * P; i += kThreads) memory.y[i] = memory.x[i] + out_bias[i % P];
  __syncthreads();  // y is what the product is added to
  attended.finish(job, memory.part_sums, rows, memory.y);

  // y: x plus attention. Post-norm: x = norm1(y) is both what feed-forward reads and its residual. Pre-norm: it reads
  // norm2(y), and y is the residual.
  const bool pre = job.params.layout.norm_first;
#pragma unroll 1
  for (int r = warp_id(); r < rows; r += kWarps) {
    float *x = memory.x + r * P, *y = memory.y + r * P;
    warp_copy(x, y, P);
    __syncwarp();  // the copy is complete
    warp_layer_norm(job, x, job.vector(pre ? at.norm2_weight_bytes : at.norm1_weight_bytes, layer),
                    job.vector(pre ? at.norm2_bias_bytes : at.norm1_bias_bytes, layer));
    warp_to_planes(job, x, r, memory.x_planes);
    const float* bias = job.vector(at.ffn2_bias_bytes, layer);
#pragma unroll 1
    for (int i = lane_id(); i < P; i += kWarp) y[i] = (pre ? y[i] : x[i]) + bias[i];
  }
  __syncthreads();  // wide is what feed-forward reads, y what its output is added to

  ChunkedProduct<kBf16> fed(job);
  const float* ffn1_bias = job.vector(at.ffn1_bias_bytes, layer);
#pragma unroll 1
  for (int n0 = 0; n0 < job.ffn; n0 += kChunk) {
    const int width = job.ffn - n0 < kChunk ? job.ffn - n0 : kChunk;
    const auto store = [&](int r, int n, float4 v) {
      const float4 b = *reinterpret_cast<const float4*>(ffn1_bias + n);
      const int stride = plane_stride(kChunk);
      store_planes(memory.chunk, job.most_rows, stride, r, n - n0, gelu(v.x + b.x), gelu(v.y + b.y));
      store_planes(memory.chunk, job.most_rows, stride, r, n - n0 + 2, gelu(v.z + b.z), gelu(v.w + b.w));
    };
    tile_product<kBf16>(job, at.ffn1, packed, memory.x_planes, n0 / kTileColumns,
                        (n0 + width + kTileColumns - 1) / kTileColumns, rows, store);
    __syncthreads();  // the hidden chunk is complete
    fed.add(job, at.ffn2, packed, memory.chunk, n0, width, rows);
    __syncthreads();  // the chunk has been read
  }
  fed.finish(job, memory.part_sums, rows, memory.y);
#pragma unroll 1
  for (int r = warp_id(); r < rows; r += kWarps) {
    float *x = memory.x + r * P, *y = memory.y + r * P;
    warp_copy(x, y, P);
    __syncwarp();  // the copy is complete
    if (!pre) warp_layer_norm(job, x, job.vector(at.norm2_weight_bytes, layer), job.vector(at.norm2_bias_bytes, layer));
  }
}

}  // namespace srr::cuda
