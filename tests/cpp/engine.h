// SPDX-License-Identifier: Apache-2.0
// Whose kernels a test program runs: exactly one engine_*.cpp is linked into it. Knows no test.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "../../csrc/kernels/srr.h"

namespace srr::test {

class Engine {
 public:
  virtual ~Engine() = default;
  virtual std::string name() const = 0;
  // Called before any of its other functions, and again when another engine of this program has been used.
  virtual void select() {}
  // Memory the kernels can reach and the test can touch, 64-byte aligned, of the very size.
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* memory) = 0;
  // Whether offsets that are no offsets must be answered; the CPU's are checked by its callers.
  virtual bool answers_bad_offsets() const = 0;
  // Whether a ranker of bfloat16 weights rounds what its products take to bfloat16 too.
  virtual bool rounds() const { return false; }
  // Attempts 0, 1, .. must give the same bits, though an engine may go about them differently.
  virtual void pool(const PoolParams& params, int attempt) = 0;
  virtual void pool_update(const PoolUpdateParams& params, int attempt) = 0;
  virtual void score(const ScoreParams& params, int attempt) = 0;
  virtual void rank(const RankParams& params, int attempt) = 0;
};

std::vector<std::unique_ptr<Engine>> engines();

}  // namespace srr::test
