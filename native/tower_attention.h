// Attention of a tower over all of its patches, in bfloat16 by tiles: scores and sums are float32.
//
// Shapes: P patches, E width, H heads, S head size.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "api.h"
#include "buffer.h"
#include "lanes.h"
#include "tiles.h"

namespace nvila {

class TowerAttention {
 public:
  static constexpr int kBlockRows = 2 * kTileRows;  // of queries at once

  // Of one thread.
  struct Scratch {
    Buffer<float> scores, out;
    Buffer<uint16_t> shares;
    float inverse_sums[kBlockRows];
  };

  explicit TowerAttention(const TowerSpec& spec)
      : spec_(spec),
        head_size_(spec.width / spec.num_heads),
        padded_size_(round_up(head_size_, kDepth)),
        padded_rows_(round_up(spec.num_patches, kDepth)),
        qkv_(size_t(padded_rows_) * qkv_width() + kDepth),
        keys_(size_t(spec.num_heads) * padded_rows_ * padded_size_ / 2),
        values_(size_t(spec.num_heads) * padded_rows_ / 2 * padded_features()) {}

  void reserve(Scratch& own) const {
    if (own.scores.size()) return;
    own.scores = Buffer<float>(size_t(kBlockRows) * score_step());
    own.shares = Buffer<uint16_t>(size_t(kBlockRows) * share_step());
    own.out = Buffer<float>(kBlockRows * 2 * kLanes);
  }

  int num_blocks() const { return padded_rows_ / kBlockRows; }

  // A patch's query, key and value side by side, (3, E), in bfloat16. Queries are scaled for `attend`.
  uint16_t* qkv(int row) { return &qkv_[size_t(row) * qkv_width()]; }
  float query_scale() const { return 1.44269504f / std::sqrt(float(head_size_)); }  // powers of two, not of e

  // Packs the keys and values of a head as tiles multiply them: pairs of channels of a key, pairs of keys of a channel.
  void pack(int head) {
    const int pairs = padded_size_ / 2, rows = spec_.num_patches, size = head_size_;
    uint32_t* keys = &keys_[size_t(head) * padded_rows_ * pairs];
    for (int row = 0; row < rows; ++row) {
      const uint16_t* from = qkv(row) + spec_.width + head * size;
      uint32_t* to = keys + size_t(row / kLanes) * pairs * kLanes + row % kLanes;
      for (int i = 0; i < size / 2; ++i) std::memcpy(&to[i * kLanes], from + 2 * i, sizeof *to);
    }
    uint32_t* values = &values_[size_t(head) * padded_rows_ / 2 * padded_features()];
    for (int block = 0; block < padded_features() / kLanes; ++block) {
      const int count = std::min(kLanes, size - block * kLanes);
      for (int row = 0; row < rows; row += 2, values += kLanes) {
        const uint16_t* low = qkv(row) + 2 * spec_.width + head * size + block * kLanes;
        const uint16_t* high = row + 1 < rows ? low + qkv_width() : nullptr;
        for (int i = 0; i < count; ++i) values[i] = low[i] | uint32_t(high ? high[i] : 0) << 16;
      }
      values += size_t(padded_rows_ / 2 - (rows + 1) / 2) * kLanes;
    }
  }

  // Writes the outputs of a head for a block of queries among all heads', (P, E). The tiles are set to 16 rows of 64 bytes.
  void attend(int head, int block, Scratch& own, float* to) {
    score(head, block, own);
    for (int row = 0; row < kBlockRows; ++row) own.inverse_sums[row] = soften(row, own);
    const int rows = std::min(kBlockRows, spec_.num_patches - block * kBlockRows);
    const size_t block_size = size_t(padded_rows_) / 2 * kLanes;
    const uint32_t* values = &values_[size_t(head) * padded_rows_ / 2 * padded_features()];
    for (int feature = 0; feature < head_size_; feature += 2 * kLanes, values += 2 * block_size) {
      const bool has_two = feature + kLanes < head_size_;
      has_two ? mix<2>(values, values + block_size, own) : mix<1>(values, values, own);
      const int count = std::min(2 * kLanes, head_size_ - feature);
      for (int row = 0; row < rows; ++row) {
        float* target = to + size_t(block * kBlockRows + row) * spec_.width + head * head_size_ + feature;
        for (int i = 0; i < count; ++i) target[i] = own.out[row * 2 * kLanes + i] * own.inverse_sums[row];
      }
    }
  }

 private:
  static constexpr int kDepth = 32;  // numbers of a tile's row
  static constexpr int round_up(int count, int step) { return (count + step - 1) / step * step; }

  // Wider than a power of two, whose rows would share the same few sets of the processor's cache.
  int score_step() const { return padded_rows_ + kLanes; }
  int share_step() const { return padded_rows_ + 2 * kLanes; }
  int qkv_width() const { return 3 * spec_.width + 2 * kLanes; }
  int padded_features() const { return round_up(head_size_, kLanes); }

  void score(int head, int block, Scratch& own) {
    const int pairs = padded_size_ / 2;
    const int64_t step = int64_t(qkv_width()) * sizeof(uint16_t), to_step = score_step() * sizeof(float);
    const uint16_t* queries = qkv(block * kBlockRows) + head * head_size_;
    const uint32_t* keys = &keys_[size_t(head) * padded_rows_ * pairs];
    for (int key = 0; key < padded_rows_; key += 2 * kLanes, keys += 2 * pairs * kLanes) {
      zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
      for (int i = 0; i < padded_size_; i += kDepth) {
        load_tile<4>(queries + i, step);
        load_tile<6>(keys + i / 2 * kLanes, kTileRowBytes);
        dot_halves<0, 4, 6>();
        load_tile<7>(keys + (pairs + i / 2) * kLanes, kTileRowBytes);
        dot_halves<1, 4, 7>();
        load_tile<5>(queries + kTileRows * qkv_width() + i, step);
        dot_halves<2, 5, 6>();
        dot_halves<3, 5, 7>();
      }
      float* to = &own.scores[key];
      store_tile<0>(to, to_step), store_tile<1>(to + kLanes, to_step);
      store_tile<2>(to + kTileRows * score_step(), to_step);
      store_tile<3>(to + kTileRows * score_step() + kLanes, to_step);
    }
  }

  // Writes 2^(score - whole) of a row, for the whole number above its largest score, and returns the inverse of their sum.
  float soften(int row, Scratch& own) const {
    float* scores = &own.scores[size_t(row) * score_step()];
    uint16_t* shares = &own.shares[size_t(row) * share_step()];
    for (int i = spec_.num_patches; i < padded_rows_; ++i) scores[i] = -1e30f;
    F32 most[2] = {load(scores), load(scores + kLanes)};
    for (int i = 2 * kLanes; i < padded_rows_; i += 2 * kLanes) {
      for (int j = 0; j < 2; ++j) most[j] = max(most[j], load(scores + i + j * kLanes));
    }
    const F32 whole = broadcast(std::ceil(reduce_max(max(most[0], most[1]))));
    F32 sums[2] = {broadcast(0.f), broadcast(0.f)};
    for (int i = 0; i < padded_rows_; i += 2 * kLanes) {
      for (int j = 0; j < 2; ++j) {
        const F32 share = exp2_below(load(scores + i + j * kLanes), whole);
        store_halves(shares + i + j * kLanes, share);
        sums[j] += share;
      }
    }
    return 1.f / reduce_sum(sums[0] + sums[1]);
  }

  // Of shares and one or two blocks of values the products, (32, 32).
  template <int kTiles>
  void mix(const uint32_t* values, const uint32_t* others, Scratch& own) const {
    const int64_t step = share_step() * sizeof(uint16_t), to_step = 2 * kLanes * sizeof(float);
    zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
    for (int key = 0; key < padded_rows_; key += kDepth) {
      load_tile<4>(&own.shares[key], step);
      load_tile<6>(values + size_t(key) / 2 * kLanes, kTileRowBytes);
      dot_halves<0, 4, 6>();
      load_tile<5>(&own.shares[size_t(kTileRows) * share_step() + key], step);
      dot_halves<2, 5, 6>();
      if constexpr (kTiles == 2) {
        load_tile<7>(others + size_t(key) / 2 * kLanes, kTileRowBytes);
        dot_halves<1, 4, 7>();
        dot_halves<3, 5, 7>();
      }
    }
    float* to = own.out.data();
    store_tile<0>(to, to_step), store_tile<1>(to + kLanes, to_step);
    store_tile<2>(to + kTileRows * 2 * kLanes, to_step), store_tile<3>(to + kTileRows * 2 * kLanes + kLanes, to_step);
  }

  const TowerSpec spec_;
  const int head_size_, padded_size_, padded_rows_;
  Buffer<uint16_t> qkv_;
  Buffer<uint32_t> keys_;    // (H, P / 16, S / 2, 16) pairs of channels
  Buffer<uint32_t> values_;  // (H, S / 16, P / 2, 16) pairs of keys
};

}  // namespace nvila
