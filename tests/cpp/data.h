// SPDX-License-Identifier: Apache-2.0
// What tests feed to kernels and get from them: memory of the very size, states of every type with awkward strides,
// outputs ringed by sentinels, random rankers. Knows no expectation.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "engine.h"
#include "reference.h"

namespace srr::test {

using Random = std::mt19937_64;

inline float normal(Random& random) { return std::normal_distribution<float>()(random); }

// n values the kernels may reach.
template <typename T>
class Buffer {
 public:
  Buffer(Engine& engine, size_t n) : engine_(engine), data_(static_cast<T*>(engine.allocate(n * sizeof(T)))), n_(n) {}
  Buffer(Engine& engine, const std::vector<T>& values) : Buffer(engine, values.size()) {
    if (n_ > 0) std::memcpy(data_, values.data(), n_ * sizeof(T));
  }
  ~Buffer() { engine_.release(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return data_; }
  size_t size() const { return n_; }

 private:
  Engine& engine_;
  T* data_;
  size_t n_;
};

// A buffer with a margin on both sides that must stay as it was.
template <typename T>
class Ringed {
 public:
  Ringed(Engine& engine, size_t n) : buffer_(engine, n + 2 * kMargin) {
    std::memset(buffer_.data(), kSentinel, buffer_.size() * sizeof(T));
  }
  T* data() const { return buffer_.data() + kMargin; }
  size_t size() const { return buffer_.size() - 2 * kMargin; }
  T operator[](size_t i) const { return data()[i]; }
  std::vector<T> values() const { return {data(), data() + size()}; }
  bool intact() const { return untouched(buffer_.data()) && untouched(data() + size()); }

 private:
  static constexpr size_t kMargin = 64;
  static constexpr int kSentinel = 0x5a;

  static bool untouched(const T* margin) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(margin);
    for (size_t i = 0; i < kMargin * sizeof(T); ++i)
      if (bytes[i] != kSentinel) return false;
    return true;
  }

  Buffer<T> buffer_;
};

// ---- 16-bit types -----------------------------------------------------------------------------------------------

inline size_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

inline float from_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float sign = bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(static_cast<float>(1024 + fraction), exponent - 25)
                          : std::ldexp(static_cast<float>(fraction), -24));
}

// Rounds to nearest even.
inline uint16_t to_half(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return 0x7e00;
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  if (magnitude == 0 || exponent < -13) exponent = -13;  // subnormal: steps of 2^-24
  const auto steps = static_cast<uint16_t>(std::nearbyint(std::ldexp(magnitude, 11 - exponent)));
  return static_cast<uint16_t>(sign | ((exponent + 13) * 1024 + steps));
}

inline float rounded(float value, DType dtype) {
  if (dtype == DType::kFloat16) return from_half(to_half(value));
  if (dtype == DType::kBFloat16) return from_bf16(to_bf16(value));
  return value;
}

inline void store(void* at, int64_t index, float value, DType dtype) {
  const uint16_t bits = dtype == DType::kFloat16 ? to_half(value) : to_bf16(value);
  if (dtype == DType::kFloat32)
    std::memcpy(static_cast<float*>(at) + index, &value, 4);
  else
    std::memcpy(static_cast<uint16_t*>(at) + index, &bits, 2);
}

inline Matrix random_matrix(Random& random, int64_t rows, int64_t columns, DType dtype) {
  Matrix matrix{rows, columns, std::vector<float>(rows * columns)};
  for (float& v : matrix.values) v = rounded(normal(random), dtype);
  return matrix;
}

// How rows lie in memory, in elements: `shift` before the first, `gap` after each. The space between them is NaN.
struct Placement {
  int64_t shift = 0, gap = 0;
};

// A matrix in its dtype, ending with its last element.
class Placed {
 public:
  Placed(Engine& engine, const Matrix& matrix, DType dtype, Placement placement = {})
      : dtype_(dtype),
        shift_(placement.shift),
        stride_(matrix.columns + placement.gap),
        bytes_(engine, size_of(dtype) * (matrix.rows > 0 ? shift_ + (matrix.rows - 1) * stride_ + matrix.columns : 0)) {
    std::memset(bytes_.data(), 0xff, bytes_.size());
    for (int64_t r = 0; r < matrix.rows; ++r)
      for (int64_t c = 0; c < matrix.columns; ++c)
        store(bytes_.data(), shift_ + r * stride_ + c, matrix.row(r)[c], dtype);
  }
  const void* data() const { return bytes_.size() > 0 ? bytes_.data() + shift_ * size_of(dtype_) : bytes_.data(); }
  int64_t stride() const { return stride_; }
  StateRows rows() const { return {data(), dtype_, stride_}; }

 private:
  DType dtype_;
  int64_t shift_, stride_;
  Buffer<unsigned char> bytes_;
};

// ---- rankers ----------------------------------------------------------------------------------------------------

struct Shape {
  int64_t d, p, heads, ffn, layers;
  bool norm_first, bf16;

  RankerLayout layout() const {
    RankerLayout layout{};
    layout.d = d;
    layout.p = p;
    layout.heads = heads;
    layout.layers = layers;
    layout.ffn = ffn;
    layout.norm_first = norm_first;
    layout.bf16 = bf16;
    return layout;
  }
};

// Weights of the sizes that training leaves; matrices are rounded if they will be packed as bf16.
inline Weights random_weights(Random& random, const Shape& shape) {
  const auto matrix = [&](int64_t rows, int64_t columns) {
    std::vector<float> values(rows * columns);
    for (float& v : values)
      v = rounded(normal(random) / std::sqrt(static_cast<float>(columns)),
                  shape.bf16 ? DType::kBFloat16 : DType::kFloat32);
    return values;
  };
  const auto vector = [&](int64_t n, float centre) {
    std::vector<float> values(n);
    for (float& v : values) v = centre + 0.1f * normal(random);
    return values;
  };
  const int64_t p = shape.p, ffn = shape.ffn;
  Weights weights{shape.d, p, shape.heads, ffn, shape.norm_first, matrix(p, shape.d), vector(p, 0), {}};
  for (int64_t i = 0; i < shape.layers; ++i)
    weights.layers.push_back({matrix(3 * p, p), vector(3 * p, 0), matrix(p, p), vector(p, 0), matrix(ffn, p),
                              vector(ffn, 0), matrix(p, ffn), vector(p, 0), vector(p, 1), vector(p, 0), vector(p, 1),
                              vector(p, 0)});
  return weights;
}

struct Ranker {
  Ranker(Engine& engine, Random& random, const Shape& shape)
      : layout(shape.layout()), weights(random_weights(random, shape)), packed(engine, layout.size_bytes()) {
    std::vector<LayerWeights> layers;
    for (const Layer& w : weights.layers)
      layers.push_back({w.in_proj_weight.data(), w.in_proj_bias.data(), w.out_proj_weight.data(),
                        w.out_proj_bias.data(), w.linear1_weight.data(), w.linear1_bias.data(), w.linear2_weight.data(),
                        w.linear2_bias.data(), w.norm1_weight.data(), w.norm1_bias.data(), w.norm2_weight.data(),
                        w.norm2_bias.data()});
    pack_ranker(layout, weights.projection_weight.data(), weights.projection_bias.data(), layers.data(), packed.data());
  }

  RankerLayout layout;
  Weights weights;
  Buffer<unsigned char> packed;
};

}  // namespace srr::test
