// A call is computed in passes of at most some hundred tokens, whose intermediate values stay in the caches.
#pragma once

#include <cstdint>

#include "api.h"
#include "lanes.h"

namespace nvila {

// The tokens of a pass, or, of its last layer, those of them whose logits are wanted.
struct Pass {
  const Call& call;
  int first, rows;         // the pass's first token in the call; how many rows of activations there are
  int64_t start, num_all;  // rows of the cache before the pass, and with all of its tokens
  const int* kept;         // the token of each row, or null where row i is token i
  bool is_short;           // few rows: a thread repeats what takes less time than a barrier

  int token(int row) const { return kept ? kept[row] : row; }
  const float* mask(int row) const {
    return call.mask.data + (first + token(row)) * (call.start + call.num_new);
  }
};

// Rounds a count up to whole vectors.
inline int64_t pad(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

}  // namespace nvila
