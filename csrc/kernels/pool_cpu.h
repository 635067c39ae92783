// SPDX-License-Identifier: Apache-2.0
// pool and pool_update_ on the CPU. A row's sum runs over its tokens in an order that depends on the span alone;
// columns are independent, so work is cut by rows and by columns.

constexpr int64_t kPoolColumns = 4096;           // columns summed together: their fp32 sums stay in the L1 cache
constexpr int64_t kPoolTokens = 8;               // tokens read side by side
constexpr int64_t kPoolAheadBytes = 512;         // how far ahead each is fetched: at its end, the one after them all
constexpr int64_t kPoolWorkerBytes = 512 << 10;  // less than this per extra worker is not worth waking it

struct Span {
  int64_t start, tokens;
  bool valid;  // within [0, T]
};
SRR_INLINE Span span_of(const TokenSpans& in, int64_t row) {
  const int64_t start = in.spans[row * in.span_stride];
  const int64_t stop = in.spans[row * in.span_stride + in.span_stop_stride];
  return {start, stop > start ? stop - start : 0, 0 <= start && start <= in.T && 0 <= stop && stop <= in.T};
}

// acc[c] += weight * x[c].
template <class State>
SRR_INLINE void add_token(const typename State::Bits* x, int64_t columns, float weight, float* acc) {
  const F32x16 w = set1(weight);
  int64_t c = 0;
  for (; c + 16 <= columns; c += 16) store(acc + c, fma(w, State::load16(x + c), load(acc + c)));
  if (c < columns)
    store_first(acc + c, fma(w, load_first<State>(x + c, columns - c), load_first<StateF32>(acc + c, columns - c)),
                columns - c);
}

// acc[c] += x_t[c] over n <= kPoolTokens tokens, for columns [0, columns).
template <class State>
SRR_INLINE void add_tokens(const typename State::Bits* x, int64_t token_stride, int64_t n, int64_t columns,
                           float* acc) {
  if (n == kPoolTokens) {
    constexpr int64_t line = 64 / sizeof(typename State::Bits), ahead = kPoolAheadBytes / sizeof(typename State::Bits);
    int64_t c = 0;
    for (; c + 16 <= columns; c += 16) {
      if (c % line == 0) {
        const int64_t next = c + ahead < columns ? c + ahead : c + ahead - columns + kPoolTokens * token_stride;
#pragma GCC unroll 8
        for (int t = 0; t < kPoolTokens; ++t) __builtin_prefetch(x + t * token_stride + next);
      }
      F32x16 v[kPoolTokens];
#pragma GCC unroll 8
      for (int t = 0; t < kPoolTokens; ++t) v[t] = State::load16(x + t * token_stride + c);
      store(acc + c, load(acc + c) + (((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]))));
    }
    if (c == columns) return;
    F32x16 v[kPoolTokens];
    for (int t = 0; t < kPoolTokens; ++t) v[t] = load_first<State>(x + t * token_stride + c, columns - c);
    const F32x16 total = load_first<StateF32>(acc + c, columns - c) +
                         (((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7])));
    store_first(acc + c, total, columns - c);
    return;
  }
  for (int64_t t = 0; t < n; ++t) add_token<State>(x + t * token_stride, columns, 1.0f, acc);
}

// sigmoid(gate . x + bias)
template <class State>
SRR_INLINE float gate_of(const typename State::Bits* x, const float* gate, int64_t d) {
  F32x16 total[4] = {zero(), zero(), zero(), zero()};
  int64_t c = 0, i = 0;
  for (; c + 16 <= d; c += 16, i = (i + 1) % 4) total[i] = fma(State::load16(x + c), load(gate + c), total[i]);
  if (c < d) total[i] = fma(load_first<State>(x + c, d - c), load_first<StateF32>(gate + c, d - c), total[i]);
  float z = sum((total[0] + total[1]) + (total[2] + total[3])) + gate[d];
  z = z > kGateLimit ? kGateLimit : z < -kGateLimit ? -kGateLimit : z;
  float lanes[16];  // from the side that cannot overflow
  store(lanes, exp(set1(z < 0 ? z : -z)));
  return (z < 0 ? lanes[0] : 1.0f) / (1.0f + lanes[0]);
}

// Adds the tokens of a valid span to acc[column0 .. column1); returns what the span adds to the weight. The first
// token starts at x.
template <class State>
SRR_INLINE float add_span(const TokenSpans& in, const typename State::Bits* x, int64_t tokens, int64_t column0,
                          int64_t column1, float* acc) {
  const int64_t columns = column1 - column0;
  if (tokens == 0) return 0;
  if (in.pooling == Pooling::kLast) {
    for (int64_t c = 0; c < columns; ++c) acc[c] = 0;
    add_token<State>(x + (tokens - 1) * in.token_stride + column0, columns, 1.0f, acc);
    return 1;
  }
  if (in.pooling == Pooling::kMean) {
    for (int64_t t = 0; t < tokens; t += kPoolTokens)
      add_tokens<State>(x + t * in.token_stride + column0, in.token_stride, at_most(tokens - t, kPoolTokens), columns,
                        acc);
    return static_cast<float>(tokens);
  }
  float weight = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    const float g = gate_of<State>(x + t * in.token_stride, in.gate, in.d);
    add_token<State>(x + t * in.token_stride + column0, columns, g, acc);
    weight += g;
  }
  return weight;
}

// Calls body(row, span, first token, column0, column1) for pieces that cover all rows and columns. Gated pooling
// reads whole tokens, so its rows stay whole.
template <class State, class Body>
SRR_INLINE void for_pieces(const TokenSpans& in, const Threads& threads, Body&& body) {
  const int64_t width = in.pooling == Pooling::kGated || in.d <= kPoolColumns ? in.d : kPoolColumns;
  const int64_t cuts = in.d ? (in.d + width - 1) / width : 0, pieces = in.M * cuts;
  int64_t bytes = 0;
  for (int64_t m = 0; m < in.M; ++m) {
    const Span s = span_of(in, m);
    if (s.valid) bytes += (in.pooling == Pooling::kLast ? 1 : s.tokens) * in.d * sizeof(typename State::Bits);
  }
  const int64_t available = threads.run ? threads.threads : 1;
  const int64_t workers = at_most(at_most(available, pieces ? pieces : 1), 1 + bytes / kPoolWorkerBytes);
  parallel(threads, workers, [&](int64_t worker) {
    for (int64_t i = pieces * worker / workers; i < pieces * (worker + 1) / workers; ++i) {
      const int64_t row = i / cuts, column0 = i % cuts * width;
      const Span s = span_of(in, row);
      const auto* x = static_cast<const typename State::Bits*>(in.states) + row * in.row_stride;
      body(row, s, s.valid ? x + s.start * in.token_stride : x, column0, at_most(in.d, column0 + width));
    }
  });
}

inline void pool(const PoolParams& a, Threads threads) {
  with_state(a.in.dtype, [&](auto state) {
    using State = decltype(state);
    for_pieces<State>(a.in, threads, [&](int64_t row, Span s, const auto* x, int64_t column0, int64_t column1) {
      float* out = a.out + row * a.out_stride + column0;
      for (int64_t c = 0; c < column1 - column0; ++c) out[c] = 0;
      float weight = s.valid ? add_span<State>(a.in, x, s.tokens, column0, column1, out) : 0;
      if (weight == 0) weight = __builtin_nanf("");
      if (a.in.pooling == Pooling::kLast && weight == 1) return;
      for (int64_t c = 0; c < column1 - column0; ++c) out[c] /= weight;
    });
  });
}

inline void pool_update(const PoolUpdateParams& a, Threads threads) {
  with_state(a.in.dtype, [&](auto state) {
    using State = decltype(state);
    for_pieces<State>(a.in, threads, [&](int64_t row, Span s, const auto* x, int64_t column0, int64_t column1) {
      float* acc = a.acc + row * a.acc_stride + column0;
      const float added = s.valid ? add_span<State>(a.in, x, s.tokens, column0, column1, acc) : __builtin_nanf("");
      if (column0 > 0) return;  // one piece of a row keeps its weight
      if (a.in.pooling == Pooling::kLast && added == 1)
        a.weight[row] = 1;
      else
        a.weight[row] += added;
    });
  });
}
