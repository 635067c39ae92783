// SPDX-License-Identifier: Apache-2.0
// What the launches of score() leave for one another in global memory, and where. Sizes depend on M, B, the scope and
// the layout, never on what the offsets hold.
#pragma once

#include "launch.cuh"
#include "srr.h"

namespace srr::cuda {

// Rows are the instructions, then the candidates: B + M of them. Slots are the places of encoder sequences: a list's
// sequence begins at slot begin + b and has room for the instruction and all candidates; pair m has slots 2m, 2m + 1.
struct Slot {
  int32_t row;            // whose state it holds; -1: none
  int32_t first, length;  // the slots of its sequence
};

// A list that may be scored: candidates [begin, end), `present` of them in the slots after its instruction's
// (Scope::kList only). A list whose offsets are bad or whose instruction is out has begin = end = 0.
struct List {
  int64_t begin, end;
  int64_t present;
};

// Lists whose highest end is found together, so that no list need look at all offsets before its own.
constexpr int kListGroup = 256;

struct Workspace {
  float* projected;    // [rows, p_padded]
  uint8_t* finite;     // [rows, panels]: 1 where the 16 columns of a panel are finite
  int64_t* group_end;  // [groups of lists]: the highest end of its well-formed lists
  List* lists;         // [B]
  Slot* slots;         // [slots]
  float* x;            // [slots, p_padded]: between layers
  float* qkv;          // [slots, 3 * heads_padded]: attention's output takes the place of q
  int64_t rows, slot_count, groups;
  int64_t bytes;

  static Workspace of(const ScoreParams& params, void* base) {
    Workspace w{};
    const RankerLayout& layout = params.layout;
    w.rows = params.B + params.M;
    w.slot_count = params.scope == Scope::kList ? w.rows : 2 * params.M;
    w.groups = ceil_div(params.B, kListGroup);
    const auto take = [&](auto*& pointer, int64_t n) {
      pointer =
          reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(reinterpret_cast<uintptr_t>(base) + w.bytes);
      w.bytes += round_up(n * static_cast<int64_t>(sizeof *pointer), 256);
    };
    take(w.projected, w.rows * layout.p_padded());
    take(w.finite, w.rows * layout.p_padded() / kPanel);
    take(w.group_end, w.groups);
    take(w.lists, params.B);
    take(w.slots, w.slot_count);
    if (layout.layers > 0) {
      take(w.x, w.slot_count * layout.p_padded());
      take(w.qkv, w.slot_count * 3 * layout.heads_padded());
    }
    return w;
  }
};

// Where a slot's state is: among the projected rows before the first layer, in its own place after it.
struct SlotStates {
  const float* data;
  int64_t stride;
  bool by_row;

  __device__ const float* of(const Slot* slots, int64_t slot) const {
    return data + (by_row ? slots[slot].row : slot) * stride;
  }
};

}  // namespace srr::cuda
