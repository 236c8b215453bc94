// What one call of a decoder is told, and the passes that it takes.
//
// Shapes: L tokens of the call, M rows of the cache after it, R tokens whose logits are wanted, D width, H query heads,
// K key and value heads, S head size, V vocabulary.
#pragma once

#include <cstdint>

#include "matrix.h"

namespace nvila {

struct Spec {
  int32_t width, num_layers, num_heads, num_kv_heads, head_size, mlp_width, vocab_size;
  float norm_eps;
};

// What a call is told: everything is float32 and contiguous but for `rows`.
struct Call {
  const float* embeds;  // (L, D)
  const float* cos;     // (L, S)
  const float* sin;     // (L, S)
  const float* mask;    // (L, M)
  const int64_t* rows;  // (R,), which tokens logits are wanted of, each once
  float* cache;         // keys of layer 0, its values, keys of layer 1 and so on, (capacity, K, S) each
  int64_t stride;       // numbers from one of those to the next
  int64_t start;        // rows held before
  int32_t num_new, num_wanted;
  float* logits;  // (R, V)
};

// Up to kMostRows tokens of a call, or those of them that are still of use.
struct Pass {
  const Call& call;
  int first, rows;
  int64_t start, num_all;  // rows of the cache before, and with all of the pass's tokens
  const int* kept;         // which of the tokens the rows are, or null for all
  bool is_short;           // every thread does for itself what takes less than to wait

  int token(int row) const { return kept ? kept[row] : row; }
  const float* mask(int row) const { return call.mask + (first + token(row)) * (call.start + call.num_new); }
};

inline int64_t pad(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

inline void grow(Buffer<float>& buffer, size_t count) {
  if (buffer.size() < count) buffer = Buffer<float>(count + count / 4);
}

}  // namespace nvila
