// Matrices of four or eight bits in the order in which products read them, and rows of activations in eight bits.
//
// A matrix is cut into tiles of 16 outputs. In a tile the inputs follow one another in blocks of 64 bytes: of each
// output four inputs of eight bits, or eight of four bits, whose first four are the low halves. Values are moved to
// unsigned numbers; what this adds to a product is the sum of the inputs times the move, taken off for each group.
#pragma once

#include <sys/mman.h>

#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <utility>

#include "lanes.h"

namespace nvila {

constexpr int kMostRows = 8;  // of activations that one reading of the weights multiplies
constexpr size_t kHugePage = size_t{2} << 20;

// Memory of zeros, in huge pages where there are some: weights are read from end to end in each step, and would wait
// for the page tables.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t count) : count_(count) {
    const size_t bytes = (count * sizeof(T) + kHugePage - 1) / kHugePage * kHugePage;
    if (count * sizeof(T) < kHugePage / 2) {
      data_ = static_cast<T*>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64 + 64));
    } else {
      data_ = static_cast<T*>(std::aligned_alloc(kHugePage, bytes));
      if (data_) madvise(data_, bytes, MADV_HUGEPAGE);
    }
    if (!data_) throw std::bad_alloc();
    std::memset(data_, 0, count * sizeof(T));
  }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~Buffer() { std::free(data_); }

  T* data() const { return data_; }
  size_t size() const { return count_; }
  T& operator[](size_t i) const { return data_[i]; }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

// Rows of activations in [-127, 127], with a scale for each group of inputs.
struct Rounded {
  Buffer<int8_t> values;   // (rows, K)
  Buffer<float> scales;    // (rows, G)
  Buffer<int32_t> totals;  // (rows, G), of the values
  int num_inputs = 0, num_groups = 0;

  void reserve(int rows, int num_inputs_, int num_groups_) {
    num_inputs = num_inputs_, num_groups = num_groups_;
    const size_t values_needed = size_t(rows) * num_inputs, groups_needed = size_t(rows) * num_groups;
    if (values.size() < values_needed) values = Buffer<int8_t>(values_needed);
    if (scales.size() < groups_needed) scales = Buffer<float>(groups_needed), totals = Buffer<int32_t>(groups_needed);
  }

  // Rounds one row; a scale of 0 is found for each group.
  void round(int row, const float* x, float scale) {
    const int size = num_inputs / num_groups;
    for (int g = 0; g < num_groups; ++g, x += size) {
      const int at = row * num_groups + g;
      scales[at] = scale > 0 ? scale : find_scale(x, size);
      totals[at] = round_group(&values[size_t(row) * num_inputs + size_t(g) * size], x, size, 1.f / scales[at]);
    }
  }

 private:
  static float find_scale(const float* x, int size) {
    F32 most{};
    float top = 0;
    int i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      const F32 v = load(x + i);
      most = larger(most, larger(v, -v));
    }
    top = largest(most);
    for (; i < size; ++i) top = std::fabs(x[i]) > top ? std::fabs(x[i]) : top;
    return top > 1e-30f ? top / 127.f : 1.f;
  }

  static int32_t round_group(int8_t* to, const float* x, int size, float inverse) {
    using I8 = int8_t __attribute__((vector_size(16)));
    I32 totals{};
    int32_t total = 0;
    int i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      const F32 magic = fill(12582912.f);
      F32 v = load(x + i) * inverse;
      v = larger(v, fill(-127.f));
      v = -larger(-v, fill(-127.f));
      const I32 n = __builtin_convertvector((v + magic) - magic, I32);
      totals += n;
      const I8 bytes = __builtin_convertvector(n, I8);
      std::memcpy(to + i, &bytes, sizeof bytes);
    }
    for (int lane = 0; lane < kLanes; ++lane) total += totals[lane];
    for (; i < size; ++i) {
      const float v = std::nearbyint(x[i] * inverse);
      to[i] = int8_t(v > 127 ? 127 : v < -127 ? -127 : v);
      total += to[i];
    }
    return total;
  }
};

// One matrix as its owner gives it: `values[k * stride_k + n * stride_n]`, `scales[g * num_outputs + n]`.
struct GivenMatrix {
  const int8_t* values;
  const void* scales;  // float32, or float16 where `has_half_scales`
  int64_t stride_k, stride_n;
  int32_t num_inputs, num_outputs;
  int32_t num_groups;        // of scales
  int32_t num_input_groups;  // of activations, a multiple of those
  int32_t bits;
  int32_t has_half_scales;
  float input_scale;  // 0 to find one for each group
};

class Matrix {
 public:
  Matrix() = default;

  explicit Matrix(const GivenMatrix& given) : num_outputs(given.num_outputs), given_(given) {
    tile_bytes_ = size_t(given.num_inputs) * given.bits / 8 * kLanes;
    packed_ = Buffer<uint8_t>(tile_bytes_ * num_tiles());
    scale_bytes_ = given.has_half_scales ? sizeof(uint16_t) : sizeof(float);
    scales_ = Buffer<uint8_t>(size_t(given.num_groups) * kLanes * num_tiles() * scale_bytes_);
  }

  int num_outputs = 0;
  int num_tiles() const { return (num_outputs + kLanes - 1) / kLanes; }
  int num_inputs() const { return given_.num_inputs; }
  int num_input_groups() const { return given_.num_input_groups; }
  float input_scale() const { return given_.input_scale; }
  size_t tile_bytes() const { return tile_bytes_; }

  void pack(int tile) const {
    const GivenMatrix& given = given_;
    const int first = tile * kLanes, count = num_outputs - first < kLanes ? num_outputs - first : kLanes;
    const int move = given.bits == 4 ? 8 : 128, step = given.bits == 4 ? 8 : 4;
    uint8_t* to = &packed_[tile_bytes_ * tile];
    for (int k = 0; k < given.num_inputs; k += step, to += 64) {
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int i = 0; i < 4; ++i) {
          // Outputs that no one has are zero.
          auto value = [&](int at) -> uint8_t {
            return move + (lane < count ? given.values[at * given.stride_k + (first + lane) * given.stride_n] : 0);
          };
          to[4 * lane + i] = given.bits == 4 ? value(k + i) | value(k + 4 + i) << 4 : value(k + i);
        }
      }
    }
    const uint8_t* from = static_cast<const uint8_t*>(given.scales) + first * scale_bytes_;
    for (int g = 0; g < given.num_groups; ++g, from += num_outputs * scale_bytes_) {
      std::memcpy(scales_of(tile) + g * kLanes * scale_bytes_, from, count * scale_bytes_);
    }
  }

  // What was packed needs its source no more.
  void forget_source() { given_.values = nullptr, given_.scales = nullptr; }

  // Writes the products of `rows` rows, from `first` on, with one tile: `out[row][lane]`.
  void multiply(int tile, const Rounded& x, int first, int rows, F32* out) const {
    switch (rows) {
      case 1: return multiply_rows<1>(tile, x, first, out);
      case 2: return multiply_rows<2>(tile, x, first, out);
      case 3: return multiply_rows<3>(tile, x, first, out);
      case 4: return multiply_rows<4>(tile, x, first, out);
      case 5: return multiply_rows<5>(tile, x, first, out);
      case 6: return multiply_rows<6>(tile, x, first, out);
      case 7: return multiply_rows<7>(tile, x, first, out);
      default: return multiply_rows<8>(tile, x, first, out);
    }
  }

 private:
  uint8_t* scales_of(int tile) const { return &scales_[size_t(tile) * given_.num_groups * kLanes * scale_bytes_]; }

  template <int kRows>
  void multiply_rows(int tile, const Rounded& x, int first, F32* out) const {
    if (given_.bits == 8) return multiply_as<kRows, 8, float>(tile, x, first, out);
    if (given_.has_half_scales) return multiply_as<kRows, 4, uint16_t>(tile, x, first, out);
    multiply_as<kRows, 4, float>(tile, x, first, out);
  }

  template <int kRows, int kBits, class Scale>
  void multiply_as(int tile, const Rounded& x, int first, F32* out) const {
    constexpr int kInputs = 32 / kBits;  // of an output in a block
    constexpr int kMove = kBits == 4 ? 8 : 128;
    const int groups = x.num_groups, size = x.num_inputs / groups;
    const int repeats = groups / given_.num_groups;
    const uint8_t* w = &packed_[tile_bytes_ * tile];
    const Scale* scale = reinterpret_cast<const Scale*>(scales_of(tile));
    const int8_t* values = &x.values[size_t(first) * x.num_inputs];
    F32 total[kRows]{};
    for (int g = 0; g < groups; ++g) {
      // Two sums for each, since one would wait for itself.
      I32 even[kRows], odd[kRows]{};
      for (int row = 0; row < kRows; ++row) even[row] = I32{} - kMove * x.totals[(first + row) * groups + g];
      const int8_t* at = values + g * size;
      for (int k = 0; k < size; k += kInputs, w += 64) {
        __builtin_prefetch(w + kAhead);
        const Bytes block = load_bytes(w);
        for (int row = 0; row < kRows; ++row) {
          const int8_t* inputs = at + size_t(row) * x.num_inputs + k;
          if constexpr (kBits == 4) {
            even[row] = dot<true>(even[row], low_halves(block), inputs);
            odd[row] = dot<true>(odd[row], high_halves(block), inputs + 4);
          } else if ((k / kInputs) % 2) {
            odd[row] = dot<false>(odd[row], block, inputs);
          } else {
            even[row] = dot<false>(even[row], block, inputs);
          }
        }
      }
      const F32 weight_scale = widen(scale + g / repeats * kLanes);
      for (int row = 0; row < kRows; ++row) {
        total[row] += to_float(even[row] + odd[row]) * (weight_scale * x.scales[(first + row) * groups + g]);
      }
    }
    for (int row = 0; row < kRows; ++row) out[row] = total[row];
  }

  static constexpr int kAhead = 512;  // bytes: the processor's own reading ahead ends with each page

  GivenMatrix given_{};
  size_t tile_bytes_ = 0;
  Buffer<uint8_t> packed_;
  size_t scale_bytes_ = 0;
  Buffer<uint8_t> scales_;
};

}  // namespace nvila
