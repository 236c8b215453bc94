// Matrices of four or eight bits in the order in which products read them, and rows of activations in eight bits.
//
// A matrix is cut into tiles of 16 outputs. In a tile the inputs follow one another in blocks of 64 bytes: of each
// output four inputs of eight bits, or eight of four bits, whose first four are the low halves. Values are moved to
// unsigned numbers; what this adds to a product is the sum of the inputs times the move, taken off for each group.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <new>
#include <utility>

#include "lanes.h"

namespace nvila {

constexpr int kMostTiles = kMostSums >= 16 ? 2 : 1;          // that are multiplied at once
constexpr int kGroupRows = kMostSums / kMostTiles;           // of activations that are multiplied at once
constexpr size_t kHugePage = size_t{2} << 20;

// Memory of zeros, in huge pages where there are some: weights are read from end to end in each step, and would wait
// for the page tables.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t count) : count_(count) {
    const size_t bytes = count * sizeof(T), huge = bytes / kHugePage * kHugePage;
    const size_t align = huge ? kHugePage : 64;
    // Some more than is asked for, since the last sixteen numbers are read as such.
    data_ = static_cast<T*>(std::aligned_alloc(align, (bytes + 64 + align - 1) / align * align));
    if (!data_) throw std::bad_alloc();
    if (huge) madvise(data_, huge, MADV_HUGEPAGE);  // but for the rest, of which a page more would be kept
    std::memset(static_cast<void*>(data_), 0, bytes);
  }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~Buffer() { std::free(data_); }

  const T* data() const { return data_; }
  T* data() { return data_; }
  size_t size() const { return count_; }
  const T& operator[](size_t i) const { return data_[i]; }
  T& operator[](size_t i) { return data_[i]; }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

// Rows of activations in [-127, 127], with a scale for each group of inputs. How many of both a row has is the matrix's
// to say that multiplies it.
struct Rounded {
  Buffer<int8_t> values;   // (rows, K)
  Buffer<float> scales;    // (rows, G)
  Buffer<int32_t> totals;  // (rows, G), of the values

  void reserve(size_t rows, size_t inputs, size_t groups) {
    if (values.size() < rows * inputs) values = Buffer<int8_t>(rows * inputs);
    if (totals.size() >= rows * groups) return;
    scales = Buffer<float>(rows * groups);
    totals = Buffer<int32_t>(rows * groups);
  }

  // Rounds numbers to values from `first` on, whose scale has the place `at`; a scale of 0 is found.
  void round(const float* x, int size, size_t first, size_t at, float scale) {
    scales[at] = scale > 0 ? scale : find_scale(x, size);
    totals[at] = round_group(&values[first], x, size, 1.f / scales[at]);
  }

 private:
  static float find_scale(const float* x, int size) {
    F32 most = fill(0.f);
    int i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      const F32 v = load(x + i);
      most = larger(most, larger(v, -v));
    }
    float top = largest(most);
    for (; i < size; ++i) top = std::fabs(x[i]) > top ? std::fabs(x[i]) : top;
    return top > 1e-30f ? top / 127.f : 1.f;
  }

  static int32_t round_group(int8_t* to, const float* x, int size, float inverse) {
    I32 totals = fill(0);
    int i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      const I32 n = round_to_int(smaller(larger(load(x + i) * inverse, fill(-127.f)), fill(127.f)));
      store_bytes(to + i, n);
      totals += n;
    }
    int32_t total = sum(totals);
    for (; i < size; ++i) {
      const float v = std::nearbyint(x[i] * inverse);
      to[i] = int8_t(v > -127 ? (v < 127 ? v : 127) : -127);
      total += to[i];
    }
    return total;
  }
};

// What a matrix is, and how its inputs are rounded.
struct Form {
  int32_t num_inputs, num_outputs;
  int32_t num_groups;        // of scales
  int32_t num_input_groups;  // of activations, a multiple of those
  int32_t bits;
  int32_t has_half_scales;
  float input_scale;  // 0 to find one for each group
};

// One matrix as its owner gives it: `values[k * stride_k + n * stride_n]`, `scales[g * num_outputs + n]`.
struct GivenMatrix {
  const int8_t* values;
  const void* scales;  // float32, or float16
  int64_t stride_k, stride_n;
  Form form;
};

class Matrix {
 public:
  Matrix() = default;

  // Of zeros, until each tile is packed.
  explicit Matrix(const Form& form)
      : form_(form),
        tile_bytes_(size_t(form.num_inputs) * form.bits / 8 * kLanes),
        scale_bytes_(form.has_half_scales ? sizeof(uint16_t) : sizeof(float)),
        packed_(tile_bytes_ * num_tiles()),
        scales_(size_t(form.num_groups) * kLanes * num_tiles() * scale_bytes_) {}

  int num_outputs() const { return form_.num_outputs; }
  int num_tiles() const { return (form_.num_outputs + kLanes - 1) / kLanes; }
  int num_input_groups() const { return form_.num_input_groups; }
  size_t tile_bytes() const { return tile_bytes_; }

  // Rounds a row of this matrix's inputs.
  void round(const float* x, int row, Rounded& to) const {
    const int groups = form_.num_input_groups, size = form_.num_inputs / groups;
    for (int g = 0; g < groups; ++g) {
      const size_t group = size_t(row) * groups + g;
      to.round(x + g * size, size, group * size, group, form_.input_scale);
    }
  }

  void pack(const GivenMatrix& given, int tile) {
    const int first = tile * kLanes, count = std::min(kLanes, form_.num_outputs - first);
    const int move = form_.bits == 4 ? 8 : 128, step = form_.bits == 4 ? 8 : 4;
    uint8_t* to = &packed_[tile_bytes_ * tile];
    for (int k = 0; k < form_.num_inputs; k += step, to += 64) {
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int i = 0; i < 4; ++i) {
          // Outputs that no one has are zero.
          auto value = [&](int at) -> uint8_t {
            return move + (lane < count ? given.values[at * given.stride_k + (first + lane) * given.stride_n] : 0);
          };
          to[4 * lane + i] = form_.bits == 4 ? value(k + i) | value(k + 4 + i) << 4 : value(k + i);
        }
      }
    }
    const uint8_t* from = static_cast<const uint8_t*>(given.scales) + first * scale_bytes_;
    for (int g = 0; g < form_.num_groups; ++g, from += form_.num_outputs * scale_bytes_) {
      std::memcpy(&scales_[scales_at(tile) + g * kLanes * scale_bytes_], from, count * scale_bytes_);
    }
  }

  // Where the values and scales of a tile lie.
  struct Tile {
    const uint8_t* values;
    const uint8_t* scales;
  };
  Tile tile(int i) const { return {&packed_[tile_bytes_ * i], &scales_[scales_at(i)]}; }

  // Multiplies `rows` rows of activations, at most kGroupRows from `first` on, by tiles of this matrix, or of others of
  // its form: `out[tile][row]`.
  template <int kTiles>
  void multiply(const Tile (&tiles)[kTiles], const Rounded& x, int first, int rows, F32 (*out)[kGroupRows]) const {
    multiply_up_to<kGroupRows>(tiles, x, first, rows, out);
  }

 private:
  size_t scales_at(int tile) const { return size_t(tile) * form_.num_groups * kLanes * scale_bytes_; }

  template <int kRows, int kTiles>
  void multiply_up_to(const Tile (&tiles)[kTiles], const Rounded& x, int first, int rows,
                      F32 (*out)[kGroupRows]) const {
    if constexpr (kRows > 1) {
      if (rows < kRows) return multiply_up_to<kRows - 1>(tiles, x, first, rows, out);
    }
    if (form_.bits == 8) return multiply_as<kRows, kTiles, 8, float>(tiles, x, first, out);
    if (form_.has_half_scales) return multiply_as<kRows, kTiles, 4, uint16_t>(tiles, x, first, out);
    multiply_as<kRows, kTiles, 4, float>(tiles, x, first, out);
  }

  template <int kRows, int kTiles, int kBits, class Scale>
  void multiply_as(const Tile (&tiles)[kTiles], const Rounded& x, int first, F32 (*out)[kGroupRows]) const {
    constexpr int kInputs = 32 / kBits;  // of an output in a block
    constexpr int kMove = kBits == 4 ? 8 : 128;
    // A sum alone would wait for itself: where there are few, each is kept in two.
    constexpr int kHalves = kBits == 4 && kRows * kTiles < 4 ? 2 : 1;
    const int inputs = form_.num_inputs, groups = form_.num_input_groups;
    const int size = inputs / groups, repeats = groups / form_.num_groups;
    const int8_t* values = &x.values[size_t(first) * inputs];
    F32 total[kTiles][kRows];
    for (auto& of_tile : total) {
      for (F32& each : of_tile) each = fill(0.f);
    }
    int64_t w = 0;  // bytes into the tiles
    for (int g = 0; g < groups; ++g) {
      I32 sums[kHalves][kTiles][kRows];
      for (int t = 0; t < kTiles; ++t) {
        for (int row = 0; row < kRows; ++row) {
          sums[kHalves - 1][t][row] = fill(0);
          sums[0][t][row] = fill(-kMove * x.totals[(first + row) * groups + g]);
        }
      }
      for (int k = g * size; k < (g + 1) * size; k += kInputs, w += 64) {
        Bytes blocks[kTiles];
        for (int t = 0; t < kTiles; ++t) {
          __builtin_prefetch(tiles[t].values + w + kAhead);
          blocks[t] = load_bytes(tiles[t].values + w);
        }
        for (int row = 0; row < kRows; ++row) {
          const int8_t* four = values + size_t(row) * inputs + k;
          for (int t = 0; t < kTiles; ++t) {
            if constexpr (kBits == 4) {
              sums[0][t][row] = dot<true>(sums[0][t][row], low_halves(blocks[t]), four);
              I32& other = sums[kHalves - 1][t][row];
              other = dot<true>(other, high_halves(blocks[t]), four + 4);
            } else {
              sums[0][t][row] = dot<false>(sums[0][t][row], blocks[t], four);
            }
          }
        }
      }
      for (int t = 0; t < kTiles; ++t) {
        const F32 scale = widen(reinterpret_cast<const Scale*>(tiles[t].scales) + g / repeats * kLanes);
        for (int row = 0; row < kRows; ++row) {
          I32 sum = sums[0][t][row];
          if constexpr (kHalves == 2) sum += sums[1][t][row];
          total[t][row] += to_float(sum) * (scale * x.scales[(first + row) * groups + g]);
        }
      }
    }
    for (int t = 0; t < kTiles; ++t) {
      for (int row = 0; row < kRows; ++row) out[t][row] = total[t][row];
    }
  }

  static constexpr int kAhead = 512;  // bytes: the processor's own reading ahead ends with each page

  Form form_{};
  size_t tile_bytes_ = 0, scale_bytes_ = 0;
  Buffer<uint8_t> packed_, scales_;
};

}  // namespace nvila
