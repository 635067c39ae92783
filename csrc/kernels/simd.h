// SPDX-License-Identifier: Apache-2.0
// F32x16: sixteen floats, the unit every CPU kernel computes in, for one instruction set.
// Included by isa_*.cpp after the target pragma, inside namespace srr::<isa>. Includes no standard headers: inline
// functions of theirs, compiled for a newer instruction set, could be linked into code that must run on an older one.

#define SRR_INLINE inline __attribute__((always_inline))

#if defined(SRR_AMX) || defined(SRR_BF16_DOT)
#define SRR_BF16  // products of bfloat16 are worth an encoder of their own: encode_bf16.h
#endif

#if defined(SRR_AVX512)

struct F32x16 {
  __m512 v;
};
constexpr int kMaxRows = 6;    // rows of a GEMM tile
constexpr int kMaxPanels = 4;  // panels of a GEMM tile

SRR_INLINE F32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
SRR_INLINE F32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
SRR_INLINE void store(float* p, F32x16 a) { _mm512_storeu_ps(p, a.v); }
SRR_INLINE F32x16 load_bf16(const uint16_t* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
SRR_INLINE F32x16 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
// Splits 32 interleaved bfloat16 (a0 b0 a1 b1 ..) into a and b.
SRR_INLINE void load_bf16_pairs(const uint16_t* p, F32x16& a, F32x16& b) {
  const __m512i bits = _mm512_loadu_si512(p);
  a.v = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
  b.v = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
SRR_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
SRR_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
SRR_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
SRR_INLINE F32x16 operator/(F32x16 a, F32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
SRR_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
SRR_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
SRR_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
SRR_INLINE F32x16 sqrt(F32x16 a) { return {_mm512_sqrt_ps(a.v)}; }
SRR_INLINE F32x16 abs(F32x16 a) { return {_mm512_abs_ps(a.v)}; }
SRR_INLINE F32x16 round(F32x16 a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// x * 2^n for whole n.
SRR_INLINE F32x16 scale_pow2(F32x16 x, F32x16 n) { return {_mm512_scalef_ps(x.v, n.v)}; }
// a where x >= 0, else b.
SRR_INLINE F32x16 where_positive(F32x16 x, F32x16 a, F32x16 b) {
  return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_GE_OQ), b.v, a.v)};
}

#if defined(SRR_BF16_DOT)
// Sixteen pairs of bfloat16, and acc + a0 b0 + a1 b1 for each.
struct Pairs {
  __m512i v;
};
SRR_INLINE Pairs load_pairs(const uint16_t* p) { return {_mm512_loadu_si512(p)}; }
SRR_INLINE Pairs set1_pair(const uint16_t* p) {
  int pair;
  __builtin_memcpy(&pair, p, 4);
  return {_mm512_set1_epi32(pair)};
}
SRR_INLINE F32x16 dot_pairs(Pairs a, Pairs b, F32x16 acc) {
  return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}
#endif

#elif defined(SRR_AVX2)

struct F32x16 {
  __m256 lo, hi;
};
constexpr int kMaxRows = 6;
constexpr int kMaxPanels = 1;

SRR_INLINE F32x16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
SRR_INLINE F32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
SRR_INLINE void store(float* p, F32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
SRR_INLINE __m256 widen_bf16(const uint16_t* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
SRR_INLINE F32x16 load_bf16(const uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
SRR_INLINE F32x16 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
SRR_INLINE void load_bf16_pairs(const uint16_t* p, F32x16& a, F32x16& b) {
  const __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16));
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  a = {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
  b = {_mm256_castsi256_ps(_mm256_and_si256(lo, upper)), _mm256_castsi256_ps(_mm256_and_si256(hi, upper))};
}
SRR_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
SRR_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
SRR_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
SRR_INLINE F32x16 operator/(F32x16 a, F32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
SRR_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
SRR_INLINE F32x16 max(F32x16 a, F32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
SRR_INLINE F32x16 min(F32x16 a, F32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
SRR_INLINE F32x16 sqrt(F32x16 a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }
SRR_INLINE F32x16 abs(F32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
SRR_INLINE F32x16 round(F32x16 a) {
  return {_mm256_round_ps(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
SRR_INLINE __m256 pow2(__m256 n) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
SRR_INLINE F32x16 scale_pow2(F32x16 x, F32x16 n) { return x * F32x16{pow2(n.lo), pow2(n.hi)}; }
SRR_INLINE F32x16 where_positive(F32x16 x, F32x16 a, F32x16 b) {
  const __m256 zero = _mm256_setzero_ps();
  return {_mm256_blendv_ps(b.lo, a.lo, _mm256_cmp_ps(x.lo, zero, _CMP_GE_OQ)),
          _mm256_blendv_ps(b.hi, a.hi, _mm256_cmp_ps(x.hi, zero, _CMP_GE_OQ))};
}

#elif defined(SRR_NEON)

struct F32x16 {
  float32x4_t q0, q1, q2, q3;
};
constexpr int kMaxRows = 5;
constexpr int kMaxPanels = 1;

// op of every quarter.
template <class Op, class... F>
SRR_INLINE F32x16 quarters(Op op, F... a) {
  return {op(a.q0...), op(a.q1...), op(a.q2...), op(a.q3...)};
}
SRR_INLINE F32x16 set1(float x) {
  const float32x4_t q = vdupq_n_f32(x);
  return {q, q, q, q};
}
SRR_INLINE F32x16 load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}; }
SRR_INLINE void store(float* p, F32x16 a) {
  vst1q_f32(p, a.q0);
  vst1q_f32(p + 4, a.q1);
  vst1q_f32(p + 8, a.q2);
  vst1q_f32(p + 12, a.q3);
}
SRR_INLINE F32x16 load_bf16(const uint16_t* p) {
  const uint16x8_t lo = vld1q_u16(p), hi = vld1q_u16(p + 8), zero = vdupq_n_u16(0);
  return {vreinterpretq_f32_u16(vzip1q_u16(zero, lo)), vreinterpretq_f32_u16(vzip2q_u16(zero, lo)),
          vreinterpretq_f32_u16(vzip1q_u16(zero, hi)), vreinterpretq_f32_u16(vzip2q_u16(zero, hi))};
}
SRR_INLINE float32x4_t widen_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
SRR_INLINE F32x16 load_f16(const uint16_t* p) {
  return {widen_f16(p), widen_f16(p + 4), widen_f16(p + 8), widen_f16(p + 12)};
}
SRR_INLINE void load_bf16_pairs(const uint16_t* p, F32x16& a, F32x16& b) {
  const F32x16 both = load(reinterpret_cast<const float*>(p));
  a = quarters([](auto q) { return vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(q), 16)); }, both);
  b = quarters(
      [](auto q) { return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(q), vdupq_n_u32(0xffff0000u))); },
      both);
}
SRR_INLINE F32x16 operator+(F32x16 a, F32x16 b) {
  return quarters([](auto x, auto y) { return vaddq_f32(x, y); }, a, b);
}
SRR_INLINE F32x16 operator-(F32x16 a, F32x16 b) {
  return quarters([](auto x, auto y) { return vsubq_f32(x, y); }, a, b);
}
SRR_INLINE F32x16 operator*(F32x16 a, F32x16 b) {
  return quarters([](auto x, auto y) { return vmulq_f32(x, y); }, a, b);
}
SRR_INLINE F32x16 operator/(F32x16 a, F32x16 b) {
  return quarters([](auto x, auto y) { return vdivq_f32(x, y); }, a, b);
}
SRR_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) {
  return quarters([](auto x, auto y, auto z) { return vfmaq_f32(z, x, y); }, a, b, c);
}
SRR_INLINE F32x16 max(F32x16 a, F32x16 b) {
  return quarters([](auto x, auto y) { return vmaxq_f32(x, y); }, a, b);
}
SRR_INLINE F32x16 min(F32x16 a, F32x16 b) {
  return quarters([](auto x, auto y) { return vminq_f32(x, y); }, a, b);
}
SRR_INLINE F32x16 sqrt(F32x16 a) {
  return quarters([](auto x) { return vsqrtq_f32(x); }, a);
}
SRR_INLINE F32x16 abs(F32x16 a) {
  return quarters([](auto x) { return vabsq_f32(x); }, a);
}
SRR_INLINE F32x16 round(F32x16 a) {
  return quarters([](auto x) { return vrndnq_f32(x); }, a);
}
SRR_INLINE F32x16 scale_pow2(F32x16 x, F32x16 n) {
  const auto pow2 = [](auto q) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(q), vdupq_n_s32(127)), 23));
  };
  return x * quarters(pow2, n);
}
SRR_INLINE F32x16 where_positive(F32x16 x, F32x16 a, F32x16 b) {
  return quarters([](auto q, auto y, auto z) { return vbslq_f32(vcgezq_f32(q), y, z); }, x, a, b);
}

#else  // plain: whatever the compiler makes of sixteen-wide vectors (SSE2, NEON)

typedef float VecF __attribute__((vector_size(64)));
typedef int32_t VecI __attribute__((vector_size(64)));
struct F32x16 {
  VecF v;
};
constexpr int kMaxRows = 2;
constexpr int kMaxPanels = 1;

SRR_INLINE F32x16 set1(float x) { return {x - VecF{}}; }
SRR_INLINE F32x16 load(const float* p) {
  F32x16 a;
  __builtin_memcpy(&a, p, 64);
  return a;
}
SRR_INLINE void store(float* p, F32x16 a) { __builtin_memcpy(p, &a, 64); }
SRR_INLINE F32x16 from_bits(VecI bits) {
  F32x16 a;
  __builtin_memcpy(&a, &bits, 64);
  return a;
}
SRR_INLINE F32x16 load_bf16(const uint16_t* p) {
  VecI bits;
  for (int i = 0; i < 16; ++i) bits[i] = static_cast<int32_t>(static_cast<uint32_t>(p[i]) << 16);
  return from_bits(bits);
}
SRR_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = (h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  uint32_t bits = sign | ((magnitude << 13) + (112u << 23));
  float value;
  if (magnitude >= 0x7c00) {
    bits = sign | 0x7f800000u | (magnitude & 0x3ff) << 13;
  } else if (magnitude < 0x400) {  // subnormal: a whole number of 2^-24
    value = static_cast<float>(magnitude) * 5.9604644775390625e-08f;
    return sign ? -value : value;
  }
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
SRR_INLINE F32x16 load_f16(const uint16_t* p) {
  F32x16 a;
  for (int i = 0; i < 16; ++i) a.v[i] = half_to_float(p[i]);
  return a;
}
SRR_INLINE void load_bf16_pairs(const uint16_t* p, F32x16& a, F32x16& b) {
  VecI even, odd;
  for (int i = 0; i < 16; ++i) {
    even[i] = static_cast<int32_t>(static_cast<uint32_t>(p[2 * i]) << 16);
    odd[i] = static_cast<int32_t>(static_cast<uint32_t>(p[2 * i + 1]) << 16);
  }
  a = from_bits(even);
  b = from_bits(odd);
}
SRR_INLINE F32x16 operator+(F32x16 a, F32x16 b) { return {a.v + b.v}; }
SRR_INLINE F32x16 operator-(F32x16 a, F32x16 b) { return {a.v - b.v}; }
SRR_INLINE F32x16 operator*(F32x16 a, F32x16 b) { return {a.v * b.v}; }
SRR_INLINE F32x16 operator/(F32x16 a, F32x16 b) { return {a.v / b.v}; }
SRR_INLINE F32x16 fma(F32x16 a, F32x16 b, F32x16 c) { return {a.v * b.v + c.v}; }
SRR_INLINE F32x16 max(F32x16 a, F32x16 b) { return {a.v > b.v ? a.v : b.v}; }
SRR_INLINE F32x16 min(F32x16 a, F32x16 b) { return {a.v < b.v ? a.v : b.v}; }
SRR_INLINE F32x16 sqrt(F32x16 a) {
  for (int i = 0; i < 16; ++i) a.v[i] = __builtin_sqrtf(a.v[i]);
  return a;
}
SRR_INLINE F32x16 abs(F32x16 a) { return {a.v < 0 ? -a.v : a.v}; }
// To nearest even, for |a| < 2^22.
SRR_INLINE F32x16 round(F32x16 a) {
  const F32x16 magic = set1(12582912.0f);
  return (a + magic) - magic;
}
SRR_INLINE F32x16 scale_pow2(F32x16 x, F32x16 n) {
  return x * from_bits((__builtin_convertvector(n.v, VecI) + 127) << 23);
}
SRR_INLINE F32x16 where_positive(F32x16 x, F32x16 a, F32x16 b) { return {x.v >= 0 ? a.v : b.v}; }

#endif

SRR_INLINE F32x16 zero() { return set1(0.0f); }

// Whether every lane is at least 0; NaN is not.
#if defined(SRR_AVX512)
SRR_INLINE bool not_negative(F32x16 a) { return _mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_GE_OQ) == 0xffff; }
#elif defined(SRR_NEON)
SRR_INLINE bool not_negative(F32x16 a) {
  return vminvq_f32(vminq_f32(vminq_f32(a.q0, a.q1), vminq_f32(a.q2, a.q3))) >= 0;  // with NaN, NaN
}
#else
SRR_INLINE bool not_negative(F32x16 a) {
  float v[16];
  store(v, a);
  bool all = true;
  for (float lane : v) all &= lane >= 0;
  return all;
}
#endif

// Sums and maxima over the lanes, in one fixed order: halves onto each other, then quarters, and so on.
#if defined(SRR_AVX512)
SRR_INLINE float sum(F32x16 a) { return _mm512_reduce_add_ps(a.v); }
SRR_INLINE float max_lane(F32x16 a) { return _mm512_reduce_max_ps(a.v); }
#elif defined(SRR_NEON)
SRR_INLINE float sum(F32x16 a) {
  const float32x4_t four = vaddq_f32(vaddq_f32(a.q0, a.q2), vaddq_f32(a.q1, a.q3));
  return vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)));
}
SRR_INLINE float max_lane(F32x16 a) { return vmaxvq_f32(vmaxq_f32(vmaxq_f32(a.q0, a.q2), vmaxq_f32(a.q1, a.q3))); }
#else
SRR_INLINE float sum(F32x16 a) {
  float v[16];
  store(v, a);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) v[i] += v[i + width];
  return v[0];
}
SRR_INLINE float max_lane(F32x16 a) {
  float v[16];
  store(v, a);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) v[i] = v[i] > v[i + width] ? v[i] : v[i + width];
  return v[0];
}
#endif

// 1 in the first n lanes, 0 in the others.
SRR_INLINE F32x16 first_lanes(int64_t n) {
  static const float ones_then_zeros[32] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  return load(ones_then_zeros + 16 - (n < 16 ? n : 16));
}

// e^x for x <= 88; 0 below -87, where the result would not be a normal number. Minimax on [-ln2/2, ln2/2].
SRR_INLINE F32x16 exp(F32x16 x) {
  const F32x16 lowest = set1(-87.0f);
  const F32x16 clamped = max(lowest, x);  // in this order NaN stays NaN
  const F32x16 n = round(clamped * set1(1.44269504f));
  const F32x16 r = fma(n, set1(-1.428606765e-6f), fma(n, set1(-0.693145752f), clamped));
  F32x16 y = set1(1.383679228e-3f);
  y = fma(y, r, set1(8.374857468e-3f));
  y = fma(y, r, set1(4.166822874e-2f));
  y = fma(y, r, set1(1.666641968e-1f));
  y = fma(y, r, set1(4.999999206e-1f));
  y = fma(y, r, set1(1.000000036e+0f));
  y = fma(y, r, set1(1.0f));
  return where_positive(lowest - x, zero(), scale_pow2(y, n));
}

// x Phi(x), Phi the normal distribution: the exact ("erf") GELU.
// Phi(-|x|) = e^(-x^2/2) Q(1 / (1 + |x|/4)) with Q a minimax polynomial on |x| <= 13.
SRR_INLINE F32x16 gelu(F32x16 x) {
  const F32x16 a = min(abs(x), set1(13.0f));
  const F32x16 t = set1(1.0f) / fma(a, set1(0.25f), set1(1.0f));
  F32x16 q = set1(3.501546517e-2f);
  q = fma(q, t, set1(-2.019663963e-1f));
  q = fma(q, t, set1(4.085994915e-1f));
  q = fma(q, t, set1(-3.516205014e-1f));
  q = fma(q, t, set1(3.196379681e-1f));
  q = fma(q, t, set1(-2.857390770e-2f));
  q = fma(q, t, set1(1.244312813e-1f));
  q = fma(q, t, set1(9.419648170e-2f));
  q = fma(q, t, set1(1.003057805e-1f));
  q = fma(q, t, set1(-2.566811186e-5f));
  const F32x16 tail = x * (exp(a * a * set1(-0.5f)) * q);
  return where_positive(x, x - tail, tail);
}

// Loads of one state dtype: `Bits` is how its elements lie in memory.
struct StateF32 {
  using Bits = float;
  static SRR_INLINE F32x16 load16(const float* p) { return load(p); }
};
struct StateF16 {
  using Bits = uint16_t;
  static SRR_INLINE F32x16 load16(const uint16_t* p) { return load_f16(p); }
};
struct StateBF16 {
  using Bits = uint16_t;
  static SRR_INLINE F32x16 load16(const uint16_t* p) { return load_bf16(p); }
};

// The first n <= 16 elements at p, zeros behind them.
template <class State>
SRR_INLINE F32x16 load_first(const typename State::Bits* p, int64_t n) {
  typename State::Bits v[16] = {};
  for (int64_t i = 0; i < n; ++i) v[i] = p[i];
  return State::load16(v);
}

// The first n <= 16 lanes to p.
SRR_INLINE void store_first(float* p, F32x16 a, int64_t n) {
  float v[16];
  store(v, a);
  for (int64_t i = 0; i < n; ++i) p[i] = v[i];
}

// The one switch from DType to a State.
template <class Body>
SRR_INLINE void with_state(DType dtype, Body&& body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(StateF32{});
    case DType::kFloat16:
      return body(StateF16{});
    case DType::kBFloat16:
      return body(StateBF16{});
  }
}

// Runs body(worker) for worker in [0, workers).
template <class Body>
SRR_INLINE void parallel(const Threads& threads, int64_t workers, Body&& body) {
  if (workers <= 1 || threads.run == nullptr) {
    for (int64_t w = 0; w < workers; ++w) body(w);
    return;
  }
  using Fn = __typeof__(body);
  threads.run(
      workers, [](void* ctx, int64_t w) { (*static_cast<Fn*>(ctx))(w); },
      const_cast<void*>(static_cast<const void*>(&body)));
}
