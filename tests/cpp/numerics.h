// SPDX-License-Identifier: Apache-2.0
// The one place that says how exact is exact enough, and counts what was not. Knows no kernel.
#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

namespace srr::test {

// An error is at most this many times that of the same maths done straightforwardly in fp32 (where the engine rounds to
// bfloat16, rounded likewise), plus a floor for where that happens to be exact.
constexpr double kErrorBudget = 2.0;
// In units of the largest state: a pooled state that rounds once more than the straightforward one.
constexpr double kPoolFloor = 2.4e-7;
// Of a cosine, which is at most 1: four roundings near 1.
constexpr double kScoreFloor = 2.4e-7;
// A probability moves by at most half of how far the scores move, in units of the temperature; and rounds itself.
inline double probability_floor(double temperature) { return kScoreFloor / temperature + 1.2e-7; }

class Report {
 public:
  // Where the checks that follow happen.
  std::string place;

  __attribute__((format(printf, 3, 4))) void check(bool ok, const char* format, ...) {
    if (ok) {
      ++passed_;
      return;
    }
    ++failed_;
    std::printf("FAIL %s: ", place.c_str());
    va_list args;
    va_start(args, format);
    std::vprintf(format, args);
    va_end(args);
    std::printf("\n");
  }

  // |got - exact| against |plain - exact|, the largest of each over the values that are finite in `exact`; where
  // `exact` is not, got must be the same kind of not finite.
  template <typename Got>
  void close(const char* what, const Got& got, const std::vector<double>& exact, const std::vector<float>& plain,
             double floor) {
    double error = 0, allowed = 0;
    size_t worst = 0, odd = exact.size();
    for (size_t i = 0; i < exact.size(); ++i) {
      const double g = got[i], e = exact[i];
      if (!std::isfinite(e)) {
        if (std::isnan(e) ? !std::isnan(g) : g != e) odd = i;
        continue;
      }
      if (!std::isfinite(g)) {
        odd = i;
        continue;
      }
      allowed = std::fmax(allowed, std::fabs(plain[i] - e));
      if (std::fabs(g - e) > error) {
        error = std::fabs(g - e);
        worst = i;
      }
    }
    if (odd < exact.size()) {
      check(false, "%s[%zu] is %g, wanted %g", what, odd, static_cast<double>(got[odd]), exact[odd]);
      return;
    }
    check(error <= kErrorBudget * allowed + floor, "%s[%zu] is off by %.3g, wanted at most %.1f * %.3g + %.3g", what,
          worst, error, kErrorBudget, allowed, floor);
    if (error > 0) worst_share_ = std::fmax(worst_share_, error / (kErrorBudget * allowed + floor));
  }

  template <typename A, typename B>
  void same_bits(const char* what, const A* a, const B* b, size_t n) {
    static_assert(sizeof(A) == sizeof(B));
    for (size_t i = 0; i < n; ++i) {
      if (std::memcmp(a + i, b + i, sizeof(A)) == 0) continue;
      check(false, "%s[%zu] is %.9g and %.9g, wanted the same bits", what, i, static_cast<double>(a[i]),
            static_cast<double>(b[i]));
      return;
    }
    check(true, "%s", what);
  }

  int summary() const {
    std::printf("largest error: %.0f %% of what is allowed\n%lld passed, %lld failed\n", 100 * worst_share_, passed_,
                failed_);
    return failed_ == 0 ? 0 : 1;
  }

 private:
  long long passed_ = 0, failed_ = 0;
  double worst_share_ = 0;
};

}  // namespace srr::test
