// SPDX-License-Identifier: Apache-2.0
// Schemas of the native ops and one body per op, which serves CPU, CUDA and Meta: check, allocate, launch.
#include "ops.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <cstdlib>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "checks.h"

#ifdef SRR_FAST_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace srr_fast {
namespace {

using MaybeOwned = c10::MaybeOwned<at::Tensor>;

constexpr std::initializer_list<at::ScalarType> kStates = {at::kFloat, at::kHalf, at::kBFloat16};
constexpr std::initializer_list<at::ScalarType> kFloat32 = {at::kFloat};
constexpr std::initializer_list<at::ScalarType> kInt64 = {at::kLong};
constexpr std::initializer_list<at::ScalarType> kUInt8 = {at::kByte};

srr::DType dtype_of(const at::Tensor& t) {
  return t.scalar_type() == at::kFloat  ? srr::DType::kFloat32
         : t.scalar_type() == at::kHalf ? srr::DType::kFloat16
                                        : srr::DType::kBFloat16;
}

srr::Pooling parse_pooling(const char* op, std::string_view pooling) {
  if (pooling == "last") return srr::Pooling::kLast;
  if (pooling == "mean") return srr::Pooling::kMean;
  if (pooling == "gated") return srr::Pooling::kGated;
  TORCH_CHECK_VALUE(false, op, ": pooling must be 'last', 'mean' or 'gated', got '", std::string(pooling), "'");
}

// The tensor itself where its last dimension is contiguous in memory, else a copy.
MaybeOwned dense_rows(const at::Tensor& t) {
  if (!t.is_neg() && (t.stride(-1) == 1 || t.size(-1) <= 1)) return MaybeOwned::borrowed(t);
  return MaybeOwned::owned(t.resolve_neg().contiguous());
}

MaybeOwned dense(const at::Tensor& t) {
  if (!t.is_neg() && t.is_contiguous()) return MaybeOwned::borrowed(t);
  return MaybeOwned::owned(t.resolve_neg().contiguous());
}

// The memory from the first to the last element of a tensor.
struct Range {
  const char *begin = nullptr, *end = nullptr;

  explicit Range(const at::Tensor& t) {
    if (t.numel() == 0) return;
    int64_t last = 0;
    for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
    begin = static_cast<const char*>(t.const_data_ptr());
    end = begin + (last + 1) * t.element_size();
  }
  bool meets(const Range& other) const { return begin < other.end && other.begin < end; }
};

bool ranges_meet(const at::Tensor& a, const at::Tensor& b) { return Range(a).meets(Range(b)); }

// Tells autograd that a tensor was written to.
void written(const at::Tensor& t) {
  if (!t.is_inference()) t.unsafeGetTensorImpl()->bump_version();
}

srr::StateRows rows_of(const at::Tensor& t) { return {t.const_data_ptr(), dtype_of(t), t.stride(0)}; }

void run_parallel(int64_t n, void (*body)(void*, int64_t), void* ctx) {
  at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(ctx, i);
  });
}

srr::Threads threads() {
  if (at::in_parallel_region()) return {};
  return {run_parallel, at::get_num_threads()};
}

// 64-byte aligned scratch that lives as long as its thread, so that a warm call allocates nothing. Beyond kKeepBytes
// it is given back after the call.
class Scratch {
 public:
  explicit Scratch(size_t bytes) {
    Buffer& kept = this_thread();
    if (bytes <= kept.bytes) {
      data_ = kept.data;
      return;
    }
    const size_t size = (bytes + 4095) / 4096 * 4096;
    data_ = std::aligned_alloc(64, size);
    if (data_ == nullptr) throw std::bad_alloc();
    owned_ = bytes > kKeepBytes;
    if (owned_) return;
    std::free(kept.data);
    kept = {data_, size};
  }
  ~Scratch() {
    if (owned_) std::free(data_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  static constexpr size_t kKeepBytes = 64 << 20;
  struct Buffer {
    void* data = nullptr;
    size_t bytes = 0;
  };
  struct Owner : Buffer {
    ~Owner() { std::free(data); }
  };
  static Buffer& this_thread() {
    static thread_local Owner owner;
    return owner;
  }
  void* data_;
  bool owned_ = false;
};

// Launchers by device. CUDA ones return a cudaError_t.
#ifdef SRR_FAST_CUDA
#define SRR_LAUNCH_CUDA(launch) C10_CUDA_CHECK(static_cast<cudaError_t>(launch))
// Current device and stream of a call. Nothing here may wait for the device or look at what its memory holds, so that
// a call can be captured in a graph: offsets and spans are judged by the kernels.
struct CudaCall {
  explicit CudaCall(const at::Tensor& t) : guard(t.device()), options(t.options().dtype(at::kByte)) {}
  // From the caching allocator, in the order of the stream; undefined where none is needed.
  at::Tensor workspace(int64_t bytes) const { return bytes > 0 ? at::empty({bytes}, options) : at::Tensor(); }

  c10::cuda::CUDAGuard guard;
  at::TensorOptions options;
  void* stream = c10::cuda::getCurrentCUDAStream().stream();
};

void* data_of(const at::Tensor& workspace) { return workspace.defined() ? workspace.mutable_data_ptr() : nullptr; }
#endif

// ---- pool ---------------------------------------------------------------------------------------------------------

// Checks what pool and pool_update_ share. Returns the pooling.
srr::Pooling check_tokens(const char* op, Args& args, const at::Tensor& states, const at::Tensor& spans,
                          std::string_view pooling, const OptionalTensor& gate) {
  const srr::Pooling kind = parse_pooling(op, pooling);
  if (states.dim() == 2)
    args.tensor("states", states, {"T", "d"}, kStates);
  else
    args.tensor("states", states, {"M", "T", "d"}, kStates);
  args.tensor("spans", spans, {"M", 2}, kInt64);
  TORCH_CHECK_VALUE(gate.has_value() == (kind == srr::Pooling::kGated), op,
                    ": gate goes with pooling='gated' and only with it, got pooling='", std::string(pooling), "'");
  if (gate) args.tensor("gate", *gate, {{"d", 1}}, kFloat32);
  return kind;
}

// The kernels' view of the tokens; keeps copies of what had to be made contiguous.
struct Tokens {
  MaybeOwned kept_states, gate;
  srr::TokenSpans view{};

  Tokens(const at::Tensor& given, const at::Tensor& spans, srr::Pooling pooling, const OptionalTensor& given_gate)
      : kept_states(dense_rows(given)) {
    const at::Tensor& states = *kept_states;
    if (given_gate) gate = dense(*given_gate);
    const bool padded = states.dim() == 3;
    view.states = states.const_data_ptr();
    view.dtype = dtype_of(states);
    view.row_stride = padded ? states.stride(0) : 0;
    view.token_stride = states.stride(-2);
    view.M = spans.size(0);
    view.T = states.size(-2);
    view.d = states.size(-1);
    view.spans = spans.const_data_ptr<int64_t>();
    view.span_stride = spans.stride(0);
    view.span_stop_stride = spans.stride(1);
    view.pooling = pooling;
    view.gate = given_gate ? gate->const_data_ptr<float>() : nullptr;
  }
};

// The host can look at spans that lie in its memory; on a device the kernel answers bad ones with NaN.
void check_spans(const char* op, const srr::TokenSpans& in) {
  for (int64_t m = 0; m < in.M; ++m) {
    const int64_t start = in.spans[m * in.span_stride];
    const int64_t stop = in.spans[m * in.span_stride + in.span_stop_stride];
    TORCH_CHECK_VALUE(0 <= start && start <= stop && stop <= in.T, op,
                      ": spans must satisfy 0 <= start <= stop <= T=", in.T, ", got [", start, ", ", stop, "] in row ",
                      m);
  }
}

void pool_update_(at::Tensor& acc, at::Tensor& weight, const at::Tensor& states, const at::Tensor& spans,
                  std::string_view pooling, const OptionalTensor& gate) {
  const char* op = "pool_update_";
  Args args(op);
  const srr::Pooling kind = check_tokens(op, args, states, spans, pooling, gate);
  args.tensor("acc", acc, {"M", "d"}, kFloat32);
  args.tensor("weight", weight, {"M"}, kFloat32);
  if (states.is_meta()) return;
  TORCH_CHECK_VALUE((acc.stride(1) == 1 || acc.size(1) <= 1) && !acc.is_neg(), op,
                    ": acc must be contiguous in its last dimension, got strides ", acc.strides());
  TORCH_CHECK_VALUE((weight.is_contiguous() || weight.numel() <= 1) && !weight.is_neg(), op,
                    ": weight must be contiguous, got strides ", weight.strides());
  TORCH_CHECK_VALUE(acc.size(0) <= 1 || acc.stride(0) >= acc.size(1), op, ": acc must not overlap itself, got strides ",
                    acc.strides());
  for (const at::Tensor* input : {&states, &spans, gate ? &*gate : &spans})
    TORCH_CHECK_VALUE(!ranges_meet(acc, *input) && !ranges_meet(weight, *input), op,
                      ": acc and weight must not share memory with the inputs");
  TORCH_CHECK_VALUE(!ranges_meet(acc, weight), op, ": acc and weight must not share memory");
  const Tokens tokens(states, spans, kind, gate);
  written(acc);
  written(weight);
  const srr::PoolUpdateParams params{tokens.view, acc.mutable_data_ptr<float>(), acc.stride(0),
                                     weight.mutable_data_ptr<float>()};
#ifdef SRR_FAST_CUDA
  if (states.is_cuda()) {
    const CudaCall call(states);
    const at::Tensor workspace = call.workspace(srr::pool_cuda_workspace_bytes(params.in));
    SRR_LAUNCH_CUDA(srr::pool_update_cuda(params, data_of(workspace), call.stream));
    return;
  }
#endif
  check_spans(op, tokens.view);
  srr::pool_update_cpu(params, threads());
}

// ---- score --------------------------------------------------------------------------------------------------------

void check_offsets(const char* op, const int64_t* offsets, int64_t B, int64_t M) {
  bool ordered = offsets[0] == 0 && offsets[B] == M;
  for (int64_t b = 0; ordered && b < B; ++b) ordered = offsets[b] <= offsets[b + 1];
  TORCH_CHECK_VALUE(ordered, op, ": offsets must run from 0 to M=", M, " without decreasing, got ",
                    at::IntArrayRef(offsets, B + 1));
}

// Checks inst, offsets and the packed ranker; `resp` has bound M and d already.
void check_lists(const char* op, Args& args, const at::Tensor& inst, const OptionalTensor& offsets,
                 const PackedRanker& ranker) {
  args.tensor("inst", inst, {"B", "d"}, kStates);
  if (offsets) args.tensor("offsets", *offsets, {{"B", 1}}, kInt64);
  args.tensor("packed", ranker.bytes, {"bytes"}, kUInt8);
  const auto d = args.size("d").maybe_as_int(), bytes = args.size("bytes").maybe_as_int();
  const auto B = args.size("B").maybe_as_int(), M = args.size("M").maybe_as_int();
  if (d && bytes) {
    const srr::RankerLayout layout{*d,         ranker.p,          ranker.heads, ranker.layers,
                                   ranker.ffn, ranker.norm_first, ranker.bf16};
    TORCH_CHECK_VALUE(0 < *d && *d <= srr::kMaxStateSize && *bytes == layout.size_bytes(), op,
                      ": inst and resp must have the width d that packed was made for; ", *bytes,
                      " bytes were not made for d=", *d);
  }
  if (!offsets && B && M)
    TORCH_CHECK_VALUE(*B ? *M % *B == 0 : *M == 0, op, ": offsets=None wants M divisible by B, got M=", *M, ", B=", *B);
}

// inputs: what the call reads, nullptr where it is not given.
void check_out(Args& args, const ScoreResult& out, std::initializer_list<const at::Tensor*> inputs) {
  args.tensor("out.scores", out.scores, {"M"}, kFloat32);
  args.tensor("out.probs", out.probs, {"M"}, kFloat32);
  args.tensor("out.best", out.best, {"B"}, kInt64);
  if (out.scores.is_meta()) return;
  for (const at::Tensor* t : {&out.scores, &out.probs, &out.best})
    TORCH_CHECK_VALUE(t->is_contiguous() && !t->is_neg(), "score: out must be contiguous, got strides ", t->strides());
  const Range scores(out.scores), probs(out.probs), best(out.best);
  for (const at::Tensor* input : inputs) {
    if (input == nullptr) continue;
    const Range range(*input);
    TORCH_CHECK_VALUE(!range.meets(scores) && !range.meets(probs) && !range.meets(best),
                      "score: out must not share memory with the inputs");
  }
  TORCH_CHECK_VALUE(!scores.meets(probs) && !scores.meets(best) && !probs.meets(best),
                    "score: the tensors of out must not share memory");
}

// The kernels' view of a call; keeps copies of what had to be made contiguous. `given_resp` undefined: there are M
// candidates, and their states come from elsewhere.
struct Lists {
  MaybeOwned kept_inst, kept_resp, packed, offsets;
  srr::ScoreParams view{};

  Lists(const char* op, const at::Tensor& given_inst, const at::Tensor& given_resp, int64_t M,
        const OptionalTensor& given_offsets, const PackedRanker& ranker, const ScoreResult& out)
      : kept_inst(dense_rows(given_inst)), packed(dense(ranker.bytes)) {
    const at::Tensor& inst = *kept_inst;
    if (given_resp.defined()) {
      kept_resp = dense_rows(given_resp);
      view.resp = rows_of(*kept_resp);
    }
    if (given_offsets) offsets = dense(*given_offsets);
    TORCH_CHECK_VALUE(reinterpret_cast<uintptr_t>(packed->const_data_ptr()) % 64 == 0, op,
                      ": packed must be 64-byte aligned; wanted the tensor that pack_ranker made, or a clone of it");
    for (const at::Tensor* t : {&out.scores, &out.probs, &out.best}) written(*t);
    view.layout = {inst.size(1), ranker.p, ranker.heads, ranker.layers, ranker.ffn, ranker.norm_first, ranker.bf16};
    view.packed = packed->const_data_ptr();
    view.inst = rows_of(inst);
    view.offsets = given_offsets ? offsets->const_data_ptr<int64_t>() : nullptr;
    view.B = inst.size(0);
    view.M = M;
    view.scope = ranker.scope;
    view.temperature = static_cast<float>(ranker.temperature);
    view.scores = out.scores.mutable_data_ptr<float>();
    view.probs = out.probs.mutable_data_ptr<float>();
    view.best = out.best.mutable_data_ptr<int64_t>();
  }
};

void launch_score(const char* op, const at::Tensor& inst, const at::Tensor& resp, const OptionalTensor& offsets,
                  const PackedRanker& ranker, const ScoreResult& out) {
  const Lists lists(op, inst, resp, resp.size(0), offsets, ranker, out);
  const srr::ScoreParams& params = lists.view;
#ifdef SRR_FAST_CUDA
  if (inst.is_cuda()) {
    const CudaCall call(inst);
    const at::Tensor workspace = call.workspace(srr::score_cuda_workspace_bytes(params));
    SRR_LAUNCH_CUDA(srr::score_cuda(params, data_of(workspace), call.stream));
    return;
  }
#endif
  if (params.offsets) check_offsets(op, params.offsets, params.B, params.M);
  const srr::Threads workers = threads();
  const Scratch workspace(srr::score_cpu_workspace_bytes(params, workers));
  srr::score_cpu(params, workspace.data(), workers);
}

ScoreResult allocate(const Args& args, const at::Tensor& like) {
  const auto M = args.size("M"), B = args.size("B");
  return {at::empty_symint({M}, like.options().dtype(at::kFloat)),
          at::empty_symint({M}, like.options().dtype(at::kFloat)),
          at::empty_symint({B}, like.options().dtype(at::kLong))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> as_tuple(const ScoreResult& r) { return {r.scores, r.probs, r.best}; }

PackedRanker packed_ranker(const char* op, const at::Tensor& packed, int64_t p, int64_t heads, int64_t layers,
                           int64_t ffn, bool norm_first, bool bf16, std::string_view scope, double temperature) {
  const PackedRanker ranker{packed, p, heads, layers, ffn, norm_first, bf16, parse_scope(op, scope), temperature};
  check_shape(op, ranker);
  return ranker;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> score_op(const at::Tensor& inst, const at::Tensor& resp,
                                                        const OptionalTensor& offsets, const at::Tensor& packed,
                                                        int64_t p, int64_t heads, int64_t layers, int64_t ffn,
                                                        bool norm_first, bool bf16, std::string_view scope,
                                                        double temperature) {
  const auto ranker = packed_ranker("score", packed, p, heads, layers, ffn, norm_first, bf16, scope, temperature);
  ScoreResult out;
  score(inst, resp, offsets, ranker, out);
  return as_tuple(out);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> rank_op(const at::Tensor& states, const at::Tensor& spans,
                                                       std::string_view pooling, const OptionalTensor& gate,
                                                       const at::Tensor& inst, const OptionalTensor& offsets,
                                                       const at::Tensor& packed, int64_t p, int64_t heads,
                                                       int64_t layers, int64_t ffn, bool norm_first, bool bf16,
                                                       std::string_view scope, double temperature) {
  const char* op = "rank";
  const auto ranker = packed_ranker(op, packed, p, heads, layers, ffn, norm_first, bf16, scope, temperature);
  Args args(op);
  [[maybe_unused]] const srr::Pooling kind = check_tokens(op, args, states, spans, pooling, gate);
  check_lists(op, args, inst, offsets, ranker);
  const ScoreResult out = allocate(args, states);
  if (states.is_meta()) return as_tuple(out);
#ifdef SRR_FAST_CUDA
  if (states.is_cuda()) {
    const Tokens tokens(states, spans, kind, gate);
    const Lists lists(op, inst, {}, spans.size(0), offsets, ranker, out);
    const CudaCall call(states);
    const srr::RankParams params{tokens.view, lists.view};
    const at::Tensor workspace = call.workspace(srr::rank_cuda_workspace_bytes(params));
    SRR_LAUNCH_CUDA(srr::rank_cuda(params, data_of(workspace), call.stream));
    return as_tuple(out);
  }
#endif
  launch_score(op, inst, pool(states, spans, pooling, gate), offsets, ranker, out);
  return as_tuple(out);
}

}  // namespace

srr::Scope parse_scope(const char* op, std::string_view scope) {
  TORCH_CHECK_VALUE(scope == "list" || scope == "pair", op, ": scope must be 'list' or 'pair', got '",
                    std::string(scope), "'");
  return scope == "list" ? srr::Scope::kList : srr::Scope::kPair;
}

void check_shape(const char* op, const PackedRanker& r) {
  TORCH_CHECK_VALUE(1 <= r.p && r.p <= srr::kMaxProjDim, op, ": p must be in 1 .. ", srr::kMaxProjDim, ", got ", r.p);
  TORCH_CHECK_VALUE(r.heads >= 1 && r.p % r.heads == 0, op, ": heads must divide p=", r.p, ", got ", r.heads);
  TORCH_CHECK_VALUE(0 <= r.layers && r.layers <= srr::kMaxLayers, op, ": layers must be in 0 .. ", srr::kMaxLayers,
                    ", got ", r.layers);
  TORCH_CHECK_VALUE(1 <= r.ffn && r.ffn <= srr::kMaxFfn, op, ": ffn must be in 1 .. ", srr::kMaxFfn, ", got ", r.ffn);
  TORCH_CHECK_VALUE(r.temperature > 0, op, ": temperature must be above 0, got ", r.temperature);
}

at::Tensor pool(const at::Tensor& states, const at::Tensor& spans, std::string_view pooling,
                const OptionalTensor& gate) {
  const char* op = "pool";
  Args args(op);
  const srr::Pooling kind = check_tokens(op, args, states, spans, pooling, gate);
  at::Tensor out = at::empty_symint({args.size("M"), args.size("d")}, states.options().dtype(at::kFloat));
  if (states.is_meta()) return out;
  const Tokens tokens(states, spans, kind, gate);
  const srr::PoolParams params{tokens.view, out.mutable_data_ptr<float>(), out.stride(0)};
#ifdef SRR_FAST_CUDA
  if (states.is_cuda()) {
    const CudaCall call(states);
    const at::Tensor workspace = call.workspace(srr::pool_cuda_workspace_bytes(params.in));
    SRR_LAUNCH_CUDA(srr::pool_cuda(params, data_of(workspace), call.stream));
    return out;
  }
#endif
  check_spans(op, tokens.view);
  srr::pool_cpu(params, threads());
  return out;
}

void score(const at::Tensor& inst, const at::Tensor& resp, const OptionalTensor& offsets, const PackedRanker& ranker,
           ScoreResult& out) {
  const char* op = "score";
  Args args(op);
  args.tensor("resp", resp, {"M", "d"}, kStates);
  check_lists(op, args, inst, offsets, ranker);
  if (out.scores.defined())
    check_out(args, out, {&inst, &resp, &ranker.bytes, offsets ? &*offsets : nullptr});
  else
    out = allocate(args, inst);
  if (inst.is_meta()) return;
  launch_score(op, inst, resp, offsets, ranker, out);
}

// Memory that is read whole, on large pages where the system has them: once the caches hold something else, small ones
// must be looked up again one by one. 64-byte aligned.
static at::Tensor empty_bytes(int64_t bytes) {
#if defined(__linux__)
  constexpr int64_t page = 2 << 20;
  const int64_t pages = srr::round_up(bytes, page);
  void* data = 4 * bytes < page ? nullptr : std::aligned_alloc(page, pages);
  if (data != nullptr) {
    madvise(data, pages, MADV_HUGEPAGE);  // advice: whether it is taken changes no result
    return at::from_blob(data, {bytes}, std::free, at::kByte);
  }
#endif
  return at::empty({bytes}, at::kByte);
}

at::Tensor pack_ranker(const std::vector<at::Tensor>& tensors, int64_t heads, int64_t layers, int64_t ffn,
                       bool norm_first, bool bf16) {
  const char* op = "pack_ranker";
  constexpr size_t kPerLayer = 12;
  TORCH_CHECK_VALUE(layers >= 0 && tensors.size() == 2 + kPerLayer * layers, op, ": wanted ", 2 + kPerLayer * layers,
                    " tensors, got ", tensors.size());
  Args args(op);
  args.tensor("projection.weight", tensors[0], {"p", "d"}, kFloat32);
  args.tensor("projection.bias", tensors[1], {"p"}, kFloat32);
  const int64_t p = tensors[0].size(0), d = tensors[0].size(1);
  TORCH_CHECK_VALUE(tensors[0].is_cpu(), op, ": tensors must be on cpu, got ", tensors[0].device());
  check_shape(op, {tensors[0], p, heads, layers, ffn, norm_first, bf16, srr::Scope::kList, 1.0});
  std::vector<srr::LayerWeights> weights;
  for (int64_t i = 0; i < layers; ++i) {
    const at::Tensor* t = &tensors[2 + kPerLayer * i];
    const int three_p = static_cast<int>(3 * p), f = static_cast<int>(ffn);
    args.tensor("in_proj_weight", t[0], {three_p, "p"}, kFloat32);
    args.tensor("in_proj_bias", t[1], {three_p}, kFloat32);
    args.tensor("out_proj.weight", t[2], {"p", "p"}, kFloat32);
    args.tensor("out_proj.bias", t[3], {"p"}, kFloat32);
    args.tensor("linear1.weight", t[4], {f, "p"}, kFloat32);
    args.tensor("linear1.bias", t[5], {f}, kFloat32);
    args.tensor("linear2.weight", t[6], {"p", f}, kFloat32);
    args.tensor("linear2.bias", t[7], {"p"}, kFloat32);
    const char* norms[] = {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"};
    for (int n = 0; n < 4; ++n) args.tensor(norms[n], t[8 + n], {"p"}, kFloat32);
    const float* at[kPerLayer];
    for (size_t n = 0; n < kPerLayer; ++n) {
      TORCH_CHECK_VALUE(t[n].is_contiguous(), op, ": tensors must be contiguous");
      at[n] = t[n].const_data_ptr<float>();
    }
    weights.push_back({at[0], at[1], at[2], at[3], at[4], at[5], at[6], at[7], at[8], at[9], at[10], at[11]});
  }
  TORCH_CHECK_VALUE(tensors[0].is_contiguous() && tensors[1].is_contiguous(), op, ": tensors must be contiguous");
  const srr::RankerLayout layout{d, p, heads, layers, ffn, norm_first, bf16};
  at::Tensor packed = empty_bytes(layout.size_bytes());
  srr::pack_ranker(layout, tensors[0].const_data_ptr<float>(), tensors[1].const_data_ptr<float>(), weights.data(),
                   packed.mutable_data_ptr());
  return packed;
}

}  // namespace srr_fast

#define SRR_RANKER                                                                                     \
  "Tensor packed, int p, int heads, int layers, int ffn, bool norm_first, bool bf16, str scope, float" \
  " temperature"

TORCH_LIBRARY(srr_fast, m) {
  m.def("pool(Tensor states, Tensor spans, str pooling, Tensor? gate=None) -> Tensor");
  m.def(
      "pool_update_(Tensor(a!) acc, Tensor(b!) weight, Tensor states, Tensor spans, str pooling, Tensor? gate=None)"
      " -> ()");
  m.def("score(Tensor inst, Tensor resp, Tensor? offsets, " SRR_RANKER
        ") -> (Tensor scores, Tensor probs, Tensor best)");
  m.def("rank(Tensor states, Tensor spans, str pooling, Tensor? gate, Tensor inst, Tensor? offsets, " SRR_RANKER
        ") -> (Tensor scores, Tensor probs, Tensor best)");
}

#define SRR_REGISTER(key)                           \
  TORCH_LIBRARY_IMPL(srr_fast, key, m) {            \
    m.impl("pool", srr_fast::pool);                 \
    m.impl("pool_update_", srr_fast::pool_update_); \
    m.impl("score", srr_fast::score_op);            \
    m.impl("rank", srr_fast::rank_op);              \
  }
SRR_REGISTER(CPU)
SRR_REGISTER(Meta)
#ifdef SRR_FAST_CUDA
SRR_REGISTER(CUDA)
#endif
