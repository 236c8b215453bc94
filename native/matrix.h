// Matrices of four or eight bits, packed in the order in which products read them.
//
// A matrix is cut into tiles of 16 outputs. In a tile the inputs follow one another in blocks of 64 bytes: of each
// output four inputs of eight bits, or eight of four bits, whose first four are the low nibbles. Values are stored
// unsigned, with a zero point; the zero point times the sum of the inputs is subtracted for each group.
#pragma once

#include <algorithm>
#include <cstddef>

#include "api.h"
#include "buffer.h"
#include "lanes.h"
#include "quantized_rows.h"

namespace nvila {

constexpr int kMaxTiles = kMaxSums >= 16 ? 2 : 1;  // that are multiplied at once
constexpr int kMaxTileRows = kMaxSums / kMaxTiles;  // rows of activations that are multiplied at once

class Matrix {
 public:
  Matrix() = default;

  // Zeros, until each tile is packed.
  explicit Matrix(const MatrixForm& form)
      : form_(form),
        tile_bytes_(size_t(form.num_inputs) * form.bits / 8 * kLanes),
        scale_bytes_(form.has_half_scales ? sizeof(uint16_t) : sizeof(float)),
        packed_(tile_bytes_ * num_tiles()),
        scales_(size_t(form.num_groups) * kLanes * num_tiles() * scale_bytes_) {}

  const MatrixForm& form() const { return form_; }
  int num_outputs() const { return form_.num_outputs; }
  int num_tiles() const { return (form_.num_outputs + kLanes - 1) / kLanes; }
  int num_input_groups() const { return form_.num_input_groups; }
  size_t tile_bytes() const { return tile_bytes_; }

  // Quantizes a row of this matrix's inputs.
  void quantize(const float* x, int row, QuantizedRows& to) const {
    const int groups = form_.num_input_groups, size = form_.num_inputs / groups;
    for (int g = 0; g < groups; ++g) {
      const size_t group = size_t(row) * groups + g;
      to.quantize(x + g * size, size, group * size, group, form_.input_scale);
    }
  }

  void pack(const MatrixView& from, int tile) {
    const int first = tile * kLanes, count = std::min(kLanes, form_.num_outputs - first);
    const int zero_point = form_.bits == 4 ? 8 : 128, step = form_.bits == 4 ? 8 : 4;
    uint8_t* to = &packed_[tile_bytes_ * tile];
    for (int k = 0; k < form_.num_inputs; k += step, to += 64) {
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int i = 0; i < 4; ++i) {
          // The last tile may have lanes without an output: those are zero.
          auto value = [&](int input) -> uint8_t {
            if (lane >= count) return zero_point;
            const int number = from.values.data[input * from.stride_k + (first + lane) * from.stride_n];
            return (zero_point + number) & (form_.bits == 4 ? 15 : 255);  // no neighbour changes, whatever the number
          };
          to[4 * lane + i] = form_.bits == 4 ? value(k + i) | value(k + 4 + i) << 4 : value(k + i);
        }
      }
    }
    const uint8_t* scales = from.scales.data + first * scale_bytes_;
    for (int g = 0; g < form_.num_groups; ++g, scales += form_.num_outputs * scale_bytes_) {
      std::memcpy(&scales_[scales_offset(tile) + g * kLanes * scale_bytes_], scales, count * scale_bytes_);
    }
  }

  // The packed values and scales of a tile.
  struct Tile {
    const uint8_t* values;
    const uint8_t* scales;
  };
  Tile tile(int i) const { return {&packed_[tile_bytes_ * i], &scales_[scales_offset(i)]}; }

  // Multiplies `rows` rows of activations, at most kMaxTileRows from `first` on, by tiles of this matrix, or of others of
  // its form: `out[tile][row]`.
  template <int kTiles>
  void multiply(const Tile (&tiles)[kTiles], const QuantizedRows& x, int first, int rows, F32 (*out)[kMaxTileRows]) const {
    multiply_up_to<kMaxTileRows>(tiles, x, first, rows, out);
  }

 private:
  size_t scales_offset(int tile) const { return size_t(tile) * form_.num_groups * kLanes * scale_bytes_; }

  template <int kRows, int kTiles>
  void multiply_up_to(const Tile (&tiles)[kTiles], const QuantizedRows& x, int first, int rows,
                      F32 (*out)[kMaxTileRows]) const {
    if constexpr (kRows > 1) {
      if (rows < kRows) return multiply_up_to<kRows - 1>(tiles, x, first, rows, out);
    }
    if (form_.bits == 8) return multiply_as<kRows, kTiles, 8, float>(tiles, x, first, out);
    if (form_.has_half_scales) return multiply_as<kRows, kTiles, 4, uint16_t>(tiles, x, first, out);
    multiply_as<kRows, kTiles, 4, float>(tiles, x, first, out);
  }

  template <int kRows, int kTiles, int kBits, class Scale>
  void multiply_as(const Tile (&tiles)[kTiles], const QuantizedRows& x, int first, F32 (*out)[kMaxTileRows]) const {
    constexpr int kInputs = 32 / kBits;  // of an output in a block
    constexpr int kZeroPoint = kBits == 4 ? 8 : 128;
    // Each product waits for the one before it in its sum: where there are few sums, each is kept in two.
    constexpr int kHalves = kBits == 4 && kRows * kTiles < 4 ? 2 : 1;
    const int inputs = form_.num_inputs, groups = form_.num_input_groups;
    const int size = inputs / groups, repeats = groups / form_.num_groups;
    const int8_t* values = &x.values[size_t(first) * inputs];
    F32 totals[kTiles][kRows];
    for (auto& of_tile : totals) {
      for (F32& each : of_tile) each = broadcast(0.f);
    }
    int64_t w = 0;  // bytes into the tiles
    for (int g = 0; g < groups; ++g) {
      I32 sums[kHalves][kTiles][kRows];
      for (int t = 0; t < kTiles; ++t) {
        for (int row = 0; row < kRows; ++row) {
          sums[kHalves - 1][t][row] = broadcast(0);
          sums[0][t][row] = broadcast(-kZeroPoint * x.row_sums[(first + row) * groups + g]);
        }
      }
      for (int k = g * size; k < (g + 1) * size; k += kInputs, w += 64) {
        Bytes blocks[kTiles];
        for (int t = 0; t < kTiles; ++t) {
          __builtin_prefetch(tiles[t].values + w + kPrefetchBytes);
          blocks[t] = load_bytes(tiles[t].values + w);
        }
        for (int row = 0; row < kRows; ++row) {
          const int8_t* four = values + size_t(row) * inputs + k;
          for (int t = 0; t < kTiles; ++t) {
            if constexpr (kBits == 4) {
              sums[0][t][row] = dot<true>(sums[0][t][row], low_nibbles(blocks[t]), four);
              I32& other = sums[kHalves - 1][t][row];
              other = dot<true>(other, high_nibbles(blocks[t]), four + 4);
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
          totals[t][row] += to_float(sum) * (scale * x.scales[(first + row) * groups + g]);
        }
      }
    }
    for (int t = 0; t < kTiles; ++t) {
      for (int row = 0; row < kRows; ++row) out[t][row] = totals[t][row];
    }
  }

  static constexpr int kPrefetchBytes = 512;  // ahead: the processor's own prefetcher stops at the end of each page

  MatrixForm form_{};
  size_t tile_bytes_ = 0, scale_bytes_ = 0;
  Buffer<uint8_t> packed_, scales_;
};

}  // namespace nvila
