// SPDX-License-Identifier: Apache-2.0
// Sums the tokens of spans, as blocks of any kernel do it, alone or together. Knows neither rankers nor lists; a span
// it cannot use is answered, never read.
#pragma once

#include "reduce.cuh"
#include "srr.h"
#include "vec.cuh"

namespace srr::cuda {

// Half-warps sum 256 bytes of a token each. Tokens of a row are dealt out to this many streams in turn, and the
// streams' sums are added in their order: a row's bits follow from its span alone.
constexpr int kTokenStreams = 32;
constexpr int kHalf = kWarp / 2;
constexpr int kHalves = kWarps * 2;
static_assert(kTokenStreams % kHalves == 0, "half-warps have equally many streams");
// Tokens a thread has under way before it adds the first.
constexpr int kTokensAtOnce = 8;

// Where pooled rows go. `weight` null: pool, out = total / weight. Otherwise: update, out += total, weight += added.
struct Sink {
  float* out;  // [M, d]
  int64_t stride;
  float* weight;  // [M]
};

enum class SpanState { kTokens, kEmpty, kOutside };

struct Span {
  int64_t start, stop;
  SpanState state;
};

__device__ inline Span span_of(const TokenSpans& in, int64_t m) {
  const int64_t* at = in.spans + m * in.span_stride;
  Span span{at[0], at[in.span_stop_stride], SpanState::kTokens};
  const bool inside = span.start >= 0 && span.start <= in.T && span.stop >= 0 && span.stop <= in.T;
  if (!inside)
    span.state = SpanState::kOutside;
  else if (span.stop <= span.start)
    span.state = SpanState::kEmpty;
  else if (in.pooling == Pooling::kLast)
    span.start = span.stop - 1;
  return span;
}

// What a row's weight becomes: by one thread of its blocks. `added`: the weight of its tokens.
__device__ inline void add_weight(const TokenSpans& in, const Sink& sink, int64_t m, SpanState state, float added) {
  if (state == SpanState::kOutside)
    sink.weight[m] = NAN;
  else if (state == SpanState::kTokens)
    sink.weight[m] = in.pooling == Pooling::kLast ? 1.0f : sink.weight[m] + added;
}

inline bool is_aligned(const TokenSpans& in) {
  return is_aligned(in.states, in.row_stride, in.dtype) && is_aligned(nullptr, in.token_stride, in.dtype);
}

// ---- gates ----------------------------------------------------------------------------------------------------

// Of every token of a packed buffer, [T], or of those in the spans of padded rows, [M, T].
__host__ __device__ inline int64_t gate_count(const TokenSpans& in) { return (in.row_stride == 0 ? 1 : in.M) * in.T; }

// w . x + b of a token, through a sigmoid; every lane gets it.
template <typename T>
__device__ float gate_of(const TokenSpans& in, const T* token, bool aligned) {
  using Piece = Slice<T>;
  float sum = 0.0f;
#pragma unroll 2
  for (int64_t first = 0; first < in.d; first += Piece::kColumns) {
    const Piece piece{first, in.d, aligned};
    float x[Piece::kPerLane];
    piece.load(token, x);
#pragma unroll
    for (int i = 0; i < Piece::kPerLane; ++i)
      if (piece.column(i) < in.d) sum = fmaf(x[i], in.gate[piece.column(i)], sum);
  }
  const float z = warp_reduce<Sum>(sum) + in.gate[in.d];
  return 1.0f / (1.0f + expf(z > kGateLimit ? -kGateLimit : z < -kGateLimit ? kGateLimit : -z));
}

// The gates of all tokens, a warp to each, by the blocks `rank` of `size`.
template <typename T>
__device__ void gate_tokens(const TokenSpans& in, float* gates, bool aligned, int64_t rank, int64_t size) {
  const bool packed = in.row_stride == 0;
#pragma unroll 1
  for (int64_t at = rank * kWarps + warp_id(); at < gate_count(in); at += size * kWarps) {
    const int64_t m = packed ? 0 : at / in.T, t = packed ? at : at % in.T;
    if (!packed) {
      const Span span = span_of(in, m);
      if (span.state != SpanState::kTokens || t < span.start || t >= span.stop) continue;
    }
    const float gate = gate_of(in, static_cast<const T*>(in.states) + m * in.row_stride + t * in.token_stride, aligned);
    if (lane_id() == 0) gates[at] = gate;
  }
}

// ---- tokens ---------------------------------------------------------------------------------------------------

// A block's items: a slice of the columns of a row.
template <typename T>
struct TokenSlices {
  using Piece = Slice<T, kHalf>;
  static_assert(Piece::kColumns <= kThreads, "a thread to a column");
  static constexpr int kSharedFloats = kTokenStreams * (Piece::kColumns + 1);  // of one item

  __host__ __device__ static int64_t of_row(int64_t d) {
    return d > 0 ? (d + Piece::kColumns - 1) / Piece::kColumns : 1;
  }
};
// Two items: a block sums one while it adds up the streams of the one before.
constexpr int64_t kPoolSharedBytes = 2 * sizeof(float) * TokenSlices<__half>::kSharedFloats;

// A thread's way through its block's items: streams of an item in turn, and a stream's tokens, kTokensAtOnce to a step.
// All threads of a block take the same steps.
template <typename T>
struct TokenSteps {
  using Slices = TokenSlices<T>;

  int64_t item;
  int m, slice;
  Span span;
  int pass;    // of the half-warp's streams
  int64_t t0;  // stream 0's next token

  __device__ int stream() const { return pass * kHalves + static_cast<int>(threadIdx.x) / kHalf; }
  __device__ bool ends_stream() const {
    return span.state != SpanState::kTokens || t0 + kTokensAtOnce * kTokenStreams >= span.stop;
  }
  __device__ bool ends_item() const { return ends_stream() && pass == kTokenStreams / kHalves - 1; }

  __device__ void begin(const TokenSpans& in, int64_t at) {
    const int64_t slices = Slices::of_row(in.d);
    item = at;
    m = static_cast<int>(at / slices);
    slice = static_cast<int>(at % slices);
    pass = 0;
    if (item < in.M * slices) span = span_of(in, m);
    t0 = span.start;
  }
  __device__ void next(const TokenSpans& in, int64_t size) {
    if (ends_item())
      begin(in, item + size);
    else if (ends_stream())
      ++pass, t0 = span.start;
    else
      t0 += kTokensAtOnce * kTokenStreams;
  }
};

// Where a thread finds the tokens of its steps.
template <typename T>
struct TokenSource {
  using Piece = typename TokenSlices<T>::Piece;

  const TokenSpans& in;
  const float* gates;  // null where tokens weigh 1
  bool aligned;

  __device__ Piece piece(const TokenSteps<T>& at) const { return {int64_t{at.slice} * Piece::kColumns, in.d, aligned}; }
  __device__ const T* row(const TokenSteps<T>& at) const {
    return static_cast<const T*>(in.states) + at.m * in.row_stride;
  }
  __device__ float gate(const TokenSteps<T>& at, int64_t t) const {
    return gates ? gates[(in.row_stride == 0 ? 0 : int64_t{at.m} * in.T) + t] : 1.0f;
  }
};

// The tokens of a step on their way, where they can be read 16 bytes at a time; others are read when they are added.
template <typename T>
struct TokensUnderWay {
  using Piece = typename TokenSlices<T>::Piece;

  uint4 raw[kTokensAtOnce];
  float gate[kTokensAtOnce];  // 0: no token

  __device__ void load(const TokenSource<T>& from, const TokenSteps<T>& at) {
    const Piece piece = from.piece(at);
    const T* row = from.row(at) + piece.column(0);
    const bool any = piece.vector() && at.span.state == SpanState::kTokens;
#pragma unroll
    for (int i = 0; i < kTokensAtOnce; ++i) {
      const int64_t t = at.t0 + at.stream() + i * kTokenStreams;
      const bool in_span = any && t < at.span.stop;
      raw[i] = make_uint4(0, 0, 0, 0);
      if (in_span) raw[i] = *reinterpret_cast<const uint4*>(row + t * from.in.token_stride);
      gate[i] = in_span ? from.gate(at, t) : 0.0f;
    }
  }

  __device__ void add_to(const TokenSource<T>& from, const TokenSteps<T>& at, float (&sum)[Piece::kPerLane],
                         float& weight) const {
    const Piece piece = from.piece(at);
    if (piece.vector()) {
#pragma unroll
      for (int i = 0; i < kTokensAtOnce; ++i) {
        T values[Piece::kPerLane];
        memcpy(values, &raw[i], sizeof values);
        weight += gate[i];
#pragma unroll
        for (int c = 0; c < Piece::kPerLane; ++c) sum[c] = fmaf(gate[i], to_float(values[c]), sum[c]);
      }
    } else if (at.span.state == SpanState::kTokens) {
#pragma unroll 1
      for (int64_t i = 0, t = at.t0 + at.stream(); i < kTokensAtOnce && t < at.span.stop; ++i, t += kTokenStreams) {
        float x[Piece::kPerLane];
        piece.load(from.row(at) + t * from.in.token_stride, x);
        const float g = from.gate(at, t);
        weight += g;
#pragma unroll
        for (int c = 0; c < Piece::kPerLane; ++c) sum[c] = fmaf(g, x[c], sum[c]);
      }
    }
  }
};

// All rows, by the blocks `rank` of `size`. `gates`: null where tokens weigh 1. Each step's tokens are fetched while
// those of the step before are added, across items too. shared: kPoolSharedBytes; the caller's barrier comes after.
template <typename T>
__device__ void pool_tokens(const TokenSpans& in, const Sink& sink, const float* gates, bool aligned, int64_t rank,
                            int64_t size, float* shared) {
  using Slices = TokenSlices<T>;
  using Piece = typename Slices::Piece;
  const int64_t items = in.M * Slices::of_row(in.d);
  if (rank >= items) return;
  const TokenSource<T> from{in, gates, aligned};
  TokenSteps<T> at{};
  TokensUnderWay<T> next;
  at.begin(in, rank);
  next.load(from, at);
  float* sums = shared;  // [kTokenStreams, Piece::kColumns], then their weights
  float sum[Piece::kPerLane] = {}, weight = 0.0f;
#pragma unroll 1
  while (at.item < items) {
    const TokensUnderWay<T> tokens = next;
    const TokenSteps<T> here = at;
    at.next(in, size);
    if (at.item < items) next.load(from, at);
    tokens.add_to(from, here, sum, weight);
    if (!here.ends_stream()) continue;

    const Piece piece = from.piece(here);
#pragma unroll
    for (int i = 0; i < Piece::kPerLane; ++i) {
      sums[here.stream() * Piece::kColumns + piece.column(i) - piece.first] = sum[i];
      sum[i] = 0.0f;
    }
    float* weights = sums + kTokenStreams * Piece::kColumns;
    if (Piece::lane() == 0) weights[here.stream()] = weight;
    weight = 0.0f;
    if (!here.ends_item()) continue;
    __syncthreads();  // every stream's sums are in shared memory, and those of the item before have been read

    float total_weight = static_cast<float>(here.span.stop - here.span.start);
    if (gates && here.span.state == SpanState::kTokens) {
      total_weight = weights[0];
      for (int l = 1; l < kTokenStreams; ++l) total_weight += weights[l];
    }
    const int c = threadIdx.x;
    if (c < Piece::kColumns && piece.first + c < in.d) {
      float* out = sink.out + here.m * sink.stride + piece.first + c;
      if (here.span.state != SpanState::kTokens) {
        if (!sink.weight) *out = NAN;
      } else {
        float total = sums[c];
#pragma unroll 8
        for (int l = 1; l < kTokenStreams; ++l) total += sums[l * Piece::kColumns + c];
        *out = sink.weight ? *out + total : total / total_weight;
      }
    }
    if (sink.weight && here.slice == 0 && c == 0) add_weight(in, sink, here.m, here.span.state, total_weight);
    sums = sums == shared ? shared + Slices::kSharedFloats : shared;
  }
}

}  // namespace srr::cuda
