// A language model's decoder on a CPU: Qwen2, weights in four or eight bits.
//
// A decode step reads every weight once, and that is all the time it should take; a prompt multiplies, as fast as the
// processor can. One call runs all layers: no operator is looked up, no row is copied, and the threads of a team meet
// five times a layer, of a prompt ten times. Activations are rounded to eight bits in groups of inputs, as the weights'
// products are sums of bytes; all else is float32.
//
// Shapes: L tokens of this call, M rows of the cache after it, R tokens whose logits are wanted, D width, H query
// heads, K key and value heads, S head size, V vocabulary.
#include <algorithm>
#include <array>
#include <exception>
#include <memory>
#include <string>

#include "matrix.h"
#include "team.h"

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

enum MatrixSlot { kQ, kK, kV, kO, kGate, kUp, kDown, kNumMatrices };
enum VectorSlot { kInputNorm, kPostNorm, kBiasQ, kBiasK, kBiasV, kNumVectors };

class Decoder {
 public:
  Decoder(const Spec& spec, int threads) : spec_(spec), team_(threads), layers_(spec.num_layers), scratch_(threads) {
    dealers_ = std::make_unique<Dealer[]>(num_dealers());
  }

  // Layer -1 holds the head and the last norm, in slot 0.
  void set_matrix(int layer, int slot, const GivenMatrix& given) {
    Matrix matrix(given.form);
    Dealer tiles;
    team_.run([&](int) {
      tiles.deal(matrix.num_tiles(), 16, [&](int first, int end) {
        for (int tile = first; tile < end; ++tile) matrix.pack(given, tile);
      });
    });
    most_groups_ = std::max(most_groups_, matrix.num_input_groups());
    (layer < 0 ? head_ : layers_[layer].matrices[slot]) = std::move(matrix);
  }

  void set_vector(int layer, int slot, const float* values, int count) {
    Buffer<float> vector(count);
    std::memcpy(vector.data(), values, sizeof(float) * count);
    (layer < 0 ? last_norm_ : layers_[layer].vectors[slot]) = std::move(vector);
  }

  void run(const Call& call) {
    for (int first = 0; first < call.num_new; first += kMostRows) run_pass(call, first);
  }

 private:
  struct Layer {
    std::array<Matrix, kNumMatrices> matrices;
    std::array<Buffer<float>, kNumVectors> vectors;
  };

  // What a thread has for itself.
  struct Scratch {
    Rounded rounded;
    Buffer<float> row, queries, scores;
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

  // The steps of a layer whose items are dealt out.
  enum Step {
    kRoundNormed, kQuery, kKey, kValue, kTurnKeys, kAttend, kRoundMixed, kOutput, kRoundAgain, kGated, kRoundInner,
    kInner, kNumSteps
  };

  void run_pass(const Call& call, int first) {
    const int rows = std::min(kMostRows, call.num_new - first);
    const int64_t start = call.start + first;
    const bool is_short = rows <= kShortRows;
    kept_.clear();
    wanted_.clear();
    for (int row = 0; row < rows; ++row) {
      for (int j = 0; j < call.num_wanted; ++j) {
        if (call.rows[j] - first == row) kept_.push_back(row), wanted_.push_back(j);
      }
    }
    const int num_kept = int(kept_.size());
    const Pass all{call, first, rows, start, start + rows, nullptr, is_short};
    const Pass kept{call, first, num_kept, start, start + rows, kept_.data(), is_short};
    reserve(all);
    for (int i = 0; i < num_dealers(); ++i) dealers_[i].next.store(0, std::memory_order_relaxed);
    std::memcpy(hidden_.data(), call.embeds + size_t(first) * spec_.width, sizeof(float) * rows * spec_.width);
    team_.run([&](int rank) {
      const int last = spec_.num_layers - 1;
      for (int i = 0; i < last; ++i) run_layer(all, all, i, rank);
      // Behind its keys and values, the last layer has no work for tokens that no one asks about.
      run_layer(all, num_kept < rows ? kept : all, last, rank);
      if (num_kept) run_head(kept, rank);
    });
  }

  void reserve(const Pass& pass) {
    const size_t rows = pass.rows, width = spec_.width, s = spec_.head_size, widest = std::max(width, mlp_width());
    grow(hidden_, rows * width);
    grow(qkv_, rows * qkv_width());
    grow(inner_, rows * mlp_width());
    const size_t num_queries = rows * spec_.num_heads, chunks = pass.is_short ? num_chunks(pass) : 1;
    grow(mixes_, chunks * num_queries * s);
    grow(weights_, chunks * num_queries * 2);
    if (!pass.is_short) {
      rounded_.reserve(rows, widest, most_groups_);
      grow(turned_keys_, pad(pass.num_all) * spec_.num_kv_heads * s);
    }
    const size_t at_once = pass.is_short ? num_queries : size_t(kBlockRows) * spec_.num_heads / spec_.num_kv_heads;
    for (Scratch& own : scratch_) {
      if (pass.is_short) own.rounded.reserve(rows, widest, most_groups_);
      grow(own.row, width);
      grow(own.queries, at_once * s);
      grow(own.scores, at_once * (pass.is_short ? chunk_rows(pass) : pad(pass.num_all)));
    }
  }

  static void grow(Buffer<float>& buffer, size_t count) {
    if (buffer.size() < count) buffer = Buffer<float>(count + count / 4);
  }
  static int64_t pad(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }
  size_t mlp_width() const { return spec_.mlp_width; }
  // A little more, since rows that lie a power of two apart would share the same few places of a cache.
  int qkv_width() const { return (spec_.num_heads + 2 * spec_.num_kv_heads) * spec_.head_size + kLanes; }
  int num_dealers() const { return kNumSteps * (spec_.num_layers + 1); }
  Dealer& dealer(int layer, Step step) { return dealers_[kNumSteps * layer + step]; }

  // Of a pass, or of what is kept of it once its keys and values are in the cache.
  void run_layer(const Pass& all, const Pass& kept, int i, int rank) {
    const Layer& layer = layers_[i];
    const auto& matrices = layer.matrices;
    Scratch& own = scratch_[rank];
    const Rounded& normed = round(all, matrices[kQ], own, dealer(i, kRoundNormed), [&](int row) {
      return norm(&hidden_[size_t(row) * spec_.width], layer.vectors[kInputNorm], own);
    });
    for (int slot = kQ, at = 0; slot <= kV; at += matrices[slot++].num_outputs()) {
      const Buffer<float>& bias = layer.vectors[kBiasQ + slot - kQ];
      join_heads(all, matrices[slot], bias, at, normed, dealer(i, Step(kQuery + slot - kQ)));
    }
    team_.wait();
    if (kept.is_short) {
      attend_short(kept, i, own);
    } else {
      attend(kept, i, own);
    }
    if (rank == 0 && kept.kept) {
      for (int row = 0; row < kept.rows; ++row) {
        std::memmove(&hidden_[size_t(row) * spec_.width], &hidden_[size_t(kept.token(row)) * spec_.width],
                     sizeof(float) * spec_.width);
      }
    }
    team_.wait();
    if (!kept.rows) return;
    const Rounded& mixed = round(kept, matrices[kO], own, dealer(i, kRoundMixed), [&](int row) {
      return kept.is_short ? merge(kept, row, own) : &mixes_[size_t(row) * spec_.width];
    });
    add_product(kept, matrices[kO], mixed, dealer(i, kOutput));
    team_.wait();
    const Rounded& normed_again = round(kept, matrices[kGate], own, dealer(i, kRoundAgain), [&](int row) {
      return norm(&hidden_[size_t(row) * spec_.width], layer.vectors[kPostNorm], own);
    });
    gate(kept, matrices[kGate], matrices[kUp], normed_again, dealer(i, kGated));
    team_.wait();
    const Rounded& inner = round(kept, matrices[kDown], own, dealer(i, kRoundInner), [&](int row) {
      return &inner_[row * mlp_width()];
    });
    add_product(kept, matrices[kDown], inner, dealer(i, kInner));
    team_.wait();
  }

  // The kept rows are the first ones behind the last layer.
  void run_head(const Pass& kept, int rank) {
    Scratch& own = scratch_[rank];
    const int i = spec_.num_layers;
    const Rounded& normed = round(kept, head_, own, dealer(i, kRoundNormed), [&](int row) {
      return norm(&hidden_[size_t(row) * spec_.width], last_norm_, own);
    });
    multiply(kept, head_, normed, dealer(i, kOutput), [&](int tile, int row, F32 x) {
      put(tile, head_, x, kept.call.logits + int64_t(wanted_[row]) * spec_.vocab_size);
    });
  }

  // Rounds the rows that a matrix takes. Short passes are rounded by every thread for itself, others shared out.
  template <class RowOf>
  const Rounded& round(const Pass& pass, const Matrix& next, Scratch& own, Dealer& dealer, RowOf row_of) {
    if (pass.is_short) {
      for (int row = 0; row < pass.rows; ++row) next.round(row_of(row), row, own.rounded);
      return own.rounded;
    }
    dealer.deal(pass.rows, kGroupRows, [&](int first, int end) {
      for (int row = first; row < end; ++row) next.round(row_of(row), row, rounded_);
    });
    team_.wait();
    return rounded_;
  }

  const float* norm(const float* x, const Buffer<float>& weight, Scratch& own) const {
    F32 squares = fill(0.f);
    for (int i = 0; i < spec_.width; i += kLanes) squares += load(x + i) * load(x + i);
    const float share = 1.f / std::sqrt(sum(squares) / spec_.width + spec_.norm_eps);
    for (int i = 0; i < spec_.width; ++i) own.row[i] = x[i] * share * weight[i];
    return own.row.data();
  }

  // Calls `work(first, end)` for the tiles of a product that no other thread has.
  template <class Work>
  void deal_tiles(const Pass& pass, size_t tile_bytes, int count, Dealer& dealer, Work work) {
    // A short pass is as fast as memory, which likes to be read in long stretches; else tiles stay in the caches while
    // all rows pass by.
    const int fit = int((pass.is_short ? kStretchBytes : kCacheBytes) / tile_bytes);
    const int enough = pass.is_short ? fit : std::min(fit, kStretchTiles), fair = count / (4 * team_.size());
    dealer.deal(count, std::max(kMostTiles, std::min(enough, fair) / kMostTiles * kMostTiles), work);
  }

  // Calls `done(tile, row, outputs)` with the products of all rows by the tiles that no other thread has.
  template <class Done>
  void multiply(const Pass& pass, const Matrix& matrix, const Rounded& x, Dealer& dealer, Done done) {
    deal_tiles(pass, matrix.tile_bytes(), matrix.num_tiles(), dealer, [&](int first_tile, int end_tile) {
      for (int first = 0; first < pass.rows; first += kGroupRows) {
        const int rows = std::min(kGroupRows, pass.rows - first);
        int tile = first_tile;
        for (; tile + kMostTiles <= end_tile; tile += kMostTiles) {
          Matrix::Tile tiles[kMostTiles];
          F32 out[kMostTiles][kGroupRows];
          for (int t = 0; t < kMostTiles; ++t) tiles[t] = matrix.tile(tile + t);
          matrix.multiply(tiles, x, first, rows, out);
          for (int t = 0; t < kMostTiles; ++t) {
            for (int row = 0; row < rows; ++row) done(tile + t, first + row, out[t][row]);
          }
        }
        for (; tile < end_tile; ++tile) {
          const Matrix::Tile tiles[1] = {matrix.tile(tile)};
          F32 out[1][kGroupRows];
          matrix.multiply(tiles, x, first, rows, out);
          for (int row = 0; row < rows; ++row) done(tile, first + row, out[0][row]);
        }
      }
    });
  }

  // Writes what a tile gave, of whose outputs the last may be none.
  static void put(int tile, const Matrix& matrix, F32 x, float* to) {
    const int first = tile * kLanes, count = matrix.num_outputs() - first;
    if (count >= kLanes) return store(to + first, x);
    for (int lane = 0; lane < count; ++lane) to[first + lane] = x[lane];
  }

  // Queries, keys and values of the new tokens, side by side in `qkv_`.
  void join_heads(const Pass& pass, const Matrix& matrix, const Buffer<float>& bias, int at, const Rounded& x,
                  Dealer& dealer) {
    multiply(pass, matrix, x, dealer, [&](int tile, int row, F32 out) {
      const F32 add = bias.size() ? load(&bias[size_t(tile) * kLanes]) : fill(0.f);
      put(tile, matrix, out + add, &qkv_[size_t(row) * qkv_width() + at]);
    });
  }

  void add_product(const Pass& pass, const Matrix& matrix, const Rounded& x, Dealer& dealer) {
    multiply(pass, matrix, x, dealer, [&](int tile, int row, F32 out) {
      float* to = &hidden_[size_t(row) * spec_.width + tile * kLanes];
      store(to, load(to) + out);
    });
  }

  void gate(const Pass& pass, const Matrix& gate, const Matrix& up, const Rounded& x, Dealer& dealer) {
    deal_tiles(pass, 2 * gate.tile_bytes(), gate.num_tiles(), dealer, [&](int first_tile, int end_tile) {
      for (int first = 0; first < pass.rows; first += kGroupRows) {
        const int rows = std::min(kGroupRows, pass.rows - first);
        for (int tile = first_tile; tile < end_tile; ++tile) {
          F32 out[2][kGroupRows];
          if constexpr (kMostTiles == 2) {
            const Matrix::Tile tiles[2] = {gate.tile(tile), up.tile(tile)};
            gate.multiply(tiles, x, first, rows, out);
          } else {
            const Matrix::Tile gates[1] = {gate.tile(tile)}, ups[1] = {up.tile(tile)};
            gate.multiply(gates, x, first, rows, out);
            up.multiply(ups, x, first, rows, out + 1);
          }
          for (int row = 0; row < rows; ++row) {
            const F32 open = out[0][row] / (exp(-out[0][row]) + 1.f);
            store(&inner_[(first + row) * mlp_width() + tile * kLanes], open * out[1][row]);
          }
        }
      }
    });
  }

  // Puts the keys and values of new tokens into the cache, of the rows [first, end) those that are new.
  void append(const Pass& pass, int i, int64_t first, int64_t end) {
    const int s = spec_.head_size, num_kv = spec_.num_kv_heads;
    const int64_t step = int64_t(num_kv) * s;
    float* keys = pass.call.cache + 2 * i * pass.call.stride;
    for (int64_t m = std::max(first, pass.start); m < end; ++m) {
      const int row = int(m - pass.start);
      const float* from = &qkv_[size_t(row) * qkv_width() + spec_.num_heads * s];
      for (int kv = 0; kv < num_kv; ++kv) rotate(pass, row, from + kv * s, 1.f, keys + m * step + kv * s);
      std::memcpy(keys + pass.call.stride + m * step, from + step, sizeof(float) * step);
    }
  }

  void rotate_query(const Pass& pass, int row, int head, float* to) const {
    const int s = spec_.head_size, token = pass.token(row);
    rotate(pass, token, &qkv_[size_t(token) * qkv_width() + head * s], 1.f / std::sqrt(float(s)), to);
  }

  // Long passes: all keys are turned, so that sixteen of them lie side by side, and shared by blocks of rows.
  void attend(const Pass& pass, int i, Scratch& own) {
    const int s = spec_.head_size, num_kv = spec_.num_kv_heads;
    const int64_t num_all = pass.num_all, step = int64_t(num_kv) * s, head_keys = pad(num_all) * s;
    const float* keys = pass.call.cache + 2 * i * pass.call.stride;
    dealer(i, kTurnKeys).deal(int(pad(num_all) / kLanes), 1, [&](int chunk, int) {
      const int64_t first = int64_t(chunk) * kLanes, end = std::min(first + kLanes, num_all);
      append(pass, i, first, end);
      for (int kv = 0; kv < num_kv; ++kv) {
        float* to = &turned_keys_[kv * head_keys + first * s];
        for (int64_t m = first; m < first + kLanes; ++m) {
          const float* key = keys + std::min(m, end - 1) * step + kv * s;
          for (int j = 0; j < s; ++j) to[j * kLanes + m - first] = key[j];
        }
      }
    });
    team_.wait();
    const int blocks = (pass.rows + kBlockRows - 1) / kBlockRows;
    dealer(i, kAttend).deal(blocks * num_kv, 1, [&](int item, int) {
      const int kv = item % num_kv, first = (blocks - 1 - item / num_kv) * kBlockRows;  // the longest ones first
      attend_block(pass, own, kv, first, std::min(kBlockRows, pass.rows - first), keys + pass.call.stride);
    });
  }

  void attend_block(const Pass& pass, Scratch& own, int kv, int first, int rows, const float* values) {
    const int s = spec_.head_size, num_kv = spec_.num_kv_heads, per_kv = spec_.num_heads / num_kv;
    const int64_t step = int64_t(num_kv) * s, end = pass.start + pass.token(first + rows - 1) + 1, width = pad(end);
    const float* keys = &turned_keys_[kv * pad(pass.num_all) * s];
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
    float weights[kBlockRows * kMostPerKv][2];
    for (int c = 0; c < num_queries; ++c) {
      exponentiate(&own.scores[c * width], pass.mask(first + c / per_kv), end, weights[c]);
    }
    for (int i = 0; i < s; i += kLanes) {
      for (int c = 0; c < num_queries; c += kAtOnce) {
        const int count = std::min(kAtOnce, num_queries - c);
        F32 mixes[kAtOnce];
        add_up<kAtOnce>(count, &own.scores[c * width], width, values + kv * s + i, step, end,
                        reinterpret_cast<float*>(mixes), kLanes);
        for (int j = 0; j < count; ++j) {
          const int row = first + (c + j) / per_kv, head = kv * per_kv + (c + j) % per_kv;
          store(&mixes_[size_t(row) * spec_.width + head * s + i], mixes[j] * (1.f / weights[c + j][1]));
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
    for (F32& each : total) each = fill(0.f);
    for (int64_t k = 0; k < length; ++k) {
      const F32 sixteen = load(y + k * y_step);
      for (int j = 0; j < kCount; ++j) total[j] += sixteen * x[j * x_step + k];
    }
    for (int j = 0; j < kCount; ++j) store(to + j * to_step, total[j]);
  }

  // Rows of the cache that one thread of a short pass attends to at a time, for all heads: memory is read in the order
  // of its bytes.
  static int64_t chunk_rows(const Pass& pass) {
    return std::max<int64_t>(kLeastChunk, pad((pass.num_all + kMostChunks - 1) / kMostChunks));
  }
  static int num_chunks(const Pass& pass) {
    return int((pass.num_all + chunk_rows(pass) - 1) / chunk_rows(pass));
  }

  // Each chunk's shares are of itself alone; `merge` weighs the chunks.
  void attend_short(const Pass& pass, int i, Scratch& own) {
    for (int head = 0; head < spec_.num_heads; ++head) {
      for (int row = 0; row < pass.rows; ++row) {
        rotate_query(pass, row, head, &own.queries[(head * pass.rows + row) * spec_.head_size]);
      }
    }
    const int64_t size = chunk_rows(pass);
    dealer(i, kAttend).deal(num_chunks(pass), 1, [&](int chunk, int) {
      const int64_t first = chunk * size, end = std::min(first + size, pass.num_all);
      append(pass, i, first, end);
      if (pass.rows) attend_chunk(pass, i, own, chunk, first, end);
    });
  }

  void attend_chunk(const Pass& pass, int i, Scratch& own, int chunk, int64_t first, int64_t end) {
    const int s = spec_.head_size, num_kv = spec_.num_kv_heads, per_kv = spec_.num_heads / num_kv;
    const int64_t step = int64_t(num_kv) * s, count = end - first, width = pad(count);
    const float* keys = pass.call.cache + 2 * i * pass.call.stride + first * step;
    const float* values = keys + pass.call.stride;
    const int num_queries = per_kv * pass.rows;  // that share a key and value head
    // Both streams are asked for a few lines at a time: the processor waits where too many are under way.
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
    float* weights = &weights_[size_t(chunk) * 2 * pass.rows * spec_.num_heads];
    for (int of = 0; of < pass.rows * spec_.num_heads; ++of) {
      exponentiate(&own.scores[of * width], pass.mask(of % pass.rows) + first, count, weights + 2 * of);
    }
    float* mixes = &mixes_[size_t(chunk) * pass.rows * spec_.num_heads * s];
    for (int kv = 0; kv < num_kv; ++kv) {
      for (int j = 0; j < s; j += kLanes) {
        for (int c = 0; c < num_queries; c += kAtOnce) {
          const int of = kv * num_queries + c;
          add_up<kAtOnce>(std::min(kAtOnce, num_queries - c), &own.scores[of * width], width, values + kv * s + j, step,
                          count, mixes + of * s + j, s);
        }
      }
    }
  }

  // What all heads of a token have attended to, (H, S).
  const float* merge(const Pass& pass, int row, Scratch& own) const {
    const int s = spec_.head_size, chunks = num_chunks(pass);
    const size_t stride = size_t(pass.rows) * spec_.num_heads;
    float* to = own.row.data();
    for (int head = 0; head < spec_.num_heads; ++head, to += s) {
      const size_t of = head * pass.rows + row;
      float top = kHidden, total = 0;
      for (int c = 0; c < chunks; ++c) top = std::max(top, weights_[2 * (c * stride + of)]);
      std::memset(to, 0, sizeof(float) * s);
      for (int c = 0; c < chunks; ++c) {
        const float weight = std::exp(weights_[2 * (c * stride + of)] - top);
        total += weight * weights_[2 * (c * stride + of) + 1];
        const float* mix = &mixes_[(c * stride + of) * s];
        for (int i = 0; i < s; ++i) to[i] += weight * mix[i];
      }
      for (int i = 0; i < s; ++i) to[i] /= total;
    }
    return own.row.data();
  }

  // Rotary positions; channel i pairs with i + S / 2.
  void rotate(const Pass& pass, int token, const float* x, float scale, float* to) const {
    const int s = spec_.head_size, half = s / 2;
    const float *cos = pass.call.cos + (pass.first + token) * s, *sin = pass.call.sin + (pass.first + token) * s;
    for (int i = 0; i < half; ++i) {
      to[i] = (x[i] * cos[i] - x[i + half] * sin[i]) * scale;
      to[i + half] = (x[i + half] * cos[i + half] + x[i] * sin[i + half]) * scale;
    }
  }

  static void score_four(const float* q, const float* const* keys, int s, float* to) {
    F32 total[4];
    for (F32& each : total) each = fill(0.f);
    for (int i = 0; i < s; i += kLanes) {
      const F32 x = load(q + i);
      for (int j = 0; j < 4; ++j) total[j] += x * load(keys[j] + i);
    }
    for (int j = 0; j < 4; ++j) to[j] = sum(total[j]);
  }

  // Turns scores into e^(score - largest); `weight` is told the largest and their sum.
  static void exponentiate(float* scores, const float* mask, int64_t count, float* weight) {
    F32 most = fill(kHidden);
    int64_t m = 0;
    for (; m + kLanes <= count; m += kLanes) {
      const F32 x = load(scores + m) + load(mask + m);
      store(scores + m, x);
      most = larger(most, x);
    }
    float top = largest(most);
    for (int64_t rest = m; rest < count; ++rest) top = std::max(top, scores[rest] += mask[rest]);
    for (int64_t rest = count; rest < pad(count); ++rest) scores[rest] = kHidden;
    F32 total = fill(0.f);
    for (m = 0; m < count; m += kLanes) {
      const F32 x = exp(load(scores + m) - top);
      store(scores + m, x);
      total += x;
    }
    weight[0] = top, weight[1] = sum(total);
  }

  static constexpr int kShortRows = 8;
  static constexpr int kMostRows = 512;  // of a pass: what they need is to stay in the caches
  static constexpr int kBlockRows = 8, kMostPerKv = 64;
  static constexpr int kAtOnce = kMostSums >= 16 ? 12 : 4;
  static constexpr size_t kStretchBytes = size_t{1} << 18, kCacheBytes = 5 << 17;
  static constexpr int kStretchTiles = 8;
  static constexpr int kRowsAhead = 16, kLeastChunk = 64, kMostChunks = 32;
  static constexpr float kHidden = -1e30f;

  const Spec spec_;
  Team team_;
  std::vector<Layer> layers_;
  Matrix head_;
  Buffer<float> last_norm_;
  std::vector<Scratch> scratch_;
  std::unique_ptr<Dealer[]> dealers_;
  int most_groups_ = 0;
  Rounded rounded_;
  Buffer<float> hidden_, qkv_, turned_keys_, mixes_, weights_, inner_;
  std::vector<int> kept_, wanted_;  // tokens of a pass whose logits are wanted, and where those belong
};

}  // namespace nvila

namespace {

thread_local std::string last_error;

template <class Work>
int guard(Work work) {
  try {
    work();
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
    return 1;
  }
}

nvila::Decoder* cast(void* decoder) { return static_cast<nvila::Decoder*>(decoder); }

}  // namespace

// All else is hidden: several of these libraries may be loaded at once, each with vectors of its own.
#pragma GCC visibility push(default)
extern "C" {

const char* nvila_isa() { return nvila::kIsa; }
// Of what crosses the library's edge, so that a caller of another version is found out.
int64_t nvila_layout() {
  return int64_t{sizeof(nvila::Spec)} << 20 | sizeof(nvila::GivenMatrix) << 10 | sizeof(nvila::Call);
}
const char* nvila_last_error() { return last_error.c_str(); }

int nvila_decoder_new(const nvila::Spec* spec, int32_t threads, void** to) {
  return guard([&] { *to = new nvila::Decoder(*spec, threads); });
}
void nvila_decoder_delete(void* decoder) { delete cast(decoder); }
int nvila_decoder_set_matrix(void* decoder, int32_t layer, int32_t slot, const nvila::GivenMatrix* matrix) {
  return guard([&] { cast(decoder)->set_matrix(layer, slot, *matrix); });
}
int nvila_decoder_set_vector(void* decoder, int32_t layer, int32_t slot, const float* values, int32_t count) {
  return guard([&] { cast(decoder)->set_vector(layer, slot, values, count); });
}
int nvila_decoder_run(void* decoder, const nvila::Call* call) {
  return guard([&] { cast(decoder)->run(*call); });
}

}
#pragma GCC visibility pop
