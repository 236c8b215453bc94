// A language model's decoder on a CPU: Qwen2, weights in four or eight bits.
//
// A decode step is bound by memory, since it reads every weight once; a prompt is bound by arithmetic. One call runs all
// layers: no operator is looked up, no row is copied, and the threads meet at five barriers a layer, of a prompt at ten.
// Activations are quantized to eight bits in groups of inputs, since products are sums of bytes; all else is float32.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "api.h"
#include "attention.h"
#include "buffer.h"
#include "checks.h"
#include "matrix.h"
#include "pass.h"
#include "thread_team.h"
#include "tile_product.h"

namespace nvila {

class Decoder {
 public:
  // `spec` and `threads` are checked already.
  Decoder(const Spec& spec, int threads)
      : spec_(spec),
        team_(threads),
        layers_(spec.num_layers),
        attention_(spec, threads),
        scratch_(threads),
        queues_(std::make_unique<WorkQueue[]>(num_queues())) {}

  void set_matrix(int layer, int slot, const MatrixView& view) {
    check_matrix(spec_, layer, slot, view);
    Matrix matrix(view.form);
    WorkQueue tiles;
    team_.run([&](int) {
      tiles.parallel_for(matrix.num_tiles(), 16, [&](int first, int end) {
        for (int tile = first; tile < end; ++tile) matrix.pack(view, tile);
      });
    });
    max_groups_ = std::max(max_groups_, matrix.num_input_groups());
    (layer == kHeadLayer ? head_ : layers_[layer].matrices[slot]) = std::move(matrix);
    is_complete_ = false;
  }

  void set_vector(int layer, int slot, Span<const float> values) {
    check_vector(spec_, layer, slot, values);
    Buffer<float> vector(values.size);
    std::memcpy(vector.data(), values.data, sizeof(float) * values.size);
    (layer == kHeadLayer ? last_norm_ : layers_[layer].vectors[slot]) = std::move(vector);
  }

  void run(const Call& call) {
    check_call(spec_, call);
    if (!is_complete_) check_complete();
    is_complete_ = true;
    for (int first = 0; first < call.num_new; first += kMaxRows) run_pass(call, first);
  }

 private:
  struct Layer {
    std::array<Matrix, kNumMatrices> matrices;
    std::array<Buffer<float>, kNumVectors> vectors;
  };

  // Of one thread.
  struct Scratch {
    QuantizedRows quantized;
    Buffer<float> row;
    TileProduct tile_product;
  };

  // The steps of a layer that the threads share, each with a queue.
  enum Step {
    kQuantizeInput, kQuery, kKey, kValue, kTransposeKeys, kAttend, kQuantizeAttended, kOutput, kQuantizePost, kGated,
    kQuantizeInner, kInner, kNumSteps
  };

  // Checks that every matrix and norm is set, and that those of one input agree on how it is quantized.
  void check_complete() const {
    require(head_.num_outputs() && last_norm_.size(), "the head or the last norm is not set");
    for (size_t i = 0; i < layers_.size(); ++i) {
      const auto& matrices = layers_[i].matrices;
      for (int slot = 0; slot < kNumMatrices; ++slot) {
        require(matrices[slot].num_outputs(), "the matrix of layer ", i, " slot ", slot, " is not set");
      }
      for (int slot : {kInputNorm, kPostNorm}) {
        require(layers_[i].vectors[slot].size(), "the norm of layer ", i, " slot ", slot, " is not set");
      }
      for (int slot : {kK, kV}) check_same_input(i, kQ, slot);
      check_same_input(i, kGate, kUp);
      const MatrixForm &gate = matrices[kGate].form(), &up = matrices[kUp].form();
      require(gate.num_groups == up.num_groups && gate.bits == up.bits && gate.has_half_scales == up.has_half_scales,
              "gate and up of layer ", i, " must be of one form");
    }
  }

  void check_same_input(size_t i, int slot, int other) const {
    const MatrixForm &a = layers_[i].matrices[slot].form(), &b = layers_[i].matrices[other].form();
    require(a.num_input_groups == b.num_input_groups && a.input_scale == b.input_scale, "the matrices of layer ", i,
            " slots ", slot, " and ", other, " must quantize their input alike, got ", a.num_input_groups, " and ",
            b.num_input_groups, " groups, scales ", a.input_scale, " and ", b.input_scale);
  }

  void run_pass(const Call& call, int first) {
    const int rows = int(std::min<int64_t>(kMaxRows, call.num_new - first));
    const int64_t start = call.start + first;
    const bool is_short = rows <= kShortRows;
    kept_.clear();
    wanted_.clear();
    for (int row = 0; row < rows; ++row) {
      for (int j = 0; j < call.rows.size; ++j) {
        if (call.rows.data[j] - first == row) kept_.push_back(row), wanted_.push_back(j);
      }
    }
    const int num_kept = int(kept_.size());
    const Pass all{call, first, rows, start, start + rows, nullptr, is_short};
    const Pass kept{call, first, num_kept, start, start + rows, kept_.data(), is_short};
    reserve(all);
    for (int i = 0; i < num_queues(); ++i) queues_[i].next.store(0, std::memory_order_relaxed);
    std::memcpy(hidden_.data(), call.embeds.data + size_t(first) * spec_.width, sizeof(float) * rows * spec_.width);
    team_.run([&](int rank) {
      const int last = spec_.num_layers - 1;
      for (int i = 0; i < last; ++i) run_layer(all, all, i, rank);
      // Of the last layer, tokens whose logits are not wanted need no more than keys and values.
      run_layer(all, num_kept < rows ? kept : all, last, rank);
      if (num_kept) run_head(kept, rank);
      scratch_[rank].tile_product.release();
    });
  }

  void reserve(const Pass& pass) {
    const size_t rows = pass.rows, width = spec_.width, widest = std::max(width, mlp_width());
    attention_.reserve(pass);
    grow(hidden_, rows * width);
    grow(inner_, rows * mlp_width());
    if (!pass.is_short) quantized_.reserve(pad(pass.rows), widest, max_groups_);  // tiles hold sixteen rows
    for (Scratch& own : scratch_) {
      if (pass.is_short) own.quantized.reserve(rows, widest, max_groups_);
      grow(own.row, width);
    }
  }

  size_t mlp_width() const { return spec_.mlp_width; }
  int num_queues() const { return kNumSteps * (spec_.num_layers + 1); }
  WorkQueue& queue(int layer, Step step) { return queues_[kNumSteps * layer + step]; }

  // `all` is a pass, `kept` the rows of it that go on once its keys and values are in the cache.
  void run_layer(const Pass& all, const Pass& kept, int i, int rank) {
    const Layer& layer = layers_[i];
    const auto& matrices = layer.matrices;
    Scratch& own = scratch_[rank];
    const QuantizedRows& normed = quantize(all, matrices[kQ], own, queue(i, kQuantizeInput), [&](int row) {
      return norm(&hidden_[size_t(row) * spec_.width], layer.vectors[kInputNorm], own);
    });
    for (int slot = kQ, at = 0; slot <= kV; at += matrices[slot++].num_outputs()) {
      const Buffer<float>& bias = layer.vectors[kBiasQ + slot - kQ];
      join_heads(all, matrices[slot], bias, at, normed, own, queue(i, Step(kQuery + slot - kQ)));
    }
    team_.wait();
    attention_.run(kept, i, rank, {queue(i, kTransposeKeys), queue(i, kAttend)}, team_);
    if (rank == 0 && kept.kept) {
      for (int row = 0; row < kept.rows; ++row) {
        std::memmove(&hidden_[size_t(row) * spec_.width], &hidden_[size_t(kept.token(row)) * spec_.width],
                     sizeof(float) * spec_.width);
      }
    }
    team_.wait();
    if (!kept.rows) return;
    const QuantizedRows& attended = quantize(kept, matrices[kO], own, queue(i, kQuantizeAttended), [&](int row) {
      return attention_.output(kept, row, own.row.data());
    });
    add_product(kept, matrices[kO], attended, own, queue(i, kOutput));
    team_.wait();
    const QuantizedRows& normed_again = quantize(kept, matrices[kGate], own, queue(i, kQuantizePost), [&](int row) {
      return norm(&hidden_[size_t(row) * spec_.width], layer.vectors[kPostNorm], own);
    });
    gate(kept, matrices[kGate], matrices[kUp], normed_again, own, queue(i, kGated));
    team_.wait();
    const QuantizedRows& inner = quantize(kept, matrices[kDown], own, queue(i, kQuantizeInner), [&](int row) {
      return &inner_[row * mlp_width()];
    });
    add_product(kept, matrices[kDown], inner, own, queue(i, kInner));
    team_.wait();
  }

  // After the last layer the kept rows are the first ones.
  void run_head(const Pass& kept, int rank) {
    Scratch& own = scratch_[rank];
    const int i = spec_.num_layers;
    const QuantizedRows& normed = quantize(kept, head_, own, queue(i, kQuantizeInput), [&](int row) {
      return norm(&hidden_[size_t(row) * spec_.width], last_norm_, own);
    });
    multiply(kept, head_, normed, own, queue(i, kOutput), [&](int tile, int row, F32 x) {
      store_outputs(tile, head_, x, kept.call.logits.data + int64_t(wanted_[row]) * spec_.vocab_size);
    });
  }

  // Quantizes the inputs of a matrix. Of a short pass every thread quantizes all rows for itself, else they share them.
  template <class RowOf>
  const QuantizedRows& quantize(const Pass& pass, const Matrix& next, Scratch& own, WorkQueue& queue, RowOf row_of) {
    if (pass.is_short) {
      for (int row = 0; row < pass.rows; ++row) next.quantize(row_of(row), row, own.quantized);
      return own.quantized;
    }
    queue.parallel_for(pass.rows, kMaxTileRows, [&](int first, int end) {
      for (int row = first; row < end; ++row) next.quantize(row_of(row), row, quantized_);
    });
    team_.wait();
    return quantized_;
  }

  const float* norm(const float* x, const Buffer<float>& weight, Scratch& own) const {
    F32 squares = broadcast(0.f);
    for (int i = 0; i < spec_.width; i += kLanes) squares += load(x + i) * load(x + i);
    const float scale = 1.f / std::sqrt(reduce_sum(squares) / spec_.width + spec_.norm_eps);
    for (int i = 0; i < spec_.width; ++i) own.row[i] = x[i] * scale * weight[i];
    return own.row.data();
  }

  // Of fewer rows most of a tile would be empty.
  static bool needs_tiles(const Pass& pass) { return kHasTiles && pass.rows > kShortRows; }

  // Calls `work(first, end)` for the tiles of a product that no other thread has taken.
  template <class Work>
  void for_tiles(const Pass& pass, size_t tile_bytes, int count, WorkQueue& queue, Work work) {
    // A short pass is bound by memory, which is fastest in long sequential reads; of a long one, tiles must stay in the
    // caches while all rows are multiplied by them.
    const int fit = int((pass.is_short ? kSequentialBytes : kCacheBytes) / tile_bytes);
    const int enough = pass.is_short ? fit : std::min(fit, kCacheTiles), fair = count / (4 * team_.size());
    queue.parallel_for(count, std::max(kMaxTiles, std::min(enough, fair) / kMaxTiles * kMaxTiles), work);
  }

  // Calls `done(tile, row, outputs)` with the products of all rows by the tiles that no other thread has taken.
  template <class Done>
  void multiply(const Pass& pass, const Matrix& matrix, const QuantizedRows& x, Scratch& own, WorkQueue& queue, Done done) {
    for_tiles(pass, matrix.tile_bytes(), matrix.num_tiles(), queue, [&](int first_tile, int end_tile) {
      if (needs_tiles(pass)) {
        Matrix::Tile tiles[kCacheTiles];
        const int count = end_tile - first_tile;
        for (int tile = 0; tile < count; ++tile) tiles[tile] = matrix.tile(first_tile + tile);
        return own.tile_product.multiply(matrix.form(), tiles, count, x, pass.rows, [&](int tile, int row, F32 a, F32 b) {
          done(first_tile + tile, row, a);
          if (tile + 1 < count) done(first_tile + tile + 1, row, b);
        });
      }
      for (int first = 0; first < pass.rows; first += kMaxTileRows) {
        const int rows = std::min(kMaxTileRows, pass.rows - first);
        int tile = first_tile;
        for (; tile + kMaxTiles <= end_tile; tile += kMaxTiles) {
          Matrix::Tile tiles[kMaxTiles];
          F32 out[kMaxTiles][kMaxTileRows];
          for (int t = 0; t < kMaxTiles; ++t) tiles[t] = matrix.tile(tile + t);
          matrix.multiply(tiles, x, first, rows, out);
          for (int t = 0; t < kMaxTiles; ++t) {
            for (int row = 0; row < rows; ++row) done(tile + t, first + row, out[t][row]);
          }
        }
        for (; tile < end_tile; ++tile) {
          const Matrix::Tile tiles[1] = {matrix.tile(tile)};
          F32 out[1][kMaxTileRows];
          matrix.multiply(tiles, x, first, rows, out);
          for (int row = 0; row < rows; ++row) done(tile, first + row, out[0][row]);
        }
      }
    });
  }

  // Writes the outputs of a tile; the last tile may have fewer than sixteen.
  static void store_outputs(int tile, const Matrix& matrix, F32 x, float* to) {
    const int first = tile * kLanes, count = matrix.num_outputs() - first;
    if (count >= kLanes) return store(to + first, x);
    for (int lane = 0; lane < count; ++lane) to[first + lane] = x[lane];
  }

  // Queries, keys and values of the new tokens, side by side in `qkv_`.
  void join_heads(const Pass& pass, const Matrix& matrix, const Buffer<float>& bias, int at, const QuantizedRows& x,
                  Scratch& own, WorkQueue& queue) {
    multiply(pass, matrix, x, own, queue, [&](int tile, int row, F32 out) {
      const F32 add = bias.size() ? load(&bias[size_t(tile) * kLanes]) : broadcast(0.f);
      store_outputs(tile, matrix, out + add, attention_.qkv(row) + at);
    });
  }

  void add_product(const Pass& pass, const Matrix& matrix, const QuantizedRows& x, Scratch& own, WorkQueue& queue) {
    multiply(pass, matrix, x, own, queue, [&](int tile, int row, F32 out) {
      float* to = &hidden_[size_t(row) * spec_.width + tile * kLanes];
      store(to, load(to) + out);
    });
  }

  void gate(const Pass& pass, const Matrix& gate, const Matrix& up, const QuantizedRows& x, Scratch& own, WorkQueue& queue) {
    auto store_gated = [&](int tile, int row, F32 gated, F32 x) {
      store(&inner_[row * mlp_width() + tile * kLanes], gated / (exp(-gated) + 1.f) * x);
    };
    for_tiles(pass, 2 * gate.tile_bytes(), gate.num_tiles(), queue, [&](int first_tile, int end_tile) {
      if (needs_tiles(pass)) {
        Matrix::Tile tiles[2 * kCacheTiles];  // side by side, so that both of a pair are multiplied at once
        const int count = 2 * (end_tile - first_tile);
        for (int i = 0; i < count; ++i) tiles[i] = (i % 2 ? up : gate).tile(first_tile + i / 2);
        return own.tile_product.multiply(gate.form(), tiles, count, x, pass.rows, [&](int tile, int row, F32 a, F32 b) {
          store_gated(first_tile + tile / 2, row, a, b);
        });
      }
      for (int first = 0; first < pass.rows; first += kMaxTileRows) {
        const int rows = std::min(kMaxTileRows, pass.rows - first);
        for (int tile = first_tile; tile < end_tile; ++tile) {
          F32 out[2][kMaxTileRows];
          if constexpr (kMaxTiles == 2) {
            const Matrix::Tile tiles[2] = {gate.tile(tile), up.tile(tile)};
            gate.multiply(tiles, x, first, rows, out);
          } else {
            const Matrix::Tile gates[1] = {gate.tile(tile)}, ups[1] = {up.tile(tile)};
            gate.multiply(gates, x, first, rows, out);
            up.multiply(ups, x, first, rows, out + 1);
          }
          for (int row = 0; row < rows; ++row) {
            store_gated(tile, first + row, out[0][row], out[1][row]);
          }
        }
      }
    });
  }

  static constexpr int kShortRows = 8;
  static constexpr int kMaxRows = 512;  // of a pass, whose intermediate values must stay in the caches
  static constexpr size_t kSequentialBytes = size_t{1} << 18, kCacheBytes = 5 << 17;
  static constexpr int kCacheTiles = 8;

  const Spec spec_;
  ThreadTeam team_;
  std::vector<Layer> layers_;
  Matrix head_;
  Buffer<float> last_norm_;
  Attention attention_;
  std::vector<Scratch> scratch_;
  std::unique_ptr<WorkQueue[]> queues_;
  int max_groups_ = 0;
  bool is_complete_ = false;
  QuantizedRows quantized_;
  Buffer<float> hidden_, inner_;
  std::vector<int> kept_, wanted_;  // tokens of a pass whose logits are wanted, and their rows of the logits
};

}  // namespace nvila
