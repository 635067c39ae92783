// SPDX-License-Identifier: Apache-2.0
// Pools each row's span of token states into one fp32 row, at once or as an update of a running pool, on a GPU.
// Knows nothing of rankers or lists; a span it cannot use is answered, never read.
#include "launch.cuh"
#include "reduce.cuh"
#include "srr.h"
#include "vec.cuh"

namespace srr::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
// Tokens whose gates are known before their states are added.
constexpr int kGateTokens = 16;

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

__device__ Span span_of(const TokenSpans& in, int64_t m) {
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

// kLast and kMean. A block owns one slice of columns of one row; its warps take tokens in turn, each thread sums its
// columns in registers, and the warps' sums are added in the order of the warps. Reads T * 512 bytes per block.
template <typename T>
__global__ void __launch_bounds__(kThreads) pool_tokens_kernel(TokenSpans in, Sink sink, bool aligned) {
  using Slice = WarpSlice<T>;
  SRR_DYNAMIC_SHARED(shared);
  float* sums = reinterpret_cast<float*>(shared);  // [kWarps, Slice::kColumns]

  const int64_t slices = ceil_div(in.d, Slice::kColumns);
  const int64_t m = blockIdx.x / slices, s = blockIdx.x % slices;
  const Slice slice{s * Slice::kColumns, in.d, aligned};
  const Span span = span_of(in, m);
  const T* row = static_cast<const T*>(in.states) + m * in.row_stride;

  if (span.state == SpanState::kTokens) {
    float sum[Slice::kPerLane] = {};
#pragma unroll 4
    for (int64_t t = span.start + warp_id(); t < span.stop; t += kWarps) {
      float x[Slice::kPerLane];
      slice.load(row + t * in.token_stride, x);
#pragma unroll
      for (int i = 0; i < Slice::kPerLane; ++i) sum[i] += x[i];
    }
#pragma unroll
    for (int i = 0; i < Slice::kPerLane; ++i)
      sums[warp_id() * Slice::kColumns + slice.column(i) - slice.first] = sum[i];
  }
  __syncthreads();  // every warp's sums are in shared memory

  const float count = static_cast<float>(span.stop - span.start);
  for (int c = threadIdx.x; c < Slice::kColumns && slice.first + c < in.d; c += kThreads) {
    float* out = sink.out + m * sink.stride + slice.first + c;
    if (span.state != SpanState::kTokens) {
      if (!sink.weight) *out = NAN;
      continue;
    }
    float total = sums[c];
    for (int w = 1; w < kWarps; ++w) total += sums[w * Slice::kColumns + c];
    if (!sink.weight)
      *out = total / count;
    else if (in.pooling == Pooling::kLast)
      *out = total;
    else
      *out += total;
  }
  if (sink.weight && s == 0 && threadIdx.x == 0) {
    if (span.state == SpanState::kOutside)
      sink.weight[m] = NAN;
    else if (span.state == SpanState::kTokens)
      sink.weight[m] = in.pooling == Pooling::kLast ? 1.0f : sink.weight[m] + count;
  }
}

// w . x + b, through a sigmoid; every lane gets it.
template <typename T>
__device__ float gate_of(const TokenSpans& in, const T* token, bool aligned) {
  using Slice = WarpSlice<T>;
  float sum = 0.0f;
  for (int64_t first = 0; first < in.d; first += Slice::kColumns) {
    const Slice slice{first, in.d, aligned};
    float x[Slice::kPerLane];
    slice.load(token, x);
#pragma unroll
    for (int i = 0; i < Slice::kPerLane; ++i)
      if (slice.column(i) < in.d) sum = fmaf(x[i], in.gate[slice.column(i)], sum);
  }
  const float z = warp_reduce<Sum>(sum) + in.gate[in.d];
  return 1.0f / (1.0f + expf(z > kGateLimit ? -kGateLimit : z < -kGateLimit ? kGateLimit : -z));
}

// kGated. A block owns one row. In turns of kGateTokens tokens: its warps find the gates, a token each; then each
// warp adds the gated states to its slices of columns, from caches. The running total lives in the output row, whose
// columns each belong to one thread throughout.
template <typename T>
__global__ void __launch_bounds__(kThreads) pool_gated_kernel(TokenSpans in, Sink sink, bool aligned) {
  using Slice = WarpSlice<T>;
  SRR_DYNAMIC_SHARED(shared);
  float* gates = reinterpret_cast<float*>(shared);  // [kGateTokens]

  const int64_t m = blockIdx.x;
  const Span span = span_of(in, m);
  const T* row = static_cast<const T*>(in.states) + m * in.row_stride;
  float* out = sink.out + m * sink.stride;

  if (span.state != SpanState::kTokens) {
    if (!sink.weight)
      for (int64_t c = threadIdx.x; c < in.d; c += kThreads) out[c] = NAN;
    else if (span.state == SpanState::kOutside && threadIdx.x == 0)
      sink.weight[m] = NAN;
    return;  // the whole block: its threads read the same span
  }

  float weight = 0.0f;  // the same bits in every thread
  for (int64_t t0 = span.start; t0 < span.stop; t0 += kGateTokens) {
    const int tokens = static_cast<int>(span.stop - t0 < kGateTokens ? span.stop - t0 : kGateTokens);
    for (int t = warp_id(); t < tokens; t += kWarps) {
      const float gate = gate_of(in, row + (t0 + t) * in.token_stride, aligned);
      if (lane_id() == 0) gates[t] = gate;
    }
    __syncthreads();  // gates are complete
    for (int t = 0; t < tokens; ++t) weight += gates[t];
    const bool fresh = !sink.weight && t0 == span.start;
    const bool finish = !sink.weight && t0 + tokens == span.stop;
    for (int64_t first = warp_id() * Slice::kColumns; first < in.d; first += kWarps * Slice::kColumns) {
      const Slice slice{first, in.d, aligned};
      float sum[Slice::kPerLane] = {};
      for (int t = 0; t < tokens; ++t) {
        float x[Slice::kPerLane];
        slice.load(row + (t0 + t) * in.token_stride, x);
#pragma unroll
        for (int i = 0; i < Slice::kPerLane; ++i) sum[i] = fmaf(gates[t], x[i], sum[i]);
      }
#pragma unroll
      for (int i = 0; i < Slice::kPerLane; ++i) {
        const int64_t c = slice.column(i);
        if (c >= in.d) continue;
        const float total = fresh ? sum[i] : out[c] + sum[i];
        out[c] = finish ? total / weight : total;
      }
    }
    __syncthreads();  // gates have been read and may be overwritten
  }
  if (sink.weight && threadIdx.x == 0) sink.weight[m] += weight;
}

cudaError_t run(const TokenSpans& in, const Sink& sink, cudaStream_t stream) {
  if (in.M == 0 || (in.d == 0 && !sink.weight)) return cudaSuccess;
  const bool aligned = is_aligned(in.states, in.row_stride, in.dtype) && is_aligned(nullptr, in.token_stride, in.dtype);
  cudaError_t error = cudaErrorInvalidValue;
  with_dtype(in.dtype, [&](auto* type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    using Slice = WarpSlice<T>;
    if (in.pooling == Pooling::kGated) {
      error = launch(&pool_gated_kernel<T>, in.M, kThreads, kGateTokens * sizeof(float), stream, in, sink, aligned);
    } else {
      const int64_t shared_bytes = kWarps * Slice::kColumns * sizeof(float);
      error = launch(&pool_tokens_kernel<T>, in.M * ceil_div(in.d, Slice::kColumns), kThreads, shared_bytes, stream, in,
                     sink, aligned);
    }
  });
  return error;
}

}  // namespace
}  // namespace srr::cuda

namespace srr {

int pool_cuda(const PoolParams& params, void* stream) {
  return cuda::run(params.in, {params.out, params.out_stride, nullptr}, static_cast<cudaStream_t>(stream));
}

int pool_update_cuda(const PoolUpdateParams& params, void* stream) {
  return cuda::run(params.in, {params.acc, params.acc_stride, params.weight}, static_cast<cudaStream_t>(stream));
}

}  // namespace srr
