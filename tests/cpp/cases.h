// SPDX-License-Identifier: Apache-2.0
// The sizes kernels are tested at, and why each is there. Knows no expectation.
#pragma once

#include <cstdint>
#include <vector>

#include "data.h"

namespace srr::test {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
constexpr Pooling kPoolings[] = {Pooling::kLast, Pooling::kMean, Pooling::kGated};

inline const char* name_of(DType dtype) {
  return dtype == DType::kFloat32 ? "fp32" : dtype == DType::kFloat16 ? "fp16" : "bf16";
}
inline const char* name_of(Pooling pooling) {
  return pooling == Pooling::kLast ? "last" : pooling == Pooling::kMean ? "mean" : "gated";
}

// ---- pool -----------------------------------------------------------------------------------------------------

// Not a multiple of anything that tokens are taken by.
constexpr int64_t kPoolTokens = 37;
constexpr int64_t kManyTokens = 700;  // more than a GPU's block takes in one step

struct Span {
  int64_t start, stop;
};

inline std::vector<Span> pool_spans(int64_t T) {
  return {
      {0, T},      // all
      {5, 5},      // none
      {0, 1},      // the first token only
      {T - 1, T},  // the last token only
      {3, 20},     // one more than a whole number of eights and of sixteens
      {-1, 4},     // begins before the tokens
      {2, T + 1},  // ends after them
      {T, T},      // none, at the very end
      {9, 6},      // ends before it begins
      {6, 14},     // eight tokens
  };
}

struct PoolWidth {
  int64_t d;
  const char* why;
};

constexpr PoolWidth kPoolWidths[] = {
    {1, "one column"},
    {7, "less than any vector, odd"},
    {64, "whole vectors, less than a warp's share"},
    {385, "whole shares and one column"},
    {1000, "eights, but no whole share"},
    {2100, "more than one share for every warp of a block"},
};

struct NamedPlacement {
  Placement placement;
  const char* why;
};

constexpr NamedPlacement kPlacements[] = {
    {{0, 0}, "contiguous"},
    {{0, 16}, "strided, and still aligned where the width is"},
    {{1, 0}, "begins one element late: never aligned"},
    {{3, 5}, "late, and rows of all alignments"},
};

// ---- score ----------------------------------------------------------------------------------------------------

struct ScoreCase {
  const char* why;
  Shape shape;
  std::vector<int64_t> lists;
  Scope scope = Scope::kList;
  DType dtype = DType::kFloat32;
  Placement placement = {};
  float temperature = 0.1f;
  bool quick = false;  // small enough for a machine that is a thousand times slower
};

inline std::vector<ScoreCase> score_cases() {
  constexpr Scope kList = Scope::kList, kPair = Scope::kPair;
  constexpr DType kF32 = DType::kFloat32, kF16 = DType::kFloat16, kB16 = DType::kBFloat16;
  // Shape: d, p, heads, ffn, layers, norm_first, bf16.
  constexpr Shape kSmall{64, 64, 1, 256, 1, false, false};
  return {
      {"no candidate", kSmall, {0}},
      {"one candidate: probability 1", kSmall, {1}},
      {"two candidates", kSmall, {2}},
      {"three candidates and the instruction fill a tile of four", kSmall, {3}, kList, kF32, {}, 0.1f, true},
      {"a sequence of eight", kSmall, {7}},
      {"one more than eight", kSmall, {8}},
      {"one more than sixteen, and the instruction", kSmall, {17}},
      {"one more than a warp of keys", kSmall, {33}},
      {"whole warps of keys, but for the instruction", kSmall, {64}},
      {"more candidates than threads in a block", kSmall, {300}},
      {"more keys than a CPU takes together, two heads", {16, 32, 2, 32, 1, false, false}, {700}},
      {"ragged lists, empty ones first, last and between", kSmall, {0, 3, 17, 0, 0, 1, 40, 8, 0}},
      {"equal lists", kSmall, {16, 16, 16, 16}},

      {"one state column", {1, 64, 1, 256, 1, false, false}, {5}},
      {"seven state columns: no whole vector", {7, 64, 1, 256, 1, false, false}, {5}},
      {"one column more than a block of weights", {129, 32, 2, 64, 1, false, false}, {5}, kList, kF16},
      {"a small model's width", {384, 64, 1, 256, 1, false, false}, {9}, kList, kB16},
      {"a width of no power of two", {1000, 64, 1, 256, 1, false, false}, {9}, kList, kF16},
      {"a real model's width", {4096, 64, 1, 256, 1, false, false}, {16}, kList, kB16},
      {"the largest width", {16384, 16, 1, 64, 1, false, false}, {3}},

      {"one projected column: every cosine is 1 or -1", {64, 1, 1, 4, 0, false, false}, {9}},
      {"no encoder", {64, 64, 1, 256, 0, false, false}, {9, 4}, kList, kF32, {}, 0.1f, true},
      {"no encoder, pairs", {64, 64, 1, 256, 0, false, false}, {9, 4}, kPair},
      {"few pairs, nine columns", {9, 9, 1, 9, 1, true, false}, {2, 1}, kPair, kF32, {}, 0.1f, true},
      {"heads of ten columns, padded to sixteen",
       {64, 30, 3, 120, 1, false, false},
       {9, 2},
       kList,
       kF32,
       {},
       0.1f,
       true},
      {"the same before its norms, twice", {64, 30, 3, 120, 2, true, false}, {9, 2}},
      {"heads of one column", {64, 8, 8, 32, 1, false, false}, {6}},
      {"heads of 48 columns: more than a warp, not two", {64, 96, 2, 384, 1, false, false}, {6}},
      {"a hidden layer of odd width", {64, 32, 2, 77, 1, false, false}, {6}},
      {"a hidden layer wider than any chunk of it", {64, 32, 1, 1100, 1, true, false}, {6}},
      {"two layers, eight heads", {256, 128, 8, 512, 2, false, false}, {16}, kList, kB16},
      {"three layers, norms first", {256, 64, 4, 256, 3, true, false}, {16}},
      {"the largest ranker", {512, 512, 8, 2048, 1, false, false}, {8}},
      {"the largest head", {128, 512, 1, 512, 1, true, false}, {5}},
      {"wide, of odd widths, twice", {64, 150, 3, 1300, 2, false, false}, {9, 0, 4, 17}},
      {"wide, bf16 weights, norms first", {129, 200, 5, 77, 2, true, true}, {9, 2}, kList, kB16},
      {"wide, few rows", {40, 144, 3, 160, 1, false, false}, {3}, kList, kF32, {}, 0.1f, true},
      {"wide, more rows than share products", {64, 160, 1, 96, 1, false, false}, {300, 280}},
      {"wide, pairs", {64, 160, 2, 96, 1, false, false}, {5, 3}, kPair},
      {"padded heads wider than any chunk of them", {64, 96, 48, 64, 1, false, false}, {5}},

      {"pairs", kSmall, {9, 0, 4}, kPair},
      {"pairs, norms first, three heads", {64, 30, 3, 120, 2, true, false}, {9, 33}, kPair, kB16},

      {"bf16 weights", {384, 64, 4, 256, 1, false, true}, {9, 3}, kList, kB16},
      {"bf16 weights, all widths odd", {129, 35, 5, 77, 2, true, true}, {9}, kList, kF32, {}, 0.1f, true},
      {"bf16 weights and states, odd width: half a pair", {129, 32, 1, 64, 1, false, true}, {9}, kList, kB16},
      {"bf16 weights and states, more rows than one item, a block and a rest",
       {300, 64, 1, 256, 1, false, true},
       {40, 17, 64},
       kList,
       kB16},
      {"bf16 weights, misaligned and strided states", {640, 48, 1, 64, 1, false, true}, {20}, kList, kB16, {3, 5}},
      {"bf16 weights, pairs", {256, 48, 1, 192, 1, false, true}, {9}, kPair, kF16},
      {"bf16 weights, an odd number of keys, more than are taken together", {16, 30, 3, 33, 1, true, true}, {700}},
      {"bf16 weights, pairs, padded heads", {64, 30, 3, 120, 2, false, true}, {9, 4}, kPair, kB16},
      {"bf16 weights, the largest ranker", {512, 512, 8, 2048, 1, false, true}, {4}, kList, kB16},

      {"strided states", {384, 64, 1, 256, 1, false, false}, {9}, kList, kF32, {0, 16}},
      {"misaligned states, bf16", {384, 64, 1, 256, 1, false, false}, {9}, kList, kB16, {1, 0}},
      {"misaligned and strided states, fp16", {384, 64, 1, 256, 1, false, false}, {9}, kList, kF16, {3, 5}},
      {"misaligned states, fp32", {1000, 64, 1, 256, 1, false, false}, {9}, kList, kF32, {1, 3}},

      {"a cold softmax", kSmall, {17}, kList, kF32, {}, 0.01f},
      {"a hot softmax", kSmall, {17}, kList, kF32, {}, 10.0f},
  };
}

}  // namespace srr::test
