// SPDX-License-Identifier: Apache-2.0
// Scores candidate lists on a GPU: the launches of score(), in order. Knows what they leave for one another, not how
// they compute it; never looks at what device pointers hold.
#include "encoder.cuh"
#include "lists.cuh"
#include "project.cuh"
#include "score_workspace.cuh"
#include "srr.h"

namespace srr::cuda {
namespace {

bool supported(const ScoreParams& params) {
  const RankerLayout& layout = params.layout;
  constexpr int64_t kMaxSlots = 0x7fffffff;  // slots are numbered in 32 bits
  return layout.d > 0 && layout.p > 0 && layout.p <= kMaxProjDim && layout.heads > 0 && layout.layers >= 0 &&
         layout.ffn >= 0 && params.B >= 0 && params.M >= 0 && params.B + 2 * params.M <= kMaxSlots;
}

cudaError_t encode_layer(const LayerArgs& args, bool bf16, cudaStream_t stream) {
  const int64_t tiles = ceil_div(args.slot_count, kTileRows);
  const int64_t tile_bytes = kTileRows * args.P * static_cast<int64_t>(sizeof(float));
  cudaError_t error =
      launch(bf16 ? &qkv_kernel<true> : &qkv_kernel<false>, tiles, kLayerThreads, tile_bytes, stream, args);
  if (error != cudaSuccess) return error;

  const int64_t spans = ceil_div(args.E, kWarp);
  auto* attention = &attention_kernel<16>;
  if (spans <= 1)
    attention = &attention_kernel<1>;
  else if (spans <= 4)
    attention = &attention_kernel<4>;
  error = launch(attention, ceil_div(args.slot_count * args.heads, kLayerWarps), kLayerThreads,
                 attention_shared_bytes(args.E), stream, args);
  if (error != cudaSuccess) return error;

  return launch(bf16 ? &rest_kernel<true> : &rest_kernel<false>, tiles, kLayerThreads, rest_shared_bytes(args.P),
                stream, args);
}

cudaError_t run(const ScoreParams& params, void* workspace, cudaStream_t stream) {
  if (!supported(params)) return cudaErrorInvalidValue;
  const RankerLayout& layout = params.layout;
  const Workspace work = Workspace::of(params, workspace);
  const int64_t P = layout.p_padded();

  const bool inst_aligned = is_aligned(params.inst.data, params.inst.stride, params.inst.dtype);
  const bool resp_aligned = is_aligned(params.resp.data, params.resp.stride, params.resp.dtype);
  cudaError_t error = launch(layout.bf16 ? &project_kernel<true> : &project_kernel<false>,
                             ceil_div(work.rows, kTileRows) * (P / kPanel), kProjectThreads, kProjectSharedBytes,
                             stream, params, work, inst_aligned, resp_aligned);
  if (error != cudaSuccess || params.M == 0) return error;
  error = launch(&arrange_kernel, params.B, kListThreads, kListSharedBytes, stream, params, work);
  if (error != cudaSuccess) return error;

  SlotStates states{work.projected, P, true};
  for (int64_t i = 0; i < layout.layers; ++i) {
    LayerArgs args{};
    args.layer = layout.layer(i);
    args.packed = static_cast<const unsigned char*>(params.packed);
    args.p = layout.p;
    args.P = P;
    args.heads = layout.heads;
    args.e = layout.head_dim();
    args.E = layout.head_padded();
    args.ffn_padded = layout.ffn_padded();
    args.norm_first = layout.norm_first;
    args.slots = work.slots;
    args.slot_count = work.slot_count;
    args.states = states;
    args.x = work.x;
    args.qkv = work.qkv;
    error = encode_layer(args, layout.bf16, stream);
    if (error != cudaSuccess) return error;
    states = {work.x, P, false};
  }
  return launch(&finish_kernel, params.B, kListThreads, kListSharedBytes, stream, params, work, states);
}

}  // namespace
}  // namespace srr::cuda

namespace srr {

int64_t score_cuda_workspace_bytes(const ScoreParams& params) { return cuda::Workspace::of(params, nullptr).bytes; }

int score_cuda(const ScoreParams& params, void* workspace, void* stream) {
  return cuda::run(params, workspace, static_cast<cudaStream_t>(stream));
}

}  // namespace srr
