// SPDX-License-Identifier: Apache-2.0
// Tests pool(), pool_update() and score() of whichever engine it is linked with. Prints a line for every check that
// fails and how many passed. --quick: the small cases, for machines that are a thousand times slower.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "cases.h"
#include "data.h"
#include "engine.h"
#include "numerics.h"
#include "reference.h"

namespace srr::test {
namespace {

// ---- pool -----------------------------------------------------------------------------------------------------

// Token states of M rows, padded [M, T, d] or packed [M * T, d], their spans and a gate, as kernels want them.
struct PoolInput {
  PoolInput(Engine& engine, const std::vector<Matrix>& rows, const std::vector<Span>& row_spans, bool packed,
            Pooling pooling, DType dtype, Placement placement, const std::vector<float>& gate_values)
      : states(engine, stacked(rows), dtype, placement),
        spans(engine, 2 * rows.size()),
        gate(engine, gate_values),
        packed(packed) {
    const int64_t M = static_cast<int64_t>(rows.size()), T = rows.empty() ? 0 : rows[0].rows;
    in = {states.data(),
          dtype,
          packed ? 0 : T * states.stride(),
          states.stride(),
          M,
          packed ? M * T : T,
          rows.empty() ? 0 : rows[0].columns,
          spans.data(),
          1,  // all starts, then all stops
          M,
          pooling,
          pooling == Pooling::kGated ? gate.data() : nullptr};
    set_spans(row_spans);
  }

  // `row_spans`: within each row's own tokens.
  void set_spans(const std::vector<Span>& row_spans) {
    const int64_t T = packed && in.M > 0 ? in.T / in.M : in.T;
    for (int64_t m = 0; m < in.M; ++m) {
      int64_t start = row_spans[m].start, stop = row_spans[m].stop;
      if (packed) {  // a span that leaves its row must leave the buffer too
        start += start < 0 ? 0 : m * T;
        stop += stop > T ? in.T : m * T;
      }
      spans.data()[m] = start;
      spans.data()[in.M + m] = stop;
    }
  }

  static Matrix stacked(const std::vector<Matrix>& rows) {
    Matrix all;
    for (const Matrix& row : rows) {
      all.rows += row.rows;
      all.columns = row.columns;
      all.values.insert(all.values.end(), row.values.begin(), row.values.end());
    }
    return all;
  }

  Placed states;
  Buffer<int64_t> spans;
  Buffer<float> gate;
  bool packed;
  TokenSpans in;
};

// pool() of all rows, [M, d] without the gaps between them.
std::vector<float> run_pool(Engine& engine, Report& report, const PoolInput& input, int attempt) {
  const int64_t d = input.in.d, stride = d + 3;
  Ringed<float> out(engine, input.in.M > 0 ? (input.in.M - 1) * stride + d : 0);
  const std::vector<float> before = out.values();
  engine.pool({input.in, out.data(), stride}, attempt);
  report.check(out.intact(), "pool wrote outside its output");
  std::vector<float> rows;
  for (size_t i = 0; i < out.size(); ++i) {
    if (static_cast<int64_t>(i) % stride < d)
      rows.push_back(out[i]);
    else
      report.check(std::memcmp(&before[i], out.data() + i, 4) == 0, "pool wrote between rows");
  }
  return rows;
}

void test_pool_case(Engine& engine, Report& report, Pooling pooling, DType dtype, bool packed, Placement placement,
                    int64_t d, int64_t T) {
  Random random(d);
  const std::vector<Span> spans = pool_spans(T);
  std::vector<Matrix> rows;
  for (size_t m = 0; m < spans.size(); ++m) rows.push_back(random_matrix(random, T, d, dtype));
  std::vector<float> gate(d + 1);
  for (float& v : gate) v = normal(random) / std::sqrt(static_cast<float>(d));

  std::vector<double> exact;
  std::vector<float> plain;
  for (size_t m = 0; m < spans.size(); ++m) {
    const auto e = pool<double>(rows[m], spans[m].start, spans[m].stop, pooling, gate);
    const auto f = pool<float>(rows[m], spans[m].start, spans[m].stop, pooling, gate);
    exact.insert(exact.end(), e.begin(), e.end());
    plain.insert(plain.end(), f.begin(), f.end());
  }
  double largest = 0;
  for (const Matrix& row : rows)
    for (float v : row.values) largest = std::max(largest, std::fabs(double{v}));
  const double floor = pooling == Pooling::kLast ? 0 : kPoolFloor * largest;

  PoolInput input(engine, rows, spans, packed, pooling, dtype, placement, gate);
  const std::vector<float> got = run_pool(engine, report, input, 0);
  report.close("pool", got, exact, plain, floor);
  report.same_bits("pool, run again,", got.data(), run_pool(engine, report, input, 1).data(), got.size());

  const PoolInput alone(engine, {rows[4]}, {spans[4]}, packed, pooling, dtype, placement, gate);
  report.same_bits("pool, row 4 alone,", got.data() + 4 * d, run_pool(engine, report, alone, 0).data(), d);

  // Streaming: each span in three parts, of which some are empty.
  Ringed<float> acc(engine, spans.size() * d), weight(engine, spans.size());
  std::fill_n(acc.data(), acc.size(), 0.0f);
  std::fill_n(weight.data(), weight.size(), 0.0f);
  for (int part = 0; part < 3; ++part) {
    std::vector<Span> parts;
    for (const Span& span : spans) {
      const int64_t cut1 = std::min(span.start + 2, span.stop), cut2 = std::min(span.start + 13, span.stop);
      const bool usable = span.start >= 0 && span.start < span.stop;
      parts.push_back(!usable     ? span
                      : part == 0 ? Span{span.start, cut1}
                      : part == 1 ? Span{cut1, cut2}
                                  : Span{cut2, span.stop});
    }
    input.set_spans(parts);
    engine.pool_update({input.in, acc.data(), d, weight.data()}, part);
  }
  report.check(acc.intact() && weight.intact(), "pool_update wrote outside its outputs");
  std::vector<float> streamed;
  for (size_t i = 0; i < acc.size(); ++i) streamed.push_back(acc[i] / weight[i / d]);
  report.close("pool_update", streamed, exact, plain, floor);
  report.check(weight[1] == 0, "pool_update gave an empty span the weight %g", weight[1]);
  for (int64_t i = 0; i < d; ++i)
    if (acc[d + i] != 0) report.check(false, "pool_update changed the row of an empty span");
  if (pooling != Pooling::kGated)
    report.check(weight[4] == (pooling == Pooling::kLast ? 1.0f : 17.0f), "pool_update's weight is %g", weight[4]);
}

void test_pool(Engine& engine, Report& report, bool quick) {
  for (const PoolWidth& width : kPoolWidths)
    for (const NamedPlacement& named : kPlacements)
      for (Pooling pooling : kPoolings)
        for (DType dtype : kDTypes)
          for (bool packed : {false, true}) {
            if (quick && (width.d != 385 || packed == (dtype == DType::kFloat32) || dtype == DType::kFloat16 ||
                          named.placement.shift != 1))
              continue;
            report.place = engine.name() + " pool " + name_of(pooling) + " " + name_of(dtype) +
                           (packed ? " packed, " : " padded, ") + named.why + ", d=" + std::to_string(width.d) + " (" +
                           width.why + ")";
            test_pool_case(engine, report, pooling, dtype, packed, named.placement, width.d, kPoolTokens);
          }
  for (Pooling pooling : {Pooling::kMean, Pooling::kGated})
    for (bool packed : {false, true}) {
      report.place = engine.name() + " pool " + name_of(pooling) + " of many tokens" + (packed ? ", packed" : "");
      test_pool_case(engine, report, pooling, DType::kBFloat16, packed, {0, 16}, 72, kManyTokens);
    }
  report.place = engine.name() + " pool of no rows";
  const PoolInput none(engine, {}, {}, false, Pooling::kMean, DType::kFloat32, {}, {});
  run_pool(engine, report, none, 0);
}

// ---- score ----------------------------------------------------------------------------------------------------

struct Lists {
  Matrix inst, resp;
  std::vector<int64_t> sizes;
};

struct Result {
  std::vector<float> scores, probs;
  std::vector<int64_t> best;
};

struct ScoreOptions {
  Scope scope = Scope::kList;
  DType dtype = DType::kFloat32;
  Placement placement = {};
  float temperature = 0.1f;
  int attempt = 0;
  bool equal_lists = false;           // leave the offsets out
  std::vector<int64_t> offsets = {};  // instead of those of the sizes
};

Result run_score(Engine& engine, Report& report, const Ranker& ranker, const Lists& lists,
                 const ScoreOptions& options) {
  const int64_t B = lists.inst.rows, M = lists.resp.rows;
  const Placed inst(engine, lists.inst, options.dtype, options.placement);
  const Placed resp(engine, lists.resp, options.dtype, options.placement);
  std::vector<int64_t> ends(1, 0);
  for (int64_t n : lists.sizes) ends.push_back(ends.back() + n);
  const Buffer<int64_t> offsets(engine, options.offsets.empty() ? ends : options.offsets);
  Ringed<float> scores(engine, M), probs(engine, M);
  Ringed<int64_t> best(engine, B);

  ScoreParams params{};
  params.layout = ranker.layout;
  params.packed = ranker.packed.data();
  params.inst = inst.rows();
  params.resp = resp.rows();
  params.offsets = options.equal_lists ? nullptr : offsets.data();
  params.B = B;
  params.M = M;
  params.scope = options.scope;
  params.temperature = options.temperature;
  params.scores = scores.data();
  params.probs = probs.data();
  params.best = best.data();
  engine.score(params, options.attempt);
  report.check(scores.intact() && probs.intact() && best.intact(), "score wrote outside its outputs");
  return {scores.values(), probs.values(), best.values()};
}

// `got` from candidate `begin` and list `b` on is `want`, bit for bit.
void check_same(Report& report, const std::string& what, const Result& got, int64_t begin, int64_t b,
                const Result& want) {
  report.same_bits((what + ": scores").c_str(), got.scores.data() + begin, want.scores.data(), want.scores.size());
  report.same_bits((what + ": probs").c_str(), got.probs.data() + begin, want.probs.data(), want.probs.size());
  report.same_bits((what + ": best").c_str(), got.best.data() + b, want.best.data(), want.best.size());
}

Lists random_lists(Random& random, const std::vector<int64_t>& sizes, int64_t d, DType dtype) {
  const int64_t M = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  Matrix inst = random_matrix(random, static_cast<int64_t>(sizes.size()), d, dtype);
  return {std::move(inst), random_matrix(random, M, d, dtype), sizes};
}

Matrix some_rows(const Matrix& from, const std::vector<int64_t>& rows) {
  Matrix to{static_cast<int64_t>(rows.size()), from.columns, {}};
  for (int64_t r : rows) to.values.insert(to.values.end(), from.row(r), from.row(r) + from.columns);
  return to;
}

std::vector<int64_t> range(int64_t begin, int64_t end) {
  std::vector<int64_t> all(end - begin);
  std::iota(all.begin(), all.end(), begin);
  return all;
}

void test_score_case(Engine& engine, Report& report, const ScoreCase& test, bool quick) {
  Random random(test.shape.d * 1000 + test.shape.p);
  const Ranker ranker(engine, random, test.shape);
  const Lists lists = random_lists(random, test.lists, test.shape.d, test.dtype);
  ScoreOptions options{test.scope, test.dtype, test.placement, test.temperature};
  const Result got = run_score(engine, report, ranker, lists, options);

  const auto exact = score<double>(ranker.weights, lists.inst, lists.resp, test.lists, test.scope, test.temperature);
  Weights plain_weights = ranker.weights;
  plain_weights.rounds = test.shape.bf16 && engine.rounds();
  const auto plain = score<float>(plain_weights, lists.inst, lists.resp, test.lists, test.scope, test.temperature);
  report.close("scores", got.scores, exact.scores, plain.scores, kScoreFloor);
  report.close("probs", got.probs, exact.probs, plain.probs, probability_floor(test.temperature));

  int64_t begin = 0;
  for (size_t b = 0; b < test.lists.size(); ++b) {
    const int64_t n = test.lists[b], best = got.best[b];
    const float* scores = got.scores.data() + begin;
    const int64_t highest = n > 0 ? std::max_element(scores, scores + n) - scores : -1;
    report.check(best == highest, "best[%zu] is %lld, but the highest of its scores is %lld", b,
                 static_cast<long long>(best), static_cast<long long>(highest));
    if (best >= 0 && best < n) {
      const double margin = exact.scores[begin + exact.best[b]] - exact.scores[begin + best];
      report.check(margin <= (plain_weights.rounds ? 1e-2 : 1e-5), "best[%zu] is %lld, which is %.3g below the best", b,
                   static_cast<long long>(best), margin);
    }
    if (test.lists.size() > 1 && !quick) {
      const auto own = static_cast<int64_t>(b);
      const Lists alone{some_rows(lists.inst, {own}), some_rows(lists.resp, range(begin, begin + n)), {n}};
      check_same(report, "list " + std::to_string(b) + " alone", got, begin, own,
                 run_score(engine, report, ranker, alone, options));
    }
    begin += n;
  }
  for (options.attempt = 1; options.attempt <= 2; ++options.attempt)
    check_same(report, "run again", got, 0, 0, run_score(engine, report, ranker, lists, options));
  if (quick) return;
  if (std::equal(test.lists.begin() + 1, test.lists.end(), test.lists.begin())) {
    options.equal_lists = true;
    check_same(report, "without offsets", got, 0, 0, run_score(engine, report, ranker, lists, options));
  }
}

// rank() is pool(), then score(), bit for bit; instructions of another type than the tokens.
void test_rank(Engine& engine, Report& report, Pooling pooling, DType dtype, bool packed, Placement placement,
               int64_t p) {
  report.place = engine.name() + " rank " + name_of(pooling) + " " + name_of(dtype) + (packed ? " packed" : "") +
                 ", p=" + std::to_string(p);
  constexpr int64_t kWidth = 200;
  Random random(19);
  const Ranker ranker(engine, random, {kWidth, p, 2, 64, 1, false, false});
  const std::vector<Span> spans = pool_spans(kPoolTokens);
  std::vector<Matrix> rows;
  for (size_t m = 0; m < spans.size(); ++m) rows.push_back(random_matrix(random, kPoolTokens, kWidth, dtype));
  std::vector<float> gate(kWidth + 1);
  for (float& v : gate) v = normal(random) / 14.0f;
  const PoolInput input(engine, rows, spans, packed, pooling, dtype, placement, gate);

  const int64_t M = input.in.M;
  Lists lists{random_matrix(random, 2, kWidth, DType::kFloat32), {M, kWidth, {}}, {4, M - 4}};
  Buffer<float> pooled(engine, M * kWidth);
  engine.pool({input.in, pooled.data(), kWidth}, 0);
  lists.resp.values.assign(pooled.data(), pooled.data() + pooled.size());
  const Result want = run_score(engine, report, ranker, lists, {});

  const Placed inst(engine, lists.inst, DType::kFloat32);
  const Buffer<int64_t> offsets(engine, std::vector<int64_t>{0, 4, M});
  Ringed<float> scores(engine, M), probs(engine, M);
  Ringed<int64_t> best(engine, 2);
  RankParams params{};
  params.tokens = input.in;
  params.score.layout = ranker.layout;
  params.score.packed = ranker.packed.data();
  params.score.inst = inst.rows();
  params.score.offsets = offsets.data();
  params.score.B = 2;
  params.score.M = M;
  params.score.scope = Scope::kList;
  params.score.temperature = 0.1f;
  params.score.scores = scores.data();
  params.score.probs = probs.data();
  params.score.best = best.data();
  for (int attempt = 0; attempt < 3; ++attempt) {
    engine.rank(params, attempt);
    report.check(scores.intact() && probs.intact() && best.intact(), "rank wrote outside its outputs");
    check_same(report, "rank", {scores.values(), probs.values(), best.values()}, 0, 0, want);
  }
  report.check(scores[1] == -INFINITY && scores[5] == -INFINITY && probs[5] == 0 && scores[2] != -INFINITY,
               "rank does not take out what has no token, or takes out what has one");
}

// Candidates that are out change nobody's bits; a list whose instruction is out has no answer.
void test_out(Engine& engine, Report& report, Scope scope, const Shape& shape) {
  report.place = engine.name() + " score with candidates that are out, " + (scope == Scope::kPair ? "pairs" : "lists") +
                 ", layers=" + std::to_string(shape.layers);
  Random random(7);
  const Ranker ranker(engine, random, shape);
  const ScoreOptions options{scope};
  Lists lists = random_lists(random, {40, 5, 3, 6}, shape.d, DType::kFloat32);
  const std::vector<std::pair<int64_t, float>> bad = {{0, NAN},  {3, INFINITY}, {31, NAN}, {39, -INFINITY},
                                                      {41, NAN}, {45, NAN},     {46, NAN}, {47, NAN}};
  for (const auto& [m, v] : bad) lists.resp.row(m)[m % shape.d] = v;
  lists.inst.row(3)[2] = NAN;
  const Result got = run_score(engine, report, ranker, lists, options);

  std::vector<int64_t> kept;
  for (int64_t m = 0; m < 48; ++m)
    if (std::none_of(bad.begin(), bad.end(), [&](const auto& b) { return b.first == m; })) kept.push_back(m);
  const Lists absent{some_rows(lists.inst, {0, 1, 2}), some_rows(lists.resp, kept), {36, 4, 0}};
  const Result want = run_score(engine, report, ranker, absent, options);

  Result left;
  for (int64_t m : kept) {
    left.scores.push_back(got.scores[m]);
    left.probs.push_back(got.probs[m]);
  }
  check_same(report, "as if absent", {left.scores, left.probs, {}}, 0, 0, {want.scores, want.probs, {}});
  for (int64_t m = 0; m < 54; ++m)
    if (m >= 48 || std::find(kept.begin(), kept.end(), m) == kept.end())
      report.check(got.scores[m] == -INFINITY && got.probs[m] == 0, "candidate %lld is out, its score %g, its prob %g",
                   static_cast<long long>(m), got.scores[m], got.probs[m]);
  report.check(got.best[0] == kept[want.best[0]], "best[0] is %lld", static_cast<long long>(got.best[0]));
  report.check(got.best[1] == kept[36 + want.best[1]] - 40, "best[1] is %lld", static_cast<long long>(got.best[1]));
  report.check(got.best[2] == -1, "best[2] is %lld, all its candidates are out", static_cast<long long>(got.best[2]));
  report.check(got.best[3] == -1, "best[3] is %lld, its instruction is out", static_cast<long long>(got.best[3]));
}

// A score that overflows only after the projection is out as well, and the rest of its list still has an answer.
void test_overflow(Engine& engine, Report& report) {
  report.place = engine.name() + " score that overflows";
  Random random(11);
  const Ranker ranker(engine, random, {64, 32, 2, 64, 1, false, false});
  Lists lists = random_lists(random, {6}, 64, DType::kFloat32);
  for (int64_t i = 0; i < 64; ++i) lists.resp.row(2)[i] = 1e37f * (i % 2 ? 1.0f : -1.0f);
  const Result got = run_score(engine, report, ranker, lists, {Scope::kPair});
  report.check(got.scores[2] == -INFINITY && got.probs[2] == 0, "score %g, prob %g", got.scores[2], got.probs[2]);
  double total = 0;
  for (float p : got.probs) total += p;
  report.check(std::fabs(total - 1) < 1e-5 && got.best[0] >= 0 && got.best[0] != 2, "probs sum to %g, best is %lld",
               total, static_cast<long long>(got.best[0]));
}

// One component of a projected state beyond the limit takes it out, whichever component that is.
void test_limit(Engine& engine, Report& report) {
  report.place = engine.name() + " score of projected states at their limit";
  constexpr int64_t kWidth = 256, kProjected = 32;
  Random random(23);
  const Ranker ranker(engine, random, {kWidth, kProjected, 2, 64, 1, false, false});
  for (const float share : {0.9f, 1.01f}) {
    Lists lists = random_lists(random, {kWidth}, kWidth, DType::kFloat32);
    for (int64_t m = 0; m < kWidth; ++m) {  // a multiple of column m of the projection
      float largest = 0;
      for (int64_t j = 0; j < kProjected; ++j)
        largest = std::max(largest, std::fabs(ranker.weights.projection_weight[j * kWidth + m]));
      std::fill_n(lists.resp.row(m), kWidth, 0.0f);
      lists.resp.row(m)[m] = share * kLargestProjected / largest;
    }
    const Result got = run_score(engine, report, ranker, lists, {Scope::kPair});
    for (int64_t m = 0; m < kWidth; ++m)
      report.check((got.scores[m] == -INFINITY) == (share > 1), "at %g of the limit candidate %lld has score %g", share,
                   static_cast<long long>(m), got.scores[m]);
  }
}

// Attention logits that lie hundreds apart overflow nowhere.
void test_far_logits(Engine& engine, Report& report) {
  report.place = engine.name() + " score with attention logits far apart";
  Random random(29);
  const Ranker ranker(engine, random, {64, 32, 2, 64, 1, false, false});
  Lists lists = random_lists(random, {40}, 64, DType::kFloat32);
  for (Matrix* states : {&lists.inst, &lists.resp})
    for (float& v : states->values) v *= 30;
  const Result got = run_score(engine, report, ranker, lists, {});
  for (float score : got.scores) report.check(std::fabs(score) <= 1, "score %g", score);
}

void test_ties(Engine& engine, Report& report, Scope scope) {
  report.place = engine.name() + " score of equal candidates, " + (scope == Scope::kPair ? "pairs" : "a list");
  Random random(3);
  const Ranker ranker(engine, random, {64, 32, 2, 64, 1, false, false});
  constexpr int64_t kCandidates = 300;  // more than threads in a block: some look at two
  Lists lists = random_lists(random, {kCandidates}, 64, DType::kFloat32);
  // Two states, taken in turn, so that whichever is better, several candidates have the highest score.
  for (int64_t m = 2; m < kCandidates; ++m) std::copy_n(lists.resp.row(m % 2), 64, lists.resp.row(m));
  const Result got = run_score(engine, report, ranker, lists, {scope});
  for (int64_t m = 2; m < kCandidates; ++m)
    report.same_bits("score of an equal candidate", &got.scores[m], &got.scores[m % 2], 1);
  report.check(got.best[0] == (got.scores[1] > got.scores[0]), "best is %lld", static_cast<long long>(got.best[0]));
}

void test_empty(Engine& engine, Report& report) {
  report.place = engine.name() + " score of nothing";
  Random random(5);
  const Ranker ranker(engine, random, {64, 32, 2, 64, 1, false, false});
  for (Scope scope : {Scope::kList, Scope::kPair}) {
    run_score(engine, report, ranker, {{0, 64, {}}, {0, 64, {}}, {}}, {scope});
    const Result got = run_score(engine, report, ranker, random_lists(random, {0, 0, 0}, 64, DType::kFloat32), {scope});
    for (int64_t best : got.best) report.check(best == -1, "best is %lld", static_cast<long long>(best));
  }
}

// Offsets that are no offsets: lists that are whole and overlap none before them have their answer, nobody else.
void test_bad_offsets(Engine& engine, Report& report) {
  Random random(13);
  const Ranker ranker(engine, random, {64, 32, 2, 64, 1, false, false});
  const Lists lists = random_lists(random, {4, 4, 4, 4}, 64, DType::kFloat32);
  constexpr int64_t kHuge = int64_t{1} << 62;
  struct BadOffsets {
    const char* why;
    std::vector<int64_t> offsets;
    std::vector<bool> valid;
  };
  const std::vector<BadOffsets> cases = {
      {"decrease", {0, 4, 2, 6, 16}, {true, false, false, true}},
      {"begin before 0", {-4, 4, 8, 12, 16}, {false, true, true, true}},
      {"end after M", {0, 4, 8, 12, 17}, {true, true, true, false}},
      {"far outside", {kHuge, -kHuge, 8, 12, kHuge}, {false, false, true, false}},
      {"all too large", {20, 24, 28, 32, 36}, {false, false, false, false}},
      {"leave candidates out at both ends", {3, 4, 8, 12, 14}, {true, true, true, true}},
  };
  for (const BadOffsets& test : cases)
    for (Scope scope : {Scope::kList, Scope::kPair}) {
      report.place = engine.name() + " score with offsets that " + test.why;
      ScoreOptions options{scope};
      options.offsets = test.offsets;
      const Result got = run_score(engine, report, ranker, lists, options);
      std::vector<bool> covered(16, false);
      for (int64_t b = 0; b < 4; ++b) {
        if (!test.valid[b]) {
          report.check(got.best[b] == -1, "best[%lld] is %lld", static_cast<long long>(b),
                       static_cast<long long>(got.best[b]));
          continue;
        }
        const int64_t begin = test.offsets[b], end = test.offsets[b + 1];
        for (int64_t m = begin; m < end; ++m) covered[m] = true;
        const Lists alone{some_rows(lists.inst, {b}), some_rows(lists.resp, range(begin, end)), {end - begin}};
        check_same(report, "list " + std::to_string(b) + " alone", got, begin, b,
                   run_score(engine, report, ranker, alone, {scope}));
      }
      for (int64_t m = 0; m < 16; ++m)
        if (!covered[m])
          report.check(got.scores[m] == -INFINITY && got.probs[m] == 0, "candidate %lld has score %g, prob %g",
                       static_cast<long long>(m), got.scores[m], got.probs[m]);
    }
}

// More lists than are looked at together, one of them bad.
void test_many_lists(Engine& engine, Report& report) {
  report.place = engine.name() + " score of many small lists";
  Random random(17);
  const Ranker ranker(engine, random, {16, 16, 1, 16, 1, false, false});
  const Lists lists = random_lists(random, std::vector<int64_t>(600, 1), 16, DType::kFloat32);
  const Result got = run_score(engine, report, ranker, lists, {});
  for (int64_t b = 0; b < 600; ++b)
    if (got.best[b] != 0 || got.probs[b] != 1)
      report.check(false, "list %lld has no answer", static_cast<long long>(b));
  if (!engine.answers_bad_offsets()) return;
  ScoreOptions options;
  options.offsets = range(0, 601);
  options.offsets[10] = 500;  // list 9 is [9, 500): all that begin before 500 overlap it
  const Result bad = run_score(engine, report, ranker, lists, options);
  for (int64_t b = 0; b < 600; ++b) {
    const bool valid = b <= 9 || b >= 500;
    if ((bad.best[b] >= 0) != valid)
      report.check(false, "best[%lld] is %lld", static_cast<long long>(b), static_cast<long long>(bad.best[b]));
  }
}

void test_score(Engine& engine, Report& report, bool quick) {
  for (const ScoreCase& test : score_cases()) {
    if (quick && !test.quick) continue;
    report.place = engine.name() + " score: " + test.why;
    test_score_case(engine, report, test, quick);
  }
  if (quick) return;
  for (Scope scope : {Scope::kList, Scope::kPair}) {
    test_out(engine, report, scope, {64, 32, 2, 64, 1, false, false});
    test_out(engine, report, scope, {384, 30, 3, 64, 2, true, true});
    test_out(engine, report, scope, {64, 32, 2, 64, 0, false, false});
    test_out(engine, report, scope, {64, 144, 2, 64, 1, false, false});
    test_ties(engine, report, scope);
  }
  for (Pooling pooling : kPoolings)
    for (DType dtype : kDTypes) {
      test_rank(engine, report, pooling, dtype, false, {}, 32);
      test_rank(engine, report, pooling, dtype, true, {3, 5}, 32);
    }
  for (Pooling pooling : kPoolings) test_rank(engine, report, pooling, DType::kBFloat16, false, {}, 160);
  test_overflow(engine, report);
  test_limit(engine, report);
  test_far_logits(engine, report);
  test_empty(engine, report);
  test_many_lists(engine, report);
  if (engine.answers_bad_offsets()) test_bad_offsets(engine, report);
}

}  // namespace
}  // namespace srr::test

int main(int argc, char** argv) {
  const bool quick = argc > 1 && std::strcmp(argv[1], "--quick") == 0;
  srr::test::Report report;
  for (const auto& engine : srr::test::engines()) {
    engine->select();
    srr::test::test_pool(*engine, report, quick);
    srr::test::test_score(*engine, report, quick);
  }
  return report.summary();
}
