// Sixteen numbers at a time, whatever the processor: GCC's vectors of the width of its registers, and the one thing
// that they lack, the dot product of bytes.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace nvila {

#if defined(__AVX512VNNI__) && !defined(NVILA_NARROW)
#define NVILA_WIDE
#if defined(__AMX_INT8__)
constexpr const char* kIsa = "amx";
#else
constexpr const char* kIsa = "avx512vnni";
#endif
constexpr int kPartBytes = 64;
constexpr int kMaxSums = 16;  // of sixteen lanes that registers hold beside what they are made of
#elif defined(__AVX2__)
#if defined(__AVXVNNI__) || defined(__AVX512VNNI__)  // the latter to test on other processors what the former does
#define NVILA_VNNI
constexpr const char* kIsa = "avxvnni";
#else
constexpr const char* kIsa = "avx2";
#endif
constexpr int kPartBytes = 32;
constexpr int kMaxSums = 4;
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr const char* kIsa = "neon_dotprod";
constexpr int kPartBytes = 16;
constexpr int kMaxSums = 4;
#else
#error "one of AVX-512 VNNI, AVX2 and the dot products of ARMv8.2 is needed"
#endif

constexpr int kLanes = 16;
constexpr int kParts = 64 / kPartBytes, kPartLanes = kLanes / kParts;

// Vectors wider than registers are kept in memory by the compiler, so that these are made of as many as it takes.
template <class Part>
struct Lanes {
  Part part[kParts];
  auto operator[](int i) const { return part[i / kPartLanes][i % kPartLanes]; }
};
using FPart = float __attribute__((vector_size(kPartBytes)));
using IPart = int32_t __attribute__((vector_size(kPartBytes)));
using F32 = Lanes<FPart>;
using I32 = Lanes<IPart>;

template <class To, class From>
inline To bits_of(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline F32 load(const float* from) {
  F32 x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
inline void store(float* to, F32 x) { std::memcpy(to, &x, sizeof x); }

inline F32 broadcast(float value) {
  F32 x;
  for (int i = 0; i < kParts; ++i) x.part[i] = value - FPart{};
  return x;
}
inline I32 broadcast(int32_t value) {
  I32 x;
  for (int i = 0; i < kParts; ++i) x.part[i] = value - IPart{};
  return x;
}

template <class Part>
inline Lanes<Part> operator+(Lanes<Part> x, Lanes<Part> y) {
  for (int i = 0; i < kParts; ++i) x.part[i] += y.part[i];
  return x;
}
template <class Part>
inline Lanes<Part> operator-(Lanes<Part> x, Lanes<Part> y) {
  for (int i = 0; i < kParts; ++i) x.part[i] -= y.part[i];
  return x;
}
template <class Part>
inline Lanes<Part> operator*(Lanes<Part> x, Lanes<Part> y) {
  for (int i = 0; i < kParts; ++i) x.part[i] *= y.part[i];
  return x;
}
inline F32 operator/(F32 x, F32 y) {
  for (int i = 0; i < kParts; ++i) x.part[i] /= y.part[i];
  return x;
}
inline F32 operator+(F32 x, float y) { return x + broadcast(y); }
inline F32 operator-(F32 x, float y) { return x - broadcast(y); }
inline F32 operator*(F32 x, float y) { return x * broadcast(y); }
inline F32 operator-(F32 x) { return broadcast(0.f) - x; }
template <class Part>
inline Lanes<Part>& operator+=(Lanes<Part>& x, Lanes<Part> y) {
  return x = x + y;
}

inline F32 max(F32 x, F32 y) {
  for (int i = 0; i < kParts; ++i) x.part[i] = x.part[i] > y.part[i] ? x.part[i] : y.part[i];
  return x;
}
inline F32 min(F32 x, F32 y) { return -max(-x, -y); }

inline F32 to_float(I32 x) {
  F32 y;
  for (int i = 0; i < kParts; ++i) y.part[i] = __builtin_convertvector(x.part[i], FPart);
  return y;
}

// To the nearest whole number, of less than 2^22.
inline I32 round_to_int(F32 x) {
  const F32 magic = broadcast(12582912.f);  // 1.5 * 2^23, whose lowest bit counts ones
  x = (x + magic) - magic;
  I32 y;
  for (int i = 0; i < kParts; ++i) y.part[i] = __builtin_convertvector(x.part[i], IPart);
  return y;
}

inline void store_bytes(int8_t* to, I32 x) {
  using Bytes = int8_t __attribute__((vector_size(kPartLanes)));
  for (int i = 0; i < kParts; ++i) {
    const Bytes bytes = __builtin_convertvector(x.part[i], Bytes);
    std::memcpy(to + i * kPartLanes, &bytes, sizeof bytes);
  }
}

template <class Four, class Part>
inline auto reduce_sum_by(Lanes<Part> x) {
  for (int i = 1; i < kParts; ++i) x.part[0] += x.part[i];
  Four fours[kPartBytes / sizeof(Four)];
  std::memcpy(fours, &x.part[0], sizeof fours);
  for (size_t half = kPartBytes / sizeof(Four) / 2; half; half /= 2) {
    for (size_t i = 0; i < half; ++i) fours[i] += fours[i + half];
  }
  return (fours[0][0] + fours[0][2]) + (fours[0][1] + fours[0][3]);
}
using F4 = float __attribute__((vector_size(16)));
using I4 = int32_t __attribute__((vector_size(16)));
inline float reduce_sum(F32 x) { return reduce_sum_by<F4>(x); }
inline int32_t reduce_sum(I32 x) { return reduce_sum_by<I4>(x); }

inline float reduce_max(F32 x) {
  float y = x[0];
  for (int i = 1; i < kLanes; ++i) y = x[i] > y ? x[i] : y;
  return y;
}

// e^x within 2e-7 of it, 0 where x is below -87 and e^88 where it is above 88.
inline F32 exp(F32 x) {
  const F32 near = min(max(x, broadcast(-87.f)), broadcast(88.f));
  const I32 n = round_to_int(near * 1.44269504f);
  const F32 whole = to_float(n), r = (near - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
  F32 y = r * 1.9875691e-4f + 1.3981999e-3f;
  y = y * r + 8.3334519e-3f;
  y = y * r + 4.1665795e-2f;
  y = y * r + 1.6666665e-1f;
  y = y * r + 5.0000001e-1f;
  y = y * r * r + r + 1.f;
  y = y * bits_of<F32>((n + broadcast(127)) * broadcast(1 << 23));
  for (int i = 0; i < kParts; ++i) y.part[i] = x.part[i] < -87.f ? FPart{} : y.part[i];
  return y;
}

// 2^(x - whole) within 1e-4 of it, for a whole number `whole` of at most 2^20 and x of at most `whole` + 126; 2^-126
// where it would be less.
inline F32 exp2_below(F32 x, F32 whole) {
  const F32 magic = broadcast(12582912.f) - whole;  // 1.5 * 2^23, whose lowest bit counts ones
  x = max(x, whole - 126.f);
  const F32 shifted = x + magic, r = x - (shifted - magic);
  F32 y = r * 5.5171669e-2f + 2.4226046e-1f;
  y = y * r + 6.9325476e-1f;
  y = y * r + 9.9992520e-1f;
  I32 bits = bits_of<I32>(y), powers = bits_of<I32>(shifted);
  for (int i = 0; i < kParts; ++i) bits.part[i] += powers.part[i] << 23;
  return bits_of<F32>(bits);
}

// 1 / x within 1e-6 of it.
inline F32 reciprocal(F32 x) {
#if defined(NVILA_WIDE)
  const F32 near = bits_of<F32>(_mm512_maskz_rcp14_ps(0xffff, bits_of<__m512>(x)));
  return near * (broadcast(2.f) - x * near);
#else
  return broadcast(1.f) / x;
#endif
}

// Rounds to bfloat16, ties to even; not for NaN.
inline void store_halves(uint16_t* to, F32 x) {
#if defined(__AVX512BF16__) && defined(NVILA_WIDE)
  const __m256bh halves = _mm512_cvtneps_pbh(bits_of<__m512>(x));
  std::memcpy(to, &halves, sizeof halves);
#else
  using Halves = uint16_t __attribute__((vector_size(2 * kPartLanes)));
  for (int i = 0; i < kParts; ++i) {
    using UPart = uint32_t __attribute__((vector_size(kPartBytes)));
    UPart bits = bits_of<UPart>(x.part[i]);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    const Halves halves = __builtin_convertvector(bits, Halves);
    std::memcpy(to + i * kPartLanes, &halves, sizeof halves);
  }
#endif
}

// Sixteen numbers of the kind that they are held in: float32, or the bits of float16.
inline F32 widen(const float* from) { return load(from); }
inline F32 widen(const uint16_t* from);

// 64 bytes: of 16 outputs four inputs each. As unsigned numbers for `dot`.
struct Bytes;
inline Bytes load_bytes(const uint8_t* from);
inline Bytes low_nibbles(const Bytes& x);
inline Bytes high_nibbles(const Bytes& x);

// Adds to each output its four bytes times the four at `x`; those of four bits are below 16.
template <bool kIsInt4>
inline I32 dot(I32 total, const Bytes& w, const int8_t* x);

inline int32_t load_four(const int8_t* from) {
  int32_t four;
  std::memcpy(&four, from, sizeof four);
  return four;
}

#if defined(NVILA_WIDE)

struct Bytes {
  __m512i all;
};

inline F32 widen(const uint16_t* from) {
  return bits_of<F32>(_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)from)));
}
inline Bytes load_bytes(const uint8_t* from) { return {_mm512_loadu_si512(from)}; }
inline Bytes low_nibbles(const Bytes& x) { return {_mm512_and_si512(x.all, _mm512_set1_epi8(15))}; }
inline Bytes high_nibbles(const Bytes& x) {
  return {_mm512_and_si512(_mm512_srli_epi16(x.all, 4), _mm512_set1_epi8(15))};
}

template <bool kIsInt4>
inline I32 dot(I32 total, const Bytes& w, const int8_t* x) {
  const __m512i sums = bits_of<__m512i>(total);
  return bits_of<I32>(_mm512_dpbusd_epi32(sums, w.all, _mm512_set1_epi32(load_four(x))));
}

#elif defined(__AVX2__)

struct Bytes {
  __m256i part[2];
};

inline F32 widen(const uint16_t* from) {
  F32 x;
  for (int i = 0; i < 2; ++i) {
    x.part[i] = bits_of<FPart>(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + i * kPartLanes))));
  }
  return x;
}
inline Bytes load_bytes(const uint8_t* from) {
  return {{_mm256_loadu_si256((const __m256i*)from), _mm256_loadu_si256((const __m256i*)(from + 32))}};
}
inline Bytes low_nibbles(const Bytes& x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {{_mm256_and_si256(x.part[0], mask), _mm256_and_si256(x.part[1], mask)}};
}
inline Bytes high_nibbles(const Bytes& x) {
  return low_nibbles({{_mm256_srli_epi16(x.part[0], 4), _mm256_srli_epi16(x.part[1], 4)}});
}

template <bool kIsInt4>
inline I32 dot(I32 total, const Bytes& w, const int8_t* x) {
  const __m256i xs = _mm256_set1_epi32(load_four(x));
  for (int i = 0; i < 2; ++i) {
    __m256i sums = bits_of<__m256i>(total.part[i]);
#if defined(__AVXVNNI__)
    sums = _mm256_dpbusd_avx_epi32(sums, w.part[i], xs);
#elif defined(NVILA_VNNI)
    sums = _mm256_dpbusd_epi32(sums, w.part[i], xs);
#else
    __m256i pairs;
    if constexpr (kIsInt4) {
      pairs = _mm256_maddubs_epi16(w.part[i], xs);
    } else {  // two products of a larger byte would not fit 16 bits: its top bit by itself
      const __m256i low = _mm256_and_si256(w.part[i], _mm256_set1_epi8(127));
      const __m256i top = _mm256_and_si256(_mm256_srli_epi16(w.part[i], 7), _mm256_set1_epi8(1));
      sums = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(top, xs), _mm256_set1_epi16(128)));
      pairs = _mm256_maddubs_epi16(low, xs);
    }
    sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
    total.part[i] = bits_of<IPart>(sums);
  }
  return total;
}

#elif defined(__ARM_FEATURE_DOTPROD)

struct Bytes {
  uint8x16_t part[4];
};

inline F32 widen(const uint16_t* from) {
  F32 x;
  for (int i = 0; i < 4; ++i) x.part[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + i * kPartLanes)));
  return x;
}
inline Bytes load_bytes(const uint8_t* from) {
  return {{vld1q_u8(from), vld1q_u8(from + 16), vld1q_u8(from + 32), vld1q_u8(from + 48)}};
}
inline Bytes low_nibbles(const Bytes& x) {
  Bytes y;
  for (int i = 0; i < 4; ++i) y.part[i] = vandq_u8(x.part[i], vdupq_n_u8(15));
  return y;
}
inline Bytes high_nibbles(const Bytes& x) {
  Bytes y;
  for (int i = 0; i < 4; ++i) y.part[i] = vshrq_n_u8(x.part[i], 4);
  return y;
}

// There is a product of signed bytes alone: bytes that may exceed 127 are lowered by 128, and 128 times the inputs
// added.
template <bool kIsInt4>
inline I32 dot(I32 total, const Bytes& w, const int8_t* x) {
  const int8x16_t xs = vreinterpretq_s8_s32(vdupq_n_s32(load_four(x)));
  const int32x4_t offset = vdupq_n_s32(kIsInt4 ? 0 : 128 * (x[0] + x[1] + x[2] + x[3]));
  for (int i = 0; i < 4; ++i) {
    const uint8x16_t bytes = kIsInt4 ? w.part[i] : veorq_u8(w.part[i], vdupq_n_u8(128));
    const int32x4_t sums = vaddq_s32(total.part[i], offset);
    total.part[i] = vdotq_s32(sums, vreinterpretq_s8_u8(bytes), xs);
  }
  return total;
}

#endif

}  // namespace nvila
