// SPDX-License-Identifier: Apache-2.0
// Pools each row's span of token states into one fp32 row, at once or as an update of a running pool, on a GPU.
#include "pool.cuh"

namespace srr::cuda {
namespace {

// Warps where every token is a row of its own: there is nothing to sum.
constexpr int kRowWarps = 4;
// On a multiprocessor.
constexpr int kGateBlocks = 3;
constexpr int kPoolBlocks = 2;

template <typename T>
__global__ void __launch_bounds__(kThreads, kGateBlocks) gate_kernel(TokenSpans in, float* gates, bool aligned) {
  gate_tokens<T>(in, gates, aligned, blockIdx.x, gridDim.x);
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kPoolBlocks)
    pool_tokens_kernel(TokenSpans in, Sink sink, const float* gates, bool aligned) {
  SRR_DYNAMIC_SHARED(shared);
  pool_tokens<T>(in, sink, gates, aligned, blockIdx.x, gridDim.x, reinterpret_cast<float*>(shared));
}

// Rows that hold one token at most: the last of the span, or the only one there is. A warp owns a slice of a row.
template <typename T>
__global__ void __launch_bounds__(kRowWarps* kWarp) pool_row_kernel(TokenSpans in, Sink sink, bool aligned) {
  using Piece = Slice<T>;
  const int64_t slices = ceil_div(ceil_div(in.d, Piece::kColumns), kRowWarps);
  const int64_t m = blockIdx.x / slices, s = blockIdx.x % slices;
  const Piece piece{(s * kRowWarps + warp_id()) * Piece::kColumns, in.d, aligned};
  const Span span = span_of(in, m);
  if (span.state == SpanState::kTokens || !sink.weight) {
    float x[Piece::kPerLane] = {};
    if (span.state == SpanState::kTokens)
      piece.load(static_cast<const T*>(in.states) + m * in.row_stride + span.start * in.token_stride, x);
    float* out = sink.out + m * sink.stride;
#pragma unroll
    for (int i = 0; i < Piece::kPerLane; ++i) {
      const int64_t c = piece.column(i);
      if (c >= in.d) continue;
      if (span.state != SpanState::kTokens)
        out[c] = NAN;
      else
        out[c] = sink.weight && in.pooling != Pooling::kLast ? out[c] + x[i] : x[i];
    }
  }
  if (sink.weight && s == 0 && threadIdx.x == 0) add_weight(in, sink, m, span.state, 1.0f);
}

cudaError_t run(const TokenSpans& in, const Sink& sink, float* gates, cudaStream_t stream) {
  if (in.M == 0 || (in.d == 0 && !sink.weight)) return cudaSuccess;
  if (in.M > kMaxGrid) return cudaErrorInvalidValue;
  Device device{};
  cudaError_t error = current_device(device);
  if (error != cudaSuccess) return error;
  const bool aligned = is_aligned(in), gated = in.pooling == Pooling::kGated;
  const auto blocks = [&](int64_t wanted, int at_once) {
    const int64_t most = int64_t{at_once} * device.multiprocessors;
    return wanted < most ? wanted : most;
  };
  error = cudaErrorInvalidValue;
  with_dtype(in.dtype, [&](auto* type) {
    using T = std::remove_const_t<std::remove_pointer_t<decltype(type)>>;
    if (!gated && (in.pooling == Pooling::kLast || in.T == 1)) {
      const int64_t slices = ceil_div(ceil_div(in.d, Slice<T>::kColumns), kRowWarps);
      error = launch(&pool_row_kernel<T>, in.M * (slices > 0 ? slices : 1), kRowWarps * kWarp, 0, stream, in, sink,
                     aligned);
      return;
    }
    error = cudaSuccess;
    if (gated)
      error = launch(&gate_kernel<T>, blocks(ceil_div(gate_count(in), kWarps), kGateBlocks), kThreads, 0, stream, in,
                     gates, aligned);
    if (error != cudaSuccess) return;
    error = launch(&pool_tokens_kernel<T>, blocks(in.M * TokenSlices<T>::of_row(in.d), kPoolBlocks), kThreads,
                   kPoolSharedBytes, stream, in, sink, static_cast<const float*>(gated ? gates : nullptr), aligned);
  });
  return error;
}

}  // namespace
}  // namespace srr::cuda

namespace srr {

int64_t pool_cuda_workspace_bytes(const TokenSpans& in) {
  return in.pooling == Pooling::kGated ? cuda::gate_count(in) * static_cast<int64_t>(sizeof(float)) : 0;
}

int pool_cuda(const PoolParams& params, void* workspace, void* stream) {
  return cuda::run(params.in, {params.out, params.out_stride, nullptr}, static_cast<float*>(workspace),
                   static_cast<cudaStream_t>(stream));
}

int pool_update_cuda(const PoolUpdateParams& params, void* workspace, void* stream) {
  return cuda::run(params.in, {params.acc, params.acc_stride, params.weight}, static_cast<float*>(workspace),
                   static_cast<cudaStream_t>(stream));
}

}  // namespace srr
