// Attention of new tokens over the cache, to which their keys and values are appended.
//
// A short pass reads the cache once: its rows are cut into chunks, each attended to for all heads, and the partial
// outputs of the chunks are merged at the end. A long pass transposes the keys, so that sixteen of them lie side by
// side, and computes blocks of tokens.
//
// Shapes: M rows of the cache, H query heads, K key and value heads, S head size.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "api.h"
#include "buffer.h"
#include "lanes.h"
#include "pass.h"
#include "thread_team.h"

namespace nvila {

class Attention {
 public:
  // Of one layer.
  struct Queues {
    WorkQueue &transpose, &attend;
  };

  Attention(const Spec& spec, int threads) : spec_(spec), scratch_(threads) {}

  void reserve(const Pass& pass) {
    const size_t rows = pass.rows, s = spec_.head_size;
    grow(qkv_, rows * qkv_width());
    const size_t num_queries = rows * spec_.num_heads, chunks = pass.is_short ? num_chunks(pass) : 1;
    grow(partial_outputs_, chunks * num_queries * s);
    grow(softmax_, chunks * num_queries * 2);
    if (!pass.is_short) grow(transposed_keys_, pad(pass.num_all) * spec_.num_kv_heads * s);
    const size_t at_once = pass.is_short ? num_queries : size_t(kBlockRows) * spec_.num_heads / spec_.num_kv_heads;
    for (Scratch& own : scratch_) {
      grow(own.queries, at_once * s);
      grow(own.scores, at_once * (pass.is_short ? chunk_rows(pass) : pad(pass.num_all)));
    }
  }

  // A token's query, key and value before their rotation, (H + K + K, S).
  float* qkv(int token) { return &qkv_[size_t(token) * qkv_width()]; }
  const float* qkv(int token) const { return &qkv_[size_t(token) * qkv_width()]; }

  // One thread's share of a layer's attention; the team meets before the output is read.
  void run(const Pass& pass, int i, int rank, Queues queues, ThreadTeam& team) {
    if (pass.is_short) {
      attend_short(pass, i, scratch_[rank], queues);
    } else {
      attend_long(pass, i, scratch_[rank], queues, team);
    }
  }

  // The output of all heads for one row, (H, S), which may be computed into `room` of that size.
  const float* output(const Pass& pass, int row, float* room) const {
    return pass.is_short ? merge(pass, row, room) : &partial_outputs_[size_t(row) * spec_.num_heads * spec_.head_size];
  }

 private:
  // Of one thread.
  struct Scratch {
    Buffer<float> queries, scores;
  };

  // Wider by one vector, since rows a power of two apart would share the same few sets of the processor's cache.
  int qkv_width() const { return (spec_.num_heads + 2 * spec_.num_kv_heads) * spec_.head_size + kLanes; }

  // Writes the keys and values of the new tokens among the rows [first, end) of the cache.
  void append(const Pass& pass, int i, int64_t first, int64_t end) {
    const int s = spec_.head_size, num_kv = spec_.num_kv_heads;
    const int64_t step = int64_t(num_kv) * s;
    float* keys = pass.call.cache.data + 2 * i * pass.call.stride;
    for (int64_t m = std::max(first, pass.start); m < end; ++m) {
      const int row = int(m - pass.start);
      const float* from = qkv(row) + spec_.num_heads * s;
      for (int kv = 0; kv < num_kv; ++kv) rotate(pass, row, from + kv * s, 1.f, keys + m * step + kv * s);
      std::memcpy(keys + pass.call.stride + m * step, from + step, sizeof(float) * step);
    }
  }

  void rotate_query(const Pass& pass, int row, int head, float* to) const {
    const int s = spec_.head_size, token = pass.token(row);
    rotate(pass, token, qkv(token) + head * s, 1.f / std::sqrt(float(s)), to);
  }

  // A long pass: all keys are transposed once, for all blocks of rows.
  void attend_long(const Pass& pass, int i, Scratch& own, Queues& queues, ThreadTeam& team) {
    const int s = spec_.head_size, num_kv = spec_.num_kv_heads;
    const int64_t num_all = pass.num_all, step = int64_t(num_kv) * s, head_keys = pad(num_all) * s;
    const float* keys = pass.call.cache.data + 2 * i * pass.call.stride;
    queues.transpose.parallel_for(int(pad(num_all) / kLanes), 1, [&](int chunk, int) {
      const int64_t first = int64_t(chunk) * kLanes, end = std::min(first + kLanes, num_all);
      append(pass, i, first, end);
      for (int kv = 0; kv < num_kv; ++kv) {
        float* to = &transposed_keys_[kv * head_keys + first * s];
        for (int64_t m = first; m < first + kLanes; ++m) {
          const float* key = keys + std::min(m, end - 1) * step + kv * s;
          for (int j = 0; j < s; ++j) to[j * kLanes + m - first] = key[j];
        }
      }
    });
    team.wait();
    const int blocks = (pass.rows + kBlockRows - 1) / kBlockRows;
    queues.attend.parallel_for(blocks * num_kv, 1, [&](int item, int) {
      const int kv = item % num_kv, first = (blocks - 1 - item / num_kv) * kBlockRows;  // the longest ones first
      attend_block(pass, own, kv, first, std::min(kBlockRows, pass.rows - first), keys + pass.call.stride);
    });
  }

  void attend_block(const Pass& pass, Scratch& own, int kv, int first, int rows, const float* values) {
    const int s = spec_.head_size, num_kv = spec_.num_kv_heads, per_kv = spec_.num_heads / num_kv;
    const int64_t step = int64_t(num_kv) * s, end = pass.start + pass.token(first + rows - 1) + 1, width = pad(end);
    const float* keys = &transposed_keys_[kv * pad(pass.num_all) * s];
    const int num_queries = rows * per_kv;
    for (int c = 0; c < num_queries; ++c) {
      rotate_query(pass, first + c / per_kv, kv * per_kv + c % per_kv, &own.queries[c * s]);
    }
    for (int64_t m = 0; m < end; m += kLanes) {
      for (int c = 0; c < num_queries; c += kAtOnce) {
        const int count = std::min(kAtOnce, num_queries - c);
        add_up<kAtOnce>(count, &own.queries[c * s], s, keys + m * s, kLanes, s, &own.scores[c * width + m], width);
      }
    }
    float softmax[kBlockRows * kMaxHeadsPerKv][2];
    for (int c = 0; c < num_queries; ++c) {
      exponentiate(&own.scores[c * width], pass.mask(first + c / per_kv), end, softmax[c]);
    }
    for (int i = 0; i < s; i += kLanes) {
      for (int c = 0; c < num_queries; c += kAtOnce) {
        const int count = std::min(kAtOnce, num_queries - c);
        F32 outputs[kAtOnce];
        add_up<kAtOnce>(count, &own.scores[c * width], width, values + kv * s + i, step, end,
                        reinterpret_cast<float*>(outputs), kLanes);
        for (int j = 0; j < count; ++j) {
          const int row = first + (c + j) / per_kv, head = kv * per_kv + (c + j) % per_kv;
          store(&partial_outputs_[(size_t(row) * spec_.num_heads + head) * s + i],
                outputs[j] * (1.f / softmax[c + j][1]));
        }
      }
    }
  }

  // Sixteen sums for each of `count` rows of `x`: over k, x[k] times the sixteen numbers at y + k * y_step.
  template <int kCount>
  static void add_up(int count, const float* x, int64_t x_step, const float* y, int64_t y_step, int64_t length,
                     float* to, int64_t to_step) {
    if constexpr (kCount > 1) {
      if (count < kCount) return add_up<kCount - 1>(count, x, x_step, y, y_step, length, to, to_step);
    }
    F32 total[kCount];
    for (F32& each : total) each = broadcast(0.f);
    for (int64_t k = 0; k < length; ++k) {
      const F32 sixteen = load(y + k * y_step);
      for (int j = 0; j < kCount; ++j) total[j] += sixteen * x[j * x_step + k];
    }
    for (int j = 0; j < kCount; ++j) store(to + j * to_step, total[j]);
  }

  // Rows of the cache in a chunk; memory is read in the order of its addresses.
  static int64_t chunk_rows(const Pass& pass) {
    return std::max<int64_t>(kMinChunk, pad((pass.num_all + kMaxChunks - 1) / kMaxChunks));
  }
  static int num_chunks(const Pass& pass) {
    return int((pass.num_all + chunk_rows(pass) - 1) / chunk_rows(pass));
  }

  // The softmax of each chunk is over itself alone; `merge` weighs the chunks.
  void attend_short(const Pass& pass, int i, Scratch& own, Queues& queues) {
    for (int head = 0; head < spec_.num_heads; ++head) {
      for (int row = 0; row < pass.rows; ++row) {
        rotate_query(pass, row, head, &own.queries[(head * pass.rows + row) * spec_.head_size]);
      }
    }
    const int64_t size = chunk_rows(pass);
    queues.attend.parallel_for(num_chunks(pass), 1, [&](int chunk, int) {
      const int64_t first = chunk * size, end = std::min(first + size, pass.num_all);
      append(pass, i, first, end);
      if (pass.rows) attend_chunk(pass, i, own, chunk, first, end);
    });
  }

  void attend_chunk(const Pass& pass, int i, Scratch& own, int chunk, int64_t first, int64_t end) {
    const int s = spec_.head_size, num_kv = spec_.num_kv_heads, per_kv = spec_.num_heads / num_kv;
    const int64_t step = int64_t(num_kv) * s, count = end - first, width = pad(count);
    const float* keys = pass.call.cache.data + 2 * i * pass.call.stride + first * step;
    const float* values = keys + pass.call.stride;
    const int num_queries = per_kv * pass.rows;  // that share a key and value head
    // Both streams are prefetched a few lines at a time: the processor stalls where too many are under way.
    const int64_t lines = (4 * step * sizeof(float) / 64 + num_kv * num_queries - 1) / (num_kv * num_queries);
    for (int64_t m = 0; m < count; m += 4) {
      const char* next_keys = reinterpret_cast<const char*>(keys + (m + kRowsAhead) * step);
      const char* next_values = reinterpret_cast<const char*>(values + m * step);
      for (int kv = 0; kv < num_kv; ++kv) {
        const float* at[4];
        for (int j = 0; j < 4; ++j) at[j] = keys + std::min(m + j, count - 1) * step + kv * s;
        for (int c = 0; c < num_queries; ++c) {
          for (int64_t line = 0; line < lines; ++line, next_keys += 64, next_values += 64) {
            __builtin_prefetch(next_keys, 0, 2);
            __builtin_prefetch(next_values, 0, 2);
          }
          const int of = kv * num_queries + c;
          score_four(&own.queries[of * s], at, s, &own.scores[of * width + m]);
        }
      }
    }
    float* softmax = &softmax_[size_t(chunk) * 2 * pass.rows * spec_.num_heads];
    for (int of = 0; of < pass.rows * spec_.num_heads; ++of) {
      exponentiate(&own.scores[of * width], pass.mask(of % pass.rows) + first, count, softmax + 2 * of);
    }
    float* outputs = &partial_outputs_[size_t(chunk) * pass.rows * spec_.num_heads * s];
    for (int kv = 0; kv < num_kv; ++kv) {
      for (int j = 0; j < s; j += kLanes) {
        for (int c = 0; c < num_queries; c += kAtOnce) {
          const int of = kv * num_queries + c;
          add_up<kAtOnce>(std::min(kAtOnce, num_queries - c), &own.scores[of * width], width, values + kv * s + j, step,
                          count, outputs + of * s + j, s);
        }
      }
    }
  }

  const float* merge(const Pass& pass, int row, float* to) const {
    const int s = spec_.head_size, chunks = num_chunks(pass);
    const size_t stride = size_t(pass.rows) * spec_.num_heads;
    for (int head = 0; head < spec_.num_heads; ++head) {
      float* merged = to + head * s;
      const size_t of = head * pass.rows + row;
      float top = kHidden, total = 0;
      for (int c = 0; c < chunks; ++c) top = std::max(top, softmax_[2 * (c * stride + of)]);
      std::memset(merged, 0, sizeof(float) * s);
      for (int c = 0; c < chunks; ++c) {
        const float weight = std::exp(softmax_[2 * (c * stride + of)] - top);
        total += weight * softmax_[2 * (c * stride + of) + 1];
        const float* partial = &partial_outputs_[(c * stride + of) * s];
        for (int i = 0; i < s; ++i) merged[i] += weight * partial[i];
      }
      for (int i = 0; i < s; ++i) merged[i] /= total;
    }
    return to;
  }

  // Rotary positions; channel i pairs with i + S / 2.
  void rotate(const Pass& pass, int token, const float* x, float scale, float* to) const {
    const int s = spec_.head_size, half = s / 2;
    const float *cos = pass.call.cos.data + (pass.first + token) * s, *sin = pass.call.sin.data + (pass.first + token) * s;
    for (int i = 0; i < half; ++i) {
      to[i] = (x[i] * cos[i] - x[i + half] * sin[i]) * scale;
      to[i + half] = (x[i + half] * cos[i + half] + x[i] * sin[i + half]) * scale;
    }
  }

  static void score_four(const float* q, const float* const* keys, int s, float* to) {
    F32 total[4];
    for (F32& each : total) each = broadcast(0.f);
    for (int i = 0; i < s; i += kLanes) {
      const F32 x = load(q + i);
      for (int j = 0; j < 4; ++j) total[j] += x * load(keys[j] + i);
    }
    for (int j = 0; j < 4; ++j) to[j] = reduce_sum(total[j]);
  }

  // Replaces scores by e^(score - largest) and writes the largest and the sum to `softmax`.
  static void exponentiate(float* scores, const float* mask, int64_t count, float* softmax) {
    F32 most = broadcast(kHidden);
    int64_t m = 0;
    for (; m + kLanes <= count; m += kLanes) {
      const F32 x = load(scores + m) + load(mask + m);
      store(scores + m, x);
      most = max(most, x);
    }
    float top = reduce_max(most);
    for (int64_t rest = m; rest < count; ++rest) top = std::max(top, scores[rest] += mask[rest]);
    for (int64_t rest = count; rest < pad(count); ++rest) scores[rest] = kHidden;
    F32 total = broadcast(0.f);
    for (m = 0; m < count; m += kLanes) {
      const F32 x = exp(load(scores + m) - top);
      store(scores + m, x);
      total += x;
    }
    softmax[0] = top, softmax[1] = reduce_sum(total);
  }

  static constexpr int kBlockRows = 8;
  static constexpr int kAtOnce = kMaxSums >= 16 ? 12 : 4;
  static constexpr int kRowsAhead = 16, kMinChunk = 64, kMaxChunks = 32;
  static constexpr float kHidden = -1e30f;

  const Spec spec_;
  std::vector<Scratch> scratch_;
  Buffer<float> qkv_, transposed_keys_;
  Buffer<float> partial_outputs_;  // of each chunk of a short pass, or the output of a long one
  Buffer<float> softmax_;          // of each chunk, query head and row the largest score and the sum
};

}  // namespace nvila
