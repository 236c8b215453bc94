// Sixteen numbers at a time, whatever the processor: GCC's vectors, and the one thing that they lack, the dot product
// of bytes.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512VNNI__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace nvila {

constexpr int kLanes = 16;

using F32 = float __attribute__((vector_size(64)));
using I32 = int32_t __attribute__((vector_size(64)));

inline F32 load(const float* from) {
  F32 x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

inline void store(float* to, F32 x) { std::memcpy(to, &x, sizeof x); }

inline F32 fill(float x) { return F32{} + x; }

inline F32 to_float(I32 x) { return __builtin_convertvector(x, F32); }

inline float sum(F32 x) {
  using F8 = float __attribute__((vector_size(32)));
  using F4 = float __attribute__((vector_size(16)));
  F8 a, b;
  std::memcpy(&a, &x, 32);
  std::memcpy(&b, reinterpret_cast<const char*>(&x) + 32, 32);
  a += b;
  F4 c, d;
  std::memcpy(&c, &a, 16);
  std::memcpy(&d, reinterpret_cast<const char*>(&a) + 16, 16);
  c += d;
  return (c[0] + c[2]) + (c[1] + c[3]);
}

inline float largest(F32 x) {
  float y = x[0];
  for (int i = 1; i < kLanes; ++i) y = x[i] > y ? x[i] : y;
  return y;
}

inline F32 larger(F32 x, F32 y) { return x > y ? x : y; }

// e^x within 2e-7 of it, of x in [-87, 88] or the nearer end of that.
inline F32 exp(F32 x) {
  x = larger(x, fill(-87.f));
  x = -larger(-x, fill(-88.f));
  const F32 magic = fill(12582912.f);  // 1.5 * 2^23: its lowest bit counts ones, so that adding it rounds
  F32 n = x * 1.44269504f + magic;
  I32 bits;
  std::memcpy(&bits, &n, sizeof bits);
  n -= magic;
  const F32 r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  F32 y = r * 1.9875691e-4f + 1.3981999e-3f;
  y = y * r + 8.3334519e-3f;
  y = y * r + 4.1665795e-2f;
  y = y * r + 1.6666665e-1f;
  y = y * r + 5.0000001e-1f;
  y = y * r * r + r + 1.f;
  bits = (bits << 23) + (127 << 23);
  F32 power;
  std::memcpy(&power, &bits, sizeof power);
  return y * power;
}

// Sixteen numbers of the kind that they are held in: float32, or the bits of float16.
inline F32 widen(const float* from) { return load(from); }
inline F32 widen(const uint16_t* from);

// 64 bytes: of 16 outputs four inputs each. As unsigned numbers for `dot`.
#if defined(__AVX512VNNI__)

constexpr const char* kIsa = "avx512vnni";
using Bytes = __m512i;

inline F32 widen(const uint16_t* from) { return (F32)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)from)); }
inline Bytes load_bytes(const uint8_t* from) { return _mm512_loadu_si512(from); }
inline Bytes low_halves(Bytes x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
inline Bytes high_halves(Bytes x) { return _mm512_and_si512(_mm512_srli_epi16(x, 4), _mm512_set1_epi8(15)); }

// Adds to each output its four bytes times the four at `x`.
template <bool kIsSmall>
inline I32 dot(I32 total, Bytes w, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  return (I32)_mm512_dpbusd_epi32((__m512i)total, w, _mm512_set1_epi32(four));
}

#elif defined(__AVX2__)

constexpr const char* kIsa = "avx2";
struct Bytes {
  __m256i part[2];
};

inline F32 widen(const uint16_t* from) {
  const __m256 halves[2] = {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from)),
                            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + 8)))};
  F32 x;
  std::memcpy(&x, halves, sizeof x);
  return x;
}
inline Bytes load_bytes(const uint8_t* from) {
  return {_mm256_loadu_si256((const __m256i*)from), _mm256_loadu_si256((const __m256i*)(from + 32))};
}
inline Bytes low_halves(Bytes x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.part[0], mask), _mm256_and_si256(x.part[1], mask)};
}
inline Bytes high_halves(Bytes x) {
  return low_halves({_mm256_srli_epi16(x.part[0], 4), _mm256_srli_epi16(x.part[1], 4)});
}

// Two products of a byte above 15 and another would not fit 16 bits, so that larger ones are taken as signed.
template <bool kIsSmall>
inline I32 dot(I32 total, Bytes w, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  const __m256i xs = _mm256_set1_epi32(four), ones = _mm256_set1_epi16(1);
  __m256i halves[2];
  std::memcpy(halves, &total, sizeof total);
  for (int i = 0; i < 2; ++i) {
    __m256i pairs;
    if constexpr (kIsSmall) {
      pairs = _mm256_maddubs_epi16(w.part[i], xs);
    } else {
      const __m256i low = _mm256_and_si256(w.part[i], _mm256_set1_epi8(127));
      const __m256i top = _mm256_and_si256(_mm256_srli_epi16(w.part[i], 7), _mm256_set1_epi8(1));
      // 128 * top in two steps, as bytes end at 255 and sums of pairs at 32767.
      const __m256i high = _mm256_madd_epi16(_mm256_maddubs_epi16(top, xs), _mm256_set1_epi16(128));
      halves[i] = _mm256_add_epi32(halves[i], high);
      pairs = _mm256_maddubs_epi16(low, xs);
    }
    halves[i] = _mm256_add_epi32(halves[i], _mm256_madd_epi16(pairs, ones));
  }
  std::memcpy(&total, halves, sizeof total);
  return total;
}

#elif defined(__ARM_FEATURE_DOTPROD)

constexpr const char* kIsa = "neon_dotprod";
struct Bytes {
  uint8x16_t part[4];
};

inline F32 widen(const uint16_t* from) {
  float x[kLanes];
  for (int i = 0; i < kLanes; i += 4) vst1q_f32(x + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + i))));
  return load(x);
}
inline Bytes load_bytes(const uint8_t* from) {
  return {vld1q_u8(from), vld1q_u8(from + 16), vld1q_u8(from + 32), vld1q_u8(from + 48)};
}
inline Bytes low_halves(Bytes x) {
  const uint8x16_t mask = vdupq_n_u8(15);
  return {vandq_u8(x.part[0], mask), vandq_u8(x.part[1], mask), vandq_u8(x.part[2], mask), vandq_u8(x.part[3], mask)};
}
inline Bytes high_halves(Bytes x) {
  return {vshrq_n_u8(x.part[0], 4), vshrq_n_u8(x.part[1], 4), vshrq_n_u8(x.part[2], 4), vshrq_n_u8(x.part[3], 4)};
}

// There is a product of signed bytes alone: what exceeds 127 is moved by 128, and 128 times the inputs added.
template <bool kIsSmall>
inline I32 dot(I32 total, Bytes w, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  const int8x16_t xs = vreinterpretq_s8_s32(vdupq_n_s32(four));
  int32x4_t quarters[4];
  std::memcpy(quarters, &total, sizeof total);
  const int32x4_t moved = kIsSmall ? vdupq_n_s32(0) : vdupq_n_s32(128 * (x[0] + x[1] + x[2] + x[3]));
  for (int i = 0; i < 4; ++i) {
    const uint8x16_t bytes = kIsSmall ? w.part[i] : veorq_u8(w.part[i], vdupq_n_u8(128));
    quarters[i] = vdotq_s32(vaddq_s32(quarters[i], moved), vreinterpretq_s8_u8(bytes), xs);
  }
  std::memcpy(&total, quarters, sizeof total);
  return total;
}

#else
#error "one of AVX-512 VNNI, AVX2 and the dot products of ARMv8.2 is needed"
#endif

}  // namespace nvila
