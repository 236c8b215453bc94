// Products of many rows by the matrix unit.
//
// The unit multiplies 16 rows of 64 inputs by 64 inputs of 16 outputs at once, so that weights are unpacked to signed
// bytes first, for all rows. What it cannot do, the scales of each group of inputs, is done in between by vectors:
// in the same order as products without the unit, so that their numbers are the same to the last bit.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "buffer.h"
#include "lanes.h"
#include "matrix.h"
#include "quantized_rows.h"
#include "tiles.h"

namespace nvila {

// Of one thread.
class TileProduct {
 public:
  // Multiplies the first `rows` rows by tiles of matrices of one form, two at once: calls `done(tile, row, x, y)` with a
  // row's outputs of a tile and of the one behind it, which the last of an odd number of tiles does not have. Rows up to
  // the next multiple of 16 are read.
  template <class Done>
  void multiply(const MatrixForm& form, const Matrix::Tile* tiles, int num_tiles, const QuantizedRows& x, int rows,
                Done done) {
    set_shapes(depth_of(form));
    unpack(form, tiles, num_tiles);
    grow(totals_, size_t(num_tiles + 1) * 2 * kBlock);
    const int groups = form.num_input_groups;
    for (int first = 0; first < rows; first += 2 * kTileRows) {
      const bool has_two_blocks = first + kTileRows < rows;
      for (int g = 0; g < groups; ++g) {
        for (int tile = 0; tile < num_tiles; tile += 2) {
          const Part part{form, tiles + tile, x, first, g, tile, num_tiles, &totals_[size_t(tile) * 2 * kBlock]};
          const bool has_two_tiles = tile + 1 < num_tiles;
          if (has_two_blocks) {
            has_two_tiles ? add_group<2, 2>(part) : add_group<2, 1>(part);
          } else {
            has_two_tiles ? add_group<1, 2>(part) : add_group<1, 1>(part);
          }
          if (groups == 1) finish(part, std::min(2 * kTileRows, rows - first), has_two_tiles, done);
        }
      }
      if (groups == 1) continue;
      for (int tile = 0; tile < num_tiles; tile += 2) {
        const float* of = &totals_[size_t(tile) * 2 * kBlock];
        for (int row = 0; row < std::min(2 * kTileRows, rows - first); ++row) {
          done(tile, first + row, load(of + row * kLanes), load(of + 2 * kBlock + row * kLanes));
        }
      }
    }
  }

  // Tiles 0 to 3 are sums, 4 and 5 rows of activations, 6 and 7 weights; `depth` bytes are multiplied at once.
  void set_shapes(int depth) {
    if (depth == depth_) return;
    TileShapes shapes;
    for (int i = 0; i < 8; ++i) {
      shapes.rows[i] = uint8_t(i < 6 ? kTileRows : depth / 4);
      shapes.row_bytes[i] = uint16_t(i == 4 || i == 5 ? depth : kTileRowBytes);
    }
    set_tiles(shapes);
    depth_ = depth;
  }

  // The system saves the unit's registers of threads that use them.
  void release() {
    if (depth_) release_tiles();
    depth_ = 0;
  }

 private:
  static constexpr int kBlock = kTileRows * kLanes;

  // Two tiles of weights and two blocks of rows, of one group of inputs.
  struct Part {
    const MatrixForm& form;
    const Matrix::Tile* tiles;
    const QuantizedRows& x;
    int first, group, tile, num_tiles;
    float* totals;  // (tiles, 32 rows, 16)
  };

  // Inputs that are multiplied at once: as many of a group as fill a tile, or an equal part of the group.
  static int depth_of(const MatrixForm& form) {
    const int size = form.num_inputs / form.num_input_groups;
    int depth = kTileRowBytes;
    while (size % depth) depth -= 4;
    return depth;
  }

  // Side by side for each group, (groups, tiles, inputs of a group, 16): in the order in which they are read.
  void unpack(const MatrixForm& form, const Matrix::Tile* tiles, int num_tiles) {
    const size_t all = size_t(form.num_inputs) * kLanes, size = all / form.num_input_groups;
    if (weights_.size() < all * num_tiles) weights_ = Buffer<int8_t>(all * num_tiles);
    int8_t* to = weights_.data();
    for (int g = 0; g < form.num_input_groups; ++g) {
      for (int t = 0; t < num_tiles; ++t, to += size) {
        form.bits == 8 ? unpack_bytes(tiles[t].values + g * size, to, size)
                       : unpack_nibbles(tiles[t].values + g * size / 2, to, size);
      }
    }
  }

  static void unpack_bytes(const uint8_t* from, int8_t* to, size_t size) {
    for (size_t i = 0; i < size; ++i) to[i] = int8_t(from[i] ^ 128);
  }

  static void unpack_nibbles(const uint8_t* from, int8_t* to, size_t size) {
    for (size_t i = 0; i < size; i += 128, from += 64, to += 128) {
      for (int j = 0; j < 64; ++j) to[j] = int8_t((from[j] & 15) - 8);
      for (int j = 0; j < 64; ++j) to[64 + j] = int8_t((from[j] >> 4) - 8);
    }
  }

  template <int kBlocks, int kTiles>
  void add_group(const Part& part) {
    const int inputs = part.form.num_inputs, size = inputs / part.form.num_input_groups;
    const int8_t* rows = &part.x.values[size_t(part.first) * inputs + part.group * size];
    const int8_t* weights = &weights_[(size_t(part.group) * part.num_tiles + part.tile) * size * kLanes];
    zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
    for (int k = 0; k < size; k += depth_) {
      load_tile<4>(rows + k, inputs);
      load_tile<6>(weights + k * kLanes, kTileRowBytes);
      dot_tiles<0, 4, 6>();
      if constexpr (kTiles == 2) {
        load_tile<7>(weights + size_t(size + k) * kLanes, kTileRowBytes);
        dot_tiles<1, 4, 7>();
      }
      if constexpr (kBlocks == 2) {
        load_tile<5>(rows + size_t(kTileRows) * inputs + k, inputs);
        dot_tiles<2, 5, 6>();
        if constexpr (kTiles == 2) dot_tiles<3, 5, 7>();
      }
    }
    store_tile<0>(sums_[0], kTileRowBytes);
    if constexpr (kTiles == 2) store_tile<1>(sums_[1], kTileRowBytes);
    if constexpr (kBlocks == 2) store_tile<2>(sums_[2], kTileRowBytes);
    if constexpr (kBlocks == 2 && kTiles == 2) store_tile<3>(sums_[3], kTileRowBytes);
    if (part.form.num_input_groups == 1) return;
    for (int i = 0; i < 2 * kBlocks; ++i) {
      if (i % 2 < kTiles) scale_sums(part, i % 2, i / 2);
    }
  }

  static F32 scale_of(const Part& part, int tile) {
    const MatrixForm& form = part.form;
    const int at = part.group / (form.num_input_groups / form.num_groups) * kLanes;
    const uint8_t* scales = part.tiles[tile].scales;
    return form.has_half_scales ? widen(reinterpret_cast<const uint16_t*>(scales) + at)
                                : widen(reinterpret_cast<const float*>(scales) + at);
  }

  F32 sum(int tile, int block, int row) const {
    I32 sum;
    std::memcpy(&sum, &sums_[2 * block + tile][row * kLanes], sizeof sum);
    return to_float(sum);
  }

  // Of inputs in one group the sums are the products, but for their scales.
  template <class Done>
  void finish(const Part& part, int rows, bool has_two_tiles, Done& done) {
    const F32 scales[2] = {scale_of(part, 0), has_two_tiles ? scale_of(part, 1) : broadcast(0.f)};
    for (int row = 0; row < rows; ++row) {
      const int block = row / kTileRows, of_block = row % kTileRows;
      const float of_row = part.x.scales[part.first + row];
      done(part.tile, part.first + row, sum(0, block, of_block) * (scales[0] * of_row),
           sum(1, block, of_block) * (scales[1] * of_row));
    }
  }

  // Adds the sums of a group times their scales.
  void scale_sums(const Part& part, int tile, int block) {
    const int groups = part.form.num_input_groups;
    const F32 scale = scale_of(part, tile);
    const float* of_rows = &part.x.scales[size_t(part.first + block * kTileRows) * groups + part.group];
    float* totals = part.totals + (2 * tile + block) * kBlock;
    for (int row = 0; row < kTileRows; ++row) {
      float* total = totals + row * kLanes;
      const F32 before = part.group ? load(total) : broadcast(0.f);
      store(total, before + sum(tile, block, row) * (scale * of_rows[size_t(row) * groups]));
    }
  }

  int depth_ = 0;  // that the tiles are set to, 0 while they are not
  Buffer<int8_t> weights_;
  Buffer<float> totals_;
  alignas(64) int32_t sums_[4][kBlock];
};

}  // namespace nvila
