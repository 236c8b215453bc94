// A language model's decoder for calls of few tokens, most of them decode steps: Qwen2, weights in four or eight bits.
//
// A step reads every weight once, and that is all the time it should take. One call runs the whole step: no operator
// is looked up, no row is copied, and the threads of a team meet five times a layer, spinning. Activations are rounded
// to eight bits in groups of inputs, as the weights' products are sums of bytes; all else is float32.
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
  Decoder(const Spec& spec, int threads) : spec_(spec), team_(threads), layers_(spec.num_layers), own_(threads) {
    dealers_ = std::make_unique<Dealer[]>(5 * spec.num_layers + 1);
  }

  // Layer -1 holds the head and the last norm, in slot 0.
  void set_matrix(int layer, int slot, const GivenMatrix& given) {
    Matrix matrix(given);
    Dealer tiles;
    team_.run([&](int) {
      tiles.deal(matrix.num_tiles(), 16, [&](int first, int end) {
        for (int tile = first; tile < end; ++tile) matrix.pack(tile);
      });
    });
    matrix.forget_source();
    (layer < 0 ? head_ : layers_[layer].matrices[slot]) = std::move(matrix);
  }

  void set_vector(int layer, int slot, const float* values, int count) {
    Buffer<float> vector(count);
    std::memcpy(vector.data(), values, sizeof(float) * count);
    (layer < 0 ? last_norm_ : layers_[layer].vectors[slot]) = std::move(vector);
  }

  void run(const Call& call) {
    for (int first = 0; first < call.num_new; first += kMostRows) run_rows(call, first);
  }

 private:
  struct Layer {
    std::array<Matrix, kNumMatrices> matrices;
    std::array<Buffer<float>, kNumVectors> vectors;
  };

  // What a thread has for itself.
  struct Own {
    Rounded rounded;
    Buffer<float> normed, queries, scores;

    // Queries lie by head, so that those of one key and value head follow one another.
    float* query(const Spec& spec, int head, int row, int rows) const {
      return &queries[size_t(head * rows + row) * spec.head_size];
    }
  };

  // Up to kMostRows tokens of a call.
  struct Part {
    const Call& call;
    int first, rows;
    int64_t start;  // rows of the cache before
    int64_t num_all() const { return start + rows; }
    int64_t mask_width() const { return call.start + call.num_new; }
  };

  void run_rows(const Call& call, int first) {
    const int rows = std::min(kMostRows, call.num_new - first);
    const Part part{call, first, rows, call.start + first};
    reserve(part);
    for (int i = 0; i < 5 * spec_.num_layers + 1; ++i) dealers_[i].next.store(0, std::memory_order_relaxed);
    std::memcpy(hidden_.data(), call.embeds + size_t(first) * spec_.width, sizeof(float) * rows * spec_.width);
    team_.run([&](int rank) {
      for (int i = 0; i < spec_.num_layers; ++i) run_layer(part, i, own_[rank]);
      run_head(part, own_[rank]);
    });
  }

  void reserve(const Part& part) {
    const int heads = spec_.num_heads + 2 * spec_.num_kv_heads;
    grow(hidden_, part.rows * spec_.width);
    grow(joined_, part.rows * heads * spec_.head_size);
    grow(inner_, part.rows * spec_.mlp_width);
    const size_t combos = size_t(part.rows) * spec_.num_heads;
    grow(mixes_, num_chunks(part) * combos * spec_.head_size);
    grow(weights_, num_chunks(part) * combos * 2);
    const int widest = std::max(spec_.width, spec_.mlp_width);
    for (Own& own : own_) {
      own.rounded.reserve(part.rows, widest, widest / 4);
      grow(own.normed, spec_.width);
      grow(own.queries, combos * spec_.head_size);
      grow(own.scores, combos * chunk_rows(part));
    }
  }

  static void grow(Buffer<float>& buffer, size_t count) {
    if (buffer.size() < count) buffer = Buffer<float>(count + count / 4);
  }

  void run_layer(const Part& part, int i, Own& own) {
    const Layer& layer = layers_[i];
    Dealer* dealers = &dealers_[5 * i];
    round_normed(part, own, layer.vectors[kInputNorm], layer.matrices[kQ]);
    join_heads(part, layer, own, dealers[0]);
    team_.wait();
    attend(part, i, own, dealers[1]);
    team_.wait();
    round_merged(part, own, layer.matrices[kO]);
    add_product(part, layer.matrices[kO], own, dealers[2]);
    team_.wait();
    round_normed(part, own, layer.vectors[kPostNorm], layer.matrices[kGate]);
    gate(part, layer, own, dealers[3]);
    team_.wait();
    round_rows(part, own, inner_.data(), layer.matrices[kDown]);
    add_product(part, layer.matrices[kDown], own, dealers[4]);
    team_.wait();
  }

  void run_head(const Part& part, Own& own) {
    // Of this part's tokens only those that are wanted, and where their logits belong.
    const Call& call = part.call;
    float* to[kMostRows];
    int count = 0;
    own.rounded.reserve(part.rows, head_.num_inputs(), head_.num_input_groups());
    for (int wanted = 0; wanted < call.num_wanted; ++wanted) {
      const int64_t row = call.rows[wanted] - part.first;
      if (row < 0 || row >= part.rows) continue;
      norm(&hidden_[row * spec_.width], last_norm_.data(), own.normed.data());
      own.rounded.round(count, own.normed.data(), head_.input_scale());
      to[count++] = call.logits + int64_t(wanted) * spec_.vocab_size;
    }
    if (!count) return;
    deal_tiles(head_, head_.num_tiles(), dealers_[5 * spec_.num_layers], [&](int tile) {
      F32 out[kMostRows];
      head_.multiply(tile, own.rounded, 0, count, out);
      for (int j = 0; j < count; ++j) put(tile, head_, out[j], to[j]);
    });
  }

  // Every thread rounds all rows for itself: it takes less than to wait for one that does.
  void round_normed(const Part& part, Own& own, const Buffer<float>& weight, const Matrix& next) {
    own.rounded.reserve(part.rows, next.num_inputs(), next.num_input_groups());
    for (int row = 0; row < part.rows; ++row) {
      norm(&hidden_[size_t(row) * spec_.width], weight.data(), own.normed.data());
      own.rounded.round(row, own.normed.data(), next.input_scale());
    }
  }

  void round_rows(const Part& part, Own& own, const float* x, const Matrix& next) {
    own.rounded.reserve(part.rows, next.num_inputs(), next.num_input_groups());
    for (int row = 0; row < part.rows; ++row) {
      own.rounded.round(row, x + size_t(row) * next.num_inputs(), next.input_scale());
    }
  }

  void round_merged(const Part& part, Own& own, const Matrix& next) {
    own.rounded.reserve(part.rows, next.num_inputs(), next.num_input_groups());
    for (int row = 0; row < part.rows; ++row) {
      merge(part, row, own.normed.data());
      own.rounded.round(row, own.normed.data(), next.input_scale());
    }
  }

  void norm(const float* x, const float* weight, float* to) const {
    F32 squares{};
    for (int i = 0; i < spec_.width; i += kLanes) squares += load(x + i) * load(x + i);
    const float share = 1.f / std::sqrt(sum(squares) / spec_.width + spec_.norm_eps);
    for (int i = 0; i < spec_.width; ++i) to[i] = x[i] * share * weight[i];
  }

  // Calls `work(tile)` for the tiles of a product that no other thread has.
  template <class Work>
  void deal_tiles(const Matrix& matrix, int count, Dealer& dealer, Work work) {
    const int enough = int(kStretchBytes / matrix.tile_bytes()), fair = count / (4 * team_.size());
    const int stretch = std::max(1, std::min(enough, fair));
    dealer.deal(count, stretch, [&](int first, int end) {
      for (int tile = first; tile < end; ++tile) work(tile);
    });
  }

  // Writes what a tile gave, of whose outputs the last may be none.
  static void put(int tile, const Matrix& matrix, F32 x, float* to) {
    const int first = tile * kLanes, count = matrix.num_outputs - first;
    if (count >= kLanes) return store(to + first, x);
    for (int lane = 0; lane < count; ++lane) to[first + lane] = x[lane];
  }

  // Queries, keys and values of the new tokens, side by side in `joined_`.
  void join_heads(const Part& part, const Layer& layer, const Own& own, Dealer& dealer) {
    int count = 0;
    for (int slot : {kQ, kK, kV}) count += layer.matrices[slot].num_tiles();
    deal_tiles(layer.matrices[kQ], count, dealer, [&](int tile) {
      int slot = kQ, at = 0;
      while (tile >= layer.matrices[slot].num_tiles()) {
        at += layer.matrices[slot].num_outputs;
        tile -= layer.matrices[slot++].num_tiles();
      }
      const Matrix& matrix = layer.matrices[slot];
      const Buffer<float>& bias = layer.vectors[kBiasQ + slot - kQ];
      F32 out[kMostRows];
      matrix.multiply(tile, own.rounded, 0, part.rows, out);
      const F32 add = bias.size() ? load(&bias[size_t(tile) * kLanes]) : F32{};
      for (int row = 0; row < part.rows; ++row) put(tile, matrix, out[row] + add, &joined_[row * joined_width() + at]);
    });
  }

  int joined_width() const { return (spec_.num_heads + 2 * spec_.num_kv_heads) * spec_.head_size; }

  void add_product(const Part& part, const Matrix& matrix, const Own& own, Dealer& dealer) {
    deal_tiles(matrix, matrix.num_tiles(), dealer, [&](int tile) {
      F32 out[kMostRows];
      matrix.multiply(tile, own.rounded, 0, part.rows, out);
      for (int row = 0; row < part.rows; ++row) {
        float* to = &hidden_[size_t(row) * spec_.width + tile * kLanes];
        store(to, load(to) + out[row]);
      }
    });
  }

  void gate(const Part& part, const Layer& layer, const Own& own, Dealer& dealer) {
    const Matrix &gate = layer.matrices[kGate], &up = layer.matrices[kUp];
    deal_tiles(gate, gate.num_tiles(), dealer, [&](int tile) {
      F32 gates[kMostRows], ups[kMostRows];
      gate.multiply(tile, own.rounded, 0, part.rows, gates);
      up.multiply(tile, own.rounded, 0, part.rows, ups);
      for (int row = 0; row < part.rows; ++row) {
        float* to = &inner_[size_t(row) * spec_.mlp_width + tile * kLanes];
        store(to, gates[row] / (exp(-gates[row]) + 1.f) * ups[row]);
      }
    });
  }

  // Rows of the cache that one thread attends to at a time, for all heads: memory is read in the order of its bytes.
  static int64_t chunk_rows(const Part& part) {
    const int64_t even = (part.num_all() + kMostChunks - 1) / kMostChunks;
    return std::max<int64_t>(kLeastChunk, (even + kLanes - 1) / kLanes * kLanes);
  }

  static int num_chunks(const Part& part) { return int((part.num_all() + chunk_rows(part) - 1) / chunk_rows(part)); }

  // Each chunk's shares are of itself alone; `merge` weighs the chunks.
  void attend(const Part& part, int i, Own& own, Dealer& dealer) {
    const int s = spec_.head_size;
    const float scale = 1.f / std::sqrt(float(s));
    for (int row = 0; row < part.rows; ++row) {
      for (int head = 0; head < spec_.num_heads; ++head) {
        rotate(part, row, &joined_[row * joined_width() + head * s], scale, own.query(spec_, head, row, part.rows));
      }
    }
    const int64_t size = chunk_rows(part);
    dealer.deal(num_chunks(part), 1, [&](int chunk, int) {
      attend_chunk(part, i, own, chunk, chunk * size, std::min((chunk + 1) * size, part.num_all()));
    });
  }

  void attend_chunk(const Part& part, int i, Own& own, int chunk, int64_t first, int64_t end) {
    const int s = spec_.head_size, num_kv = spec_.num_kv_heads, per_kv = spec_.num_heads / num_kv;
    const int64_t step = int64_t(num_kv) * s, count = end - first, width = (count + kLanes - 1) / kLanes * kLanes;
    float* keys = part.call.cache + 2 * i * part.call.stride + first * step;
    float* values = keys + part.call.stride;
    for (int64_t m = std::max(first, part.start); m < end; ++m) {
      const int row = int(m - part.start);
      const float* from = &joined_[row * joined_width() + spec_.num_heads * s];
      for (int kv = 0; kv < num_kv; ++kv) rotate(part, row, from + kv * s, 1.f, keys + (m - first) * step + kv * s);
      std::memcpy(values + (m - first) * step, from + step, sizeof(float) * step);
    }
    const int combos = per_kv * part.rows;  // that share a key and value head
    // Both streams are asked for a few lines at a time: the processor waits where too many are under way.
    const int64_t lines = (4 * step * 4 / 64 + spec_.num_heads * part.rows - 1) / (spec_.num_heads * part.rows);
    for (int64_t m = 0; m < count; m += 4) {
      const char* next_keys = reinterpret_cast<const char*>(keys + (m + kRowsAhead) * step);
      const char* next_values = reinterpret_cast<const char*>(values + m * step);
      for (int kv = 0; kv < num_kv; ++kv) {
        const float* at[4];
        for (int j = 0; j < 4; ++j) at[j] = keys + std::min(m + j, count - 1) * step + kv * s;
        for (int c = 0; c < combos; ++c) {
          for (int64_t line = 0; line < lines; ++line, next_keys += 64, next_values += 64) {
            __builtin_prefetch(next_keys, 0, 2);
            __builtin_prefetch(next_values, 0, 2);
          }
          const int of = kv * combos + c;
          score_four(&own.queries[of * s], at, s, &own.scores[of * width + m]);
        }
      }
    }
    float* weights = &weights_[size_t(chunk) * 2 * part.rows * spec_.num_heads];
    for (int head = 0; head < spec_.num_heads; ++head) {
      for (int row = 0; row < part.rows; ++row) {
        const float* mask = part.call.mask + (part.first + row) * part.mask_width() + first;
        const int of = head * part.rows + row;
        soften(&own.scores[of * width], mask, count, weights + 2 * of);
      }
    }
    float* mixes = &mixes_[size_t(chunk) * part.rows * spec_.num_heads * s];
    for (int kv = 0; kv < num_kv; ++kv) {
      for (int c = 0; c < combos; c += kMixed) {
        const int of = kv * combos + c;
        const int heads = std::min(kMixed, combos - c);
        mix(&own.scores[of * width], width, heads, values + kv * s, step, count, s, mixes + of * s);
      }
    }
  }

  // What all heads of a token have attended to, (H, S).
  void merge(const Part& part, int row, float* to) const {
    const int s = spec_.head_size, chunks = num_chunks(part);
    const size_t stride = size_t(part.rows) * spec_.num_heads;
    for (int head = 0; head < spec_.num_heads; ++head) {
      const size_t of = head * part.rows + row;
      float top = kHidden, total = 0;
      for (int c = 0; c < chunks; ++c) top = std::max(top, weights_[2 * (c * stride + of)]);
      std::memset(to + head * s, 0, sizeof(float) * s);
      for (int c = 0; c < chunks; ++c) {
        const float weight = std::exp(weights_[2 * (c * stride + of)] - top);
        total += weight * weights_[2 * (c * stride + of) + 1];
        const float* mix = &mixes_[(c * stride + of) * s];
        for (int i = 0; i < s; ++i) to[head * s + i] += weight * mix[i];
      }
      for (int i = 0; i < s; ++i) to[head * s + i] /= total;
    }
  }

  // Rotary positions; channel i pairs with i + S / 2.
  void rotate(const Part& part, int row, const float* x, float scale, float* to) const {
    const int s = spec_.head_size, half = s / 2;
    const float *cos = part.call.cos + (part.first + row) * s, *sin = part.call.sin + (part.first + row) * s;
    for (int i = 0; i < half; ++i) {
      to[i] = (x[i] * cos[i] - x[i + half] * sin[i]) * scale;
      to[i + half] = (x[i + half] * cos[i + half] + x[i] * sin[i + half]) * scale;
    }
  }

  static void score_four(const float* q, const float* const* keys, int s, float* to) {
    F32 a{}, b{}, c{}, d{};
    for (int i = 0; i < s; i += kLanes) {
      const F32 x = load(q + i);
      a += x * load(keys[0] + i);
      b += x * load(keys[1] + i);
      c += x * load(keys[2] + i);
      d += x * load(keys[3] + i);
    }
    to[0] = sum(a), to[1] = sum(b), to[2] = sum(c), to[3] = sum(d);
  }

  // Turns scores into e^(score - largest); `weight` is told the largest and their sum.
  static void soften(float* scores, const float* mask, int64_t count, float* weight) {
    const int64_t width = (count + kLanes - 1) / kLanes * kLanes;
    F32 most = fill(kHidden);
    int64_t m = 0;
    for (; m + kLanes <= count; m += kLanes) {
      const F32 x = load(scores + m) + load(mask + m);
      store(scores + m, x);
      most = larger(most, x);
    }
    float top = largest(most);
    for (; m < count; ++m) top = std::max(top, scores[m] += mask[m]);
    for (; m < width; ++m) scores[m] = kHidden;
    F32 total{};
    for (m = 0; m < width; m += kLanes) {
      const F32 x = load(scores + m) - top;
      const F32 y = x > fill(kFaint) ? exp(x) : F32{};
      store(scores + m, y);
      total += y;
    }
    weight[0] = top, weight[1] = sum(total);
  }

  // Adds up rows of values by the shares of up to kMixed heads, whose sums stay in registers.
  static void mix(const float* shares, int64_t width, int heads, const float* values, int64_t step, int64_t count,
                  int s, float* to) {
    const float* of[kMixed];  // a head that is none repeats the last
    for (int h = 0; h < kMixed; ++h) of[h] = shares + std::min(h, heads - 1) * width;
    for (int i = 0; i < s; i += kLanes) {
      F32 total[kMixed]{};
      for (int64_t m = 0; m < count; ++m) {
        const F32 value = load(values + m * step + i);
        for (int h = 0; h < kMixed; ++h) total[h] += value * of[h][m];
      }
      for (int h = 0; h < heads; ++h) store(to + h * s + i, total[h]);
    }
  }

  static constexpr size_t kStretchBytes = size_t{1} << 18;
  static constexpr int kRowsAhead = 16;
  static constexpr int kLeastChunk = 64, kMostChunks = 32;
  static constexpr int kMixed = 6;
  static constexpr float kHidden = -1e30f, kFaint = -80.f;

  const Spec spec_;
  Team team_;
  std::vector<Layer> layers_;
  Matrix head_;
  Buffer<float> last_norm_;
  std::vector<Own> own_;
  std::unique_ptr<Dealer[]> dealers_;
  Buffer<float> hidden_, joined_, mixes_, weights_, inner_;
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

extern "C" {

const char* nvila_isa() { return nvila::kIsa; }
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
