// SPDX-License-Identifier: Apache-2.0
// The C++ API of srr_fast: pool token states, score candidate lists. Plain pointers and sizes.
// Knows no torch and no Python. Strides are in elements; anything else carries its unit in its name.
//
// Letters: B prompts, N candidates of one prompt, M = sum of N, T tokens, d state width, p projected width.
#pragma once

#include <cstddef>
#include <cstdint>

namespace srr {

enum class DType : int32_t { kFloat32, kFloat16, kBFloat16 };
enum class Pooling : int32_t { kLast, kMean, kGated };
enum class Scope : int32_t { kList, kPair };

// The largest ranker the kernels accept: no size of the packed layout can overflow below these.
constexpr int64_t kMaxProjDim = 512;
constexpr int64_t kMaxLayers = 64;
constexpr int64_t kMaxFfn = int64_t{1} << 16;
constexpr int64_t kMaxStateSize = int64_t{1} << 26;

// A projected state with a component beyond this counts as not finite: its square times p still fits float32.
constexpr float kLargestProjected = 1e15f;
// Gate logits are clamped to +-kGateLimit, so that no token's weight is ever zero.
constexpr float kGateLimit = 60.0f;

// Runs body(ctx, i) for every i in [0, n), in any order, perhaps at once; returns when all are done.
using ParallelFor = void (*)(int64_t n, void (*body)(void* ctx, int64_t i), void* ctx);

// How a CPU launcher may use threads. `run == nullptr` or `threads == 1`: the calling thread does everything.
// Results have the same bits for every value of `threads`.
struct Threads {
  ParallelFor run = nullptr;
  int threads = 1;
};

// ---- pool ---------------------------------------------------------------------------------------------------

// Token states and, for each of M rows, the half-open span of tokens that belong to it.
struct TokenSpans {
  const void* states;  // token t of row m starts at element m * row_stride + t * token_stride; d contiguous
  DType dtype;         // of states
  int64_t row_stride;  // 0 when all rows share one packed [T, d] buffer
  int64_t token_stride;
  int64_t M, T, d;
  const int64_t* spans;  // [M, 2]: start at m * span_stride, stop span_stop_stride elements after it
  int64_t span_stride, span_stop_stride;
  Pooling pooling;
  const float* gate;  // [d + 1]: weight, then bias; null unless pooling is kGated
};

// out[m] = the pooled state of row m. A span without tokens (stop <= start), or not within [0, T], gives a row of NaN:
// score() takes such rows out of their list.
struct PoolParams {
  TokenSpans in;
  float* out;  // [M, d]
  int64_t out_stride;
};

// Streaming: adds the tokens of each span to a running pool; acc / weight is the pooled state so far.
//   kLast: a non-empty span overwrites acc with its last token and sets weight to 1
//   kMean: acc += sum of tokens,      weight += number of tokens
//   kGated: acc += sum of g_t x_t,    weight += sum of g_t
// A span without tokens (stop <= start) leaves its row alone; one not within [0, T] makes weight NaN.
struct PoolUpdateParams {
  TokenSpans in;
  float* acc;  // [M, d]
  int64_t acc_stride;
  float* weight;  // [M], contiguous
};

// ---- the packed ranker ----------------------------------------------------------------------------------------

// Columns of every matrix are stored in panels of kPanel, rows of every vector padded with zeros to a multiple of it.
constexpr int64_t kPanel = 16;
// Rows of a matrix are stored in blocks of kBlockK, so that one block of up to four panels stays in a CPU's L1.
constexpr int64_t kBlockK = 128;

// A float32 matrix is kept a second time, for tiles of bytes. Within a digit block, which is of several K-blocks, every
// column is a scale times whole numbers of kDigits signed bytes, of 65536, 256 and 1 each, at most kDigitMost in
// magnitude.
constexpr int64_t kDigitBlock = 2 * kBlockK;
constexpr int64_t kDigits = 3;
constexpr int64_t kDigitStep = 64;  // rows that one tile holds
constexpr float kDigitMost = 8355584.0f;
// Digits want a largest magnitude within these limits, or zero, and a column of weights at most kDigitSpread times as
// large as its root mean square: in a digit block where one is not, float32 itself is multiplied.
constexpr float kDigitFrom = 1e-25f, kDigitTo = 1e25f;
constexpr float kDigitSpread = 8;

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// One matrix y = x W^T of a packed ranker: W^T is [K, N], element (k, n) at index(k, n) from the start of the
// section. Panels beyond N hold zeros. 16-bit weights interleave pairs of rows (k, k + 1), as dot-product
// instructions want them, and pad K to even. Behind 32-bit weights lie their digits, rows in steps of kDigitStep with
// zeros behind the last, and their scales.
struct PackedMatrix {
  int64_t offset_bytes;  // from the start of the packed ranker
  int64_t K, N;
  bool bf16;

  constexpr int64_t K_padded() const { return bf16 ? round_up(K, 2) : K; }
  constexpr int64_t N_padded() const { return round_up(N, kPanel); }
  // First element of K-block `block`, panel `panel`.
  constexpr int64_t panel_index(int64_t block, int64_t panel) const {
    return block * kBlockK * N_padded() + panel * kPanel * block_rows(block);
  }
  constexpr int64_t block_rows(int64_t block) const {
    const int64_t left = K_padded() - block * kBlockK;
    return left < kBlockK ? left : kBlockK;
  }
  constexpr int64_t blocks() const { return (K_padded() + kBlockK - 1) / kBlockK; }
  constexpr int64_t index(int64_t k, int64_t n) const {
    const int64_t base = panel_index(k / kBlockK, n / kPanel);
    const int64_t row = k % kBlockK, col = n % kPanel;
    return base + (bf16 ? row / 2 * 2 * kPanel + col * 2 + row % 2 : row * kPanel + col);
  }
  constexpr int64_t weight_bytes() const { return K_padded() * N_padded() * (bf16 ? 2 : 4); }
  // Of digit block `block`, panel `panel`, from the start of the packed ranker: [steps][kDigits][16 rows][16
  // columns][4]; byte i of a row is that of weight row 16 i + row of its step.
  constexpr int64_t digits_bytes(int64_t block, int64_t panel) const {
    return offset_bytes + weight_bytes() +
           kDigits * (block * kDigitBlock * N_padded() + panel * kPanel * kDigitStep * digit_steps(block));
  }
  constexpr int64_t digit_blocks() const { return (K + kDigitBlock - 1) / kDigitBlock; }
  constexpr int64_t digit_rows(int64_t block) const {
    const int64_t left = K - block * kDigitBlock;
    return left < kDigitBlock ? left : kDigitBlock;
  }
  constexpr int64_t digit_steps(int64_t block) const { return (digit_rows(block) + kDigitStep - 1) / kDigitStep; }
  // [digit_blocks, N_padded] floats: a column is scale / 65536 times its digits; all negative where the block has no
  // digits.
  constexpr int64_t scales_bytes() const {
    return offset_bytes + weight_bytes() + kDigits * round_up(K, kDigitStep) * N_padded();
  }
  constexpr int64_t size_bytes() const {
    return bf16 ? weight_bytes() : scales_bytes() - offset_bytes + 4 * digit_blocks() * N_padded();
  }
};

// One encoder layer of a packed ranker. Vectors are fp32 and padded to panels.
// Heads are padded too: head i of q, k or v occupies columns [i * E, i * E + p / heads), E =
// RankerLayout::head_padded().
struct PackedLayer {
  PackedMatrix qkv;   // [p, 3 * heads * E]: all of q, then k, then v; q is not scaled
  PackedMatrix out;   // [heads * E, p]
  PackedMatrix ffn1;  // [p, ffn]
  PackedMatrix ffn2;  // [ffn, p]
  int64_t qkv_bias_bytes, out_bias_bytes, ffn1_bias_bytes, ffn2_bias_bytes;
  int64_t norm1_weight_bytes, norm1_bias_bytes, norm2_weight_bytes, norm2_bias_bytes;
};

// The one home of the packed format: a ranker's shape, and where each of its tensors lies in the packed bytes.
struct RankerLayout {
  int64_t d, p;
  int64_t heads, layers, ffn;
  bool norm_first;
  bool bf16;  // matrices are bfloat16 (rounded); vectors stay fp32

  constexpr int64_t p_padded() const { return round_up(p, kPanel); }
  constexpr int64_t ffn_padded() const { return round_up(ffn, kPanel); }
  constexpr int64_t head_dim() const { return p / heads; }
  constexpr int64_t head_padded() const { return round_up(head_dim(), kPanel); }
  constexpr int64_t heads_padded() const { return heads * head_padded(); }

  constexpr PackedMatrix projection() const { return {0, d, p, bf16}; }
  constexpr int64_t projection_bias_bytes() const { return section(projection().size_bytes()); }
  constexpr PackedLayer layer(int64_t i) const {
    PackedLayer l{};
    int64_t at = projection_bias_bytes() + vector_bytes(p) + i * layer_bytes();
    place_layer(l, at);
    return l;
  }
  constexpr int64_t size_bytes() const { return projection_bias_bytes() + vector_bytes(p) + layers * layer_bytes(); }

 private:
  static constexpr int64_t section(int64_t bytes) { return round_up(bytes, 64); }
  static constexpr int64_t vector_bytes(int64_t n) { return section(4 * round_up(n, kPanel)); }
  constexpr int64_t layer_bytes() const {
    PackedLayer l{};
    return place_layer(l, 0);
  }
  constexpr int64_t place_layer(PackedLayer& l, int64_t at) const {
    l.qkv = {at, p, 3 * heads_padded(), bf16};
    l.qkv_bias_bytes = at += section(l.qkv.size_bytes());
    l.out = {at += vector_bytes(3 * heads_padded()), heads_padded(), p, bf16};
    l.out_bias_bytes = at += section(l.out.size_bytes());
    l.ffn1 = {at += vector_bytes(p), p, ffn, bf16};
    l.ffn1_bias_bytes = at += section(l.ffn1.size_bytes());
    l.ffn2 = {at += vector_bytes(ffn), ffn, p, bf16};
    l.ffn2_bias_bytes = at += section(l.ffn2.size_bytes());
    l.norm1_weight_bytes = at += vector_bytes(p);
    l.norm1_bias_bytes = at += vector_bytes(p);
    l.norm2_weight_bytes = at += vector_bytes(p);
    l.norm2_bias_bytes = at += vector_bytes(p);
    return at + vector_bytes(p);
  }
};

// The fp32 tensors of one torch.nn.TransformerEncoderLayer, contiguous, in its own shapes.
struct LayerWeights {
  const float *in_proj_weight, *in_proj_bias;                          // [3p, p], [3p]
  const float *out_proj_weight, *out_proj_bias;                        // [p, p], [p]
  const float *linear1_weight, *linear1_bias;                          // [ffn, p], [ffn]
  const float *linear2_weight, *linear2_bias;                          // [p, ffn], [p]
  const float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias;  // [p]
};

// Writes layout.size_bytes() bytes at `packed` (host memory, 64-byte aligned). `layers` has layout.layers entries.
void pack_ranker(const RankerLayout& layout, const float* projection_weight, const float* projection_bias,
                 const LayerWeights* layers, void* packed);

// ---- score ----------------------------------------------------------------------------------------------------

// A row-major matrix of states, one row per prompt or candidate.
struct StateRows {
  const void* data;
  DType dtype;
  int64_t stride;
};

// Scores M candidates in B lists. A candidate whose projected state is not finite is out of its list: the others
// score exactly as if it were absent, it gets score -inf and probability 0. Where the instruction's projected state
// is not finite, the whole list is out. `best` is the index within the list, -1 when all its candidates are out.
struct ScoreParams {
  RankerLayout layout;
  const void* packed;      // layout.size_bytes(), 64-byte aligned
  StateRows inst;          // [B, d]
  StateRows resp;          // [M, d]
  const int64_t* offsets;  // [B + 1], from 0 to M, not decreasing; null: equal lists of M / B
  int64_t B, M;
  Scope scope;
  float temperature;
  float* scores;  // [M]
  float* probs;   // [M]
  int64_t* best;  // [B]

  constexpr int64_t list_begin(int64_t b) const { return offsets ? offsets[b] : b * (M / (B > 0 ? B : 1)); }
};

// rank(): score() of candidates whose states are pooled from tokens. score.resp is not used; tokens.M is score.M.
struct RankParams {
  TokenSpans tokens;
  ScoreParams score;
};

// ---- launchers ------------------------------------------------------------------------------------------------

// CPU. `workspace`: score_cpu_workspace_bytes() for the same params and threads, 64-byte aligned, contents ignored.
void pool_cpu(const PoolParams& params, Threads threads);
void pool_update_cpu(const PoolUpdateParams& params, Threads threads);
int64_t score_cpu_workspace_bytes(const ScoreParams& params, Threads threads);
void score_cpu(const ScoreParams& params, void* workspace, Threads threads);

// The instruction sets this build holds and this machine runs, best first, as a null-terminated array of names.
const char* const* cpu_isas();
// The one in use. select_cpu_isa returns false, and changes nothing, for a name that cpu_isas() does not list. Not
// while another thread computes: how large a workspace is differs between them.
const char* cpu_isa();
bool select_cpu_isa(const char* name);

// CUDA, on `stream` (a cudaStream_t) of the current device. No allocation, no synchronisation: may be captured in a
// graph. `workspace`: what the function before says for the same params and device, 256-byte aligned, contents ignored,
// no other stream's. Returns a cudaError_t as int, 0 on success. All pointers are device pointers.
int64_t pool_cuda_workspace_bytes(const TokenSpans& in);
int pool_cuda(const PoolParams& params, void* workspace, void* stream);
int pool_update_cuda(const PoolUpdateParams& params, void* workspace, void* stream);
int64_t score_cuda_workspace_bytes(const ScoreParams& params);
int score_cuda(const ScoreParams& params, void* workspace, void* stream);
int64_t rank_cuda_workspace_bytes(const RankParams& params);
int rank_cuda(const RankParams& params, void* workspace, void* stream);

}  // namespace srr
