// A language model's decoder on a CPU: Qwen2, weights in four or eight bits.
//
// A decode step reads every weight once, and that is all the time it should take; a prompt multiplies, as fast as the
// processor can. One call runs all layers: no operator is looked up, no row is copied, and the threads of a team meet
// five times a layer, of a prompt ten times. Activations are rounded to eight bits in groups of inputs, as the weights'
// products are sums of bytes; all else is float32.
#include <algorithm>
#include <array>
#include <exception>
#include <memory>
#include <string>

#include "attention.h"
#include "call.h"
#include "matrix.h"
#include "team.h"

namespace nvila {

enum MatrixSlot { kQ, kK, kV, kO, kGate, kUp, kDown, kNumMatrices };
enum VectorSlot { kInputNorm, kPostNorm, kBiasQ, kBiasK, kBiasV, kNumVectors };

class Decoder {
 public:
  Decoder(const Spec& spec, int threads) : spec_(spec), team_(threads), layers_(spec.num_layers), attention_(spec, threads), scratch_(threads) {
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
    Buffer<float> row;
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
    const size_t rows = pass.rows, width = spec_.width, widest = std::max(width, mlp_width());
    attention_.reserve(pass);
    grow(hidden_, rows * width);
    grow(inner_, rows * mlp_width());
    if (!pass.is_short) rounded_.reserve(rows, widest, most_groups_);
    for (Scratch& own : scratch_) {
      if (pass.is_short) own.rounded.reserve(rows, widest, most_groups_);
      grow(own.row, width);
    }
  }

  size_t mlp_width() const { return spec_.mlp_width; }
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
    attention_.run(kept, i, rank, {dealer(i, kTurnKeys), dealer(i, kAttend)}, team_);
    if (rank == 0 && kept.kept) {
      for (int row = 0; row < kept.rows; ++row) {
        std::memmove(&hidden_[size_t(row) * spec_.width], &hidden_[size_t(kept.token(row)) * spec_.width],
                     sizeof(float) * spec_.width);
      }
    }
    team_.wait();
    if (!kept.rows) return;
    const Rounded& mixed = round(kept, matrices[kO], own, dealer(i, kRoundMixed), [&](int row) {
      return attention_.mixed(kept, row, own.row.data());
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
      put(tile, matrix, out + add, attention_.qkv(row) + at);
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

  static constexpr int kShortRows = 8;
  static constexpr int kMostRows = 512;  // of a pass: what they need is to stay in the caches
  static constexpr size_t kStretchBytes = size_t{1} << 18, kCacheBytes = 5 << 17;
  static constexpr int kStretchTiles = 8;

  const Spec spec_;
  Team team_;
  std::vector<Layer> layers_;
  Matrix head_;
  Buffer<float> last_norm_;
  Attention attention_;
  std::vector<Scratch> scratch_;
  std::unique_ptr<Dealer[]> dealers_;
  int most_groups_ = 0;
  Rounded rounded_;
  Buffer<float> hidden_, inner_;
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
