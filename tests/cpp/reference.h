// SPDX-License-Identifier: Apache-2.0
// pool() and score() as srr_fast/reference.py states them, in plain loops. In double it is what kernels are judged
// against; in float it shows what error plain fp32 makes. Shares nothing with the kernels but the names of enums.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "../../csrc/kernels/srr.h"

namespace srr::test {

// A row-major matrix of values that were rounded to whatever the kernels get.
struct Matrix {
  int64_t rows = 0, columns = 0;
  std::vector<float> values;

  const float* row(int64_t i) const { return values.data() + i * columns; }
  float* row(int64_t i) { return values.data() + i * columns; }
};

struct Layer {
  std::vector<float> in_proj_weight, in_proj_bias, out_proj_weight, out_proj_bias;
  std::vector<float> linear1_weight, linear1_bias, linear2_weight, linear2_bias;
  std::vector<float> norm1_weight, norm1_bias, norm2_weight, norm2_bias;
};

struct Weights {
  int64_t d = 0, p = 0, heads = 1, ffn = 0;
  bool norm_first = false;
  std::vector<float> projection_weight, projection_bias;
  std::vector<Layer> layers;
  bool rounds = false;  // the encoder keeps bfloat16 between its steps
};

template <typename Real>
struct Answer {
  std::vector<Real> scores, probs;
  std::vector<int64_t> best;
};

// ---- bfloat16 ---------------------------------------------------------------------------------------------------

inline float from_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

inline uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (std::isnan(value)) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// ---- pool -----------------------------------------------------------------------------------------------------

// Weighted sum [d] of tokens [start, stop) of `states` [T, d], and their total weight.
template <typename Real>
std::vector<Real> pool_sum(const Matrix& states, int64_t start, int64_t stop, Pooling pooling,
                           const std::vector<float>& gate, Real* weight) {
  const int64_t d = states.columns;
  std::vector<Real> total(d, 0);
  *weight = 0;
  for (int64_t t = start; t < stop; ++t) {
    const float* x = states.row(t);
    Real g = 1;
    if (pooling == Pooling::kLast && t + 1 < stop) continue;
    if (pooling == Pooling::kGated) {
      Real z = gate[d];
      for (int64_t i = 0; i < d; ++i) z += Real(x[i]) * Real(gate[i]);
      g = 1 / (1 + std::exp(-std::clamp(z, Real(-60), Real(60))));
    }
    for (int64_t i = 0; i < d; ++i) total[i] += g * Real(x[i]);
    *weight += g;
  }
  return total;
}

template <typename Real>
std::vector<Real> pool(const Matrix& states, int64_t start, int64_t stop, Pooling pooling,
                       const std::vector<float>& gate) {
  if (start < 0 || stop > states.rows) return std::vector<Real>(states.columns, std::numeric_limits<Real>::quiet_NaN());
  Real weight;
  std::vector<Real> total = pool_sum<Real>(states, start, stop, pooling, gate, &weight);
  for (Real& v : total) v = weight == 0 ? std::numeric_limits<Real>::quiet_NaN() : v / weight;
  return total;
}

// ---- score ----------------------------------------------------------------------------------------------------

// `x` as a step leaves it to the next.
template <typename Real>
std::vector<Real> kept(std::vector<Real> x, bool rounds) {
  if (rounds)
    for (Real& v : x) v = from_bf16(to_bf16(static_cast<float>(v)));
  return x;
}

// x W^T + b; W is [n, k].
template <typename Real>
std::vector<Real> linear(const std::vector<Real>& x, const std::vector<float>& W, const std::vector<float>& b) {
  std::vector<Real> y(b.size());
  for (size_t n = 0; n < b.size(); ++n) {
    Real sum = 0;
    for (size_t k = 0; k < x.size(); ++k) sum += x[k] * Real(W[n * x.size() + k]);
    y[n] = sum + Real(b[n]);
  }
  return y;
}

template <typename Real>
std::vector<Real> layer_norm(const std::vector<Real>& x, const std::vector<float>& weight,
                             const std::vector<float>& bias) {
  Real mean = 0, variance = 0;
  for (Real v : x) mean += v;
  mean /= Real(x.size());
  for (Real v : x) variance += (v - mean) * (v - mean);
  variance /= Real(x.size());
  std::vector<Real> y(x.size());
  for (size_t i = 0; i < x.size(); ++i)
    y[i] = (x[i] - mean) / std::sqrt(variance + Real(1e-5)) * Real(weight[i]) + Real(bias[i]);
  return y;
}

template <typename Real>
void add(std::vector<Real>& x, const std::vector<Real>& y) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

template <typename Real>
using Sequence = std::vector<std::vector<Real>>;

template <typename Real>
Sequence<Real> attention(const Sequence<Real>& x, const Layer& w, int64_t heads, bool rounds) {
  const int64_t p = static_cast<int64_t>(x[0].size()), e = p / heads;
  Sequence<Real> qkv, y;
  for (const auto& v : x) qkv.push_back(kept(linear(kept(v, rounds), w.in_proj_weight, w.in_proj_bias), rounds));
  for (const auto& own : qkv) {
    std::vector<Real> mixed(p, 0);
    for (int64_t h = 0; h < heads; ++h) {
      std::vector<Real> a;
      Real highest = -std::numeric_limits<Real>::infinity(), total = 0;
      for (const auto& other : qkv) {
        Real dot = 0;
        for (int64_t i = h * e; i < (h + 1) * e; ++i) dot += own[i] * other[p + i];
        a.push_back(dot / std::sqrt(Real(e)));
        highest = std::max(highest, a.back());
      }
      for (Real& v : a) total += v = std::exp(v - highest);
      a = kept(a, rounds);
      for (size_t j = 0; j < qkv.size(); ++j)
        for (int64_t i = h * e; i < (h + 1) * e; ++i) mixed[i] += a[j] / total * qkv[j][2 * p + i];
    }
    y.push_back(linear(kept(mixed, rounds), w.out_proj_weight, w.out_proj_bias));
  }
  return y;
}

template <typename Real>
std::vector<Real> feed(const std::vector<Real>& x, const Layer& w, bool rounds) {
  std::vector<Real> hidden = linear(kept(x, rounds), w.linear1_weight, w.linear1_bias);
  for (Real& v : hidden) v = v / 2 * (1 + std::erf(v * Real(0.70710678118654752440)));
  return linear(kept(hidden, rounds), w.linear2_weight, w.linear2_bias);
}

template <typename Real>
void encode(Sequence<Real>& x, const Weights& weights) {
  const auto keep = [&](std::vector<Real>& v) { v = kept(v, weights.rounds); };
  for (const Layer& w : weights.layers) {
    for (auto& v : x) keep(v);
    Sequence<Real> y = x;
    if (weights.norm_first)
      for (auto& v : y) v = layer_norm(v, w.norm1_weight, w.norm1_bias);
    y = attention(y, w, weights.heads, weights.rounds);
    for (size_t i = 0; i < x.size(); ++i) {
      add(x[i], y[i]);
      keep(x[i]);
      if (weights.norm_first) {
        add(x[i], feed(layer_norm(x[i], w.norm2_weight, w.norm2_bias), w, weights.rounds));
      } else {
        x[i] = layer_norm(x[i], w.norm1_weight, w.norm1_bias);
        add(x[i], feed(x[i], w, weights.rounds));
        keep(x[i]);
        x[i] = layer_norm(x[i], w.norm2_weight, w.norm2_bias);
      }
      keep(x[i]);
    }
  }
}

template <typename Real>
Real cosine(const std::vector<Real>& a, const std::vector<Real>& b) {
  Real ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += a[i] * b[i];
    aa += a[i] * a[i];
    bb += b[i] * b[i];
  }
  const Real value = ab / (std::max(std::sqrt(aa), Real(1e-8)) * std::max(std::sqrt(bb), Real(1e-8)));
  return std::isnan(value) ? value : std::clamp(value, Real(-1), Real(1));
}

template <typename Real>
bool all_finite(const std::vector<Real>& x) {
  for (Real v : x)
    if (!(std::abs(v) <= Real(1e15))) return false;
  return true;
}

// `sizes`: candidates of each list, which lie one after another in `resp`.
template <typename Real>
Answer<Real> score(const Weights& weights, const Matrix& inst, const Matrix& resp, const std::vector<int64_t>& sizes,
                   Scope scope, Real temperature) {
  constexpr Real kOut = -std::numeric_limits<Real>::infinity();
  const auto project = [&](const float* row) {
    return linear(std::vector<Real>(row, row + weights.d), weights.projection_weight, weights.projection_bias);
  };
  Answer<Real> answer;
  int64_t begin = 0;
  for (size_t b = 0; b < sizes.size(); ++b) {
    const std::vector<Real> instruction = project(inst.row(static_cast<int64_t>(b)));
    std::vector<Real> scores(sizes[b], kOut), probs(sizes[b], 0);
    Sequence<Real> list{instruction};
    std::vector<int64_t> place;
    for (int64_t i = 0; i < sizes[b] && all_finite(instruction); ++i) {
      const std::vector<Real> candidate = project(resp.row(begin + i));
      if (!all_finite(candidate)) continue;
      if (scope == Scope::kPair) {
        Sequence<Real> pair{instruction, candidate};
        encode(pair, weights);
        scores[i] = cosine(pair[0], pair[1]);
      } else {
        list.push_back(candidate);
        place.push_back(i);
      }
    }
    if (!place.empty()) {
      encode(list, weights);
      for (size_t j = 0; j < place.size(); ++j) scores[place[j]] = cosine(list[0], list[j + 1]);
    }
    int64_t best = -1;
    for (int64_t i = 0; i < sizes[b]; ++i) {
      if (!std::isfinite(scores[i])) scores[i] = kOut;
      if (scores[i] != kOut && (best < 0 || scores[i] > scores[best])) best = i;
    }
    Real total = 0;
    for (int64_t i = 0; i < sizes[b] && best >= 0; ++i)
      total += probs[i] = std::exp((scores[i] - scores[best]) / temperature);
    for (Real& v : probs) v = best >= 0 ? v / total : Real(0);
    answer.scores.insert(answer.scores.end(), scores.begin(), scores.end());
    answer.probs.insert(answer.probs.end(), probs.begin(), probs.end());
    answer.best.push_back(best);
    begin += sizes[b];
  }
  return answer;
}

}  // namespace srr::test
