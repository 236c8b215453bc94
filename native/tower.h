// A vision tower's layers on a CPU with a matrix unit: SigLIP, weights and activations in eight bits.
//
// Products are of signed bytes, attention of bfloat16; what lies between is float32. Threads share each step and meet at
// a dozen barriers a layer.
//
// Shapes: P patches, E width.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "api.h"
#include "buffer.h"
#include "checks.h"
#include "matrix.h"
#include "quantized_rows.h"
#include "thread_team.h"
#include "tile_product.h"
#include "tower_attention.h"

namespace nvila {

class Tower {
 public:
  // `spec` and `threads` are checked already.
  Tower(const TowerSpec& spec, int threads)
      : spec_(spec),
        team_(threads),
        layers_(spec.num_layers),
        attention_(spec),
        scratch_(threads),
        queues_(std::make_unique<WorkQueue[]>(kNumSteps * spec.num_layers)),
        attended_(size_t(spec.num_patches) * spec.width) {
    const size_t rows = (spec.num_patches + kTileRows - 1) / kTileRows * kTileRows;
    rows_.reserve(rows, spec.width, 1);
    inner_.reserve(rows, spec.mlp_width, 1);
    for (Scratch& own : scratch_) {
      own.row = Buffer<float>(spec.width);
      attention_.reserve(own.attention);
    }
  }

  void set_matrix(int layer, int slot, const MatrixView& view) {
    check_tower_matrix(spec_, layer, slot, view);
    Matrix matrix(view.form);
    WorkQueue tiles;
    team_.run([&](int) {
      tiles.parallel_for(matrix.num_tiles(), 16, [&](int first, int end) {
        for (int tile = first; tile < end; ++tile) matrix.pack(view, tile);
      });
    });
    layers_[layer].matrices[slot] = std::move(matrix);
    is_complete_ = false;
  }

  void set_vector(int layer, int slot, Span<const float> values) {
    check_tower_vector(spec_, layer, slot, values);
    Buffer<float> vector(values.size);
    std::memcpy(vector.data(), values.data, sizeof(float) * values.size);
    layers_[layer].vectors[slot] = std::move(vector);
    is_complete_ = false;
  }

  // Passes patches, (P, E), through all layers, in place.
  void run(Span<float> patches) {
    require_size("patches", patches, int64_t{spec_.num_patches} * spec_.width);
    if (!is_complete_) check_complete();
    is_complete_ = true;
    hidden_ = patches.data;
    for (int i = 0; i < kNumSteps * spec_.num_layers; ++i) queues_[i].next.store(0, std::memory_order_relaxed);
    team_.run([&](int rank) {
      for (int i = 0; i < spec_.num_layers; ++i) run_layer(i, scratch_[rank]);
      scratch_[rank].product.release();
    });
  }

 private:
  struct TowerLayer {
    std::array<Matrix, kNumTowerMatrices> matrices;
    std::array<Buffer<float>, kNumTowerVectors> vectors;
  };

  // Of one thread.
  struct Scratch {
    TileProduct product;
    TowerAttention::Scratch attention;
    Buffer<float> row;
  };

  // The steps of a layer that the threads share, each with a queue.
  enum Step {
    kQuantizeInput, kQueries, kKeys, kValues, kPack, kAttend, kQuantizeAttended, kOutput, kQuantizePost, kOuter,
    kQuantizeInner, kInner, kNumSteps
  };

  void check_complete() const {
    for (size_t i = 0; i < layers_.size(); ++i) {
      for (int slot = 0; slot < kNumTowerMatrices; ++slot) {
        require(layers_[i].matrices[slot].num_outputs(), "the matrix of layer ", i, " slot ", slot, " is not set");
      }
      for (int slot = 0; slot < kNumTowerVectors; ++slot) {
        require(layers_[i].vectors[slot].size(), "the vector of layer ", i, " slot ", slot, " is not set");
      }
      const float scale = layers_[i].matrices[kTowerQ].form().input_scale;
      for (int slot : {kTowerK, kTowerV}) {
        require(layers_[i].matrices[slot].form().input_scale == scale, "q, k and v of layer ", i,
                " must quantize their input alike");
      }
    }
  }

  WorkQueue& queue(int layer, Step step) { return queues_[kNumSteps * layer + step]; }

  void run_layer(int i, Scratch& own) {
    const auto& matrices = layers_[i].matrices;
    const auto& vectors = layers_[i].vectors;
    const int width = spec_.width;
    auto normed = [&](int weight, int bias) {
      return [&, weight, bias](int row) { return norm(row, vectors[weight], vectors[bias], own); };
    };
    quantize(matrices[kTowerQ], rows_, queue(i, kQuantizeInput), normed(kNorm1Weight, kNorm1Bias));
    for (int part = 0; part < 3; ++part) {
      const Buffer<float>& bias = vectors[kBiasTowerQ + part];
      const float scale = part ? 1.f : attention_.query_scale();
      multiply(matrices[kTowerQ + part], rows_, own, queue(i, Step(kQueries + part)), [&](int at, int row, F32 out) {
        store_halves(attention_.qkv(row) + part * width + at, (out + load(&bias[at])) * scale);
      });
    }
    team_.wait();
    queue(i, kPack).parallel_for(spec_.num_heads, 1, [&](int head, int) { attention_.pack(head); });
    team_.wait();
    own.product.set_shapes(kTileRowBytes);
    const int blocks = attention_.num_blocks();
    queue(i, kAttend).parallel_for(spec_.num_heads * blocks, 1, [&](int item, int) {
      attention_.attend(item / blocks, item % blocks, own.attention, attended_.data());
    });
    team_.wait();
    auto attended = [&](int row) { return &attended_[size_t(row) * width]; };
    quantize(matrices[kTowerO], rows_, queue(i, kQuantizeAttended), attended);
    add_product(matrices[kTowerO], vectors[kBiasTowerO], rows_, own, queue(i, kOutput));
    team_.wait();
    quantize(matrices[kFc1], rows_, queue(i, kQuantizePost), normed(kNorm2Weight, kNorm2Bias));
    run_outer(i, own);
    add_product(matrices[kFc2], vectors[kBiasFc2], inner_, own, queue(i, kInner));
    team_.wait();
  }

  // The first map of the MLP and its GELU, quantized for the second.
  void run_outer(int i, Scratch& own) {
    const auto& matrices = layers_[i].matrices;
    const Buffer<float>& bias = layers_[i].vectors[kBiasFc1];
    const float scale = matrices[kFc2].form().input_scale;
    const int width = spec_.mlp_width;
    if (scale > 0) {
      const float inverse = 1.f / scale;
      multiply(matrices[kFc1], rows_, own, queue(i, kOuter), [&](int at, int row, F32 out) {
        const F32 y = max(gelu(out + load(&bias[at])) * inverse, broadcast(-127.f));
        store_bytes(&inner_.values[size_t(row) * width + at], round_to_int(min(y, broadcast(127.f))));
        if (at == 0) inner_.scales[row] = scale;
      });
      return team_.wait();
    }
    grow_inner();
    multiply(matrices[kFc1], rows_, own, queue(i, kOuter), [&](int at, int row, F32 out) {
      store(&floats_[size_t(row) * width + at], gelu(out + load(&bias[at])));
    });
    team_.wait();
    quantize(matrices[kFc2], inner_, queue(i, kQuantizeInner), [&](int row) { return &floats_[size_t(row) * width]; });
  }

  // Quantizes the inputs of a matrix; the threads share the rows and meet.
  template <class RowOf>
  void quantize(const Matrix& next, QuantizedRows& to, WorkQueue& queue, RowOf row_of) {
    queue.parallel_for(spec_.num_patches, 8, [&](int first, int end) {
      for (int row = first; row < end; ++row) next.quantize(row_of(row), row, to);
    });
    team_.wait();
  }

  const float* norm(int row, const Buffer<float>& weight, const Buffer<float>& bias, Scratch& own) const {
    const float* x = hidden_ + size_t(row) * spec_.width;
    F32 sums = broadcast(0.f), squares = broadcast(0.f);
    for (int i = 0; i < spec_.width; i += kLanes) sums += load(x + i);
    const F32 mean = broadcast(reduce_sum(sums) / spec_.width);
    for (int i = 0; i < spec_.width; i += kLanes) squares += (load(x + i) - mean) * (load(x + i) - mean);
    const float scale = 1.f / std::sqrt(reduce_sum(squares) / spec_.width + spec_.norm_eps);
    for (int i = 0; i < spec_.width; i += kLanes) {
      store(&own.row[i], (load(x + i) - mean) * scale * load(&weight[i]) + load(&bias[i]));
    }
    return own.row.data();
  }

  // By tanh, as x / (1 + e^-2u).
  static F32 gelu(F32 x) {
    // -2u in powers of two: sqrt(8 / pi) times (x + 0.044715 x^3) times log2 e; e^40 is as good as infinity.
    const F32 u = x * (x * x * -0.1029432f + -2.3022082f);
    return x * reciprocal(exp2_below(min(u, broadcast(60.f)), broadcast(0.f)) + 1.f);
  }

  // Calls `done(output, row, sixteen)` with the products of all rows by the outputs that no other thread has taken.
  template <class Done>
  void multiply(const Matrix& matrix, const QuantizedRows& x, Scratch& own, WorkQueue& queue, Done done) {
    const int fair = std::max(2, matrix.num_tiles() / (4 * team_.size()) / 2 * 2);
    queue.parallel_for(matrix.num_tiles(), std::min(kCacheTiles, fair), [&](int first, int end) {
      Matrix::Tile tiles[kCacheTiles];
      const int count = end - first;
      for (int tile = 0; tile < count; ++tile) tiles[tile] = matrix.tile(first + tile);
      own.product.multiply(matrix.form(), tiles, count, x, spec_.num_patches, [&](int tile, int row, F32 a, F32 b) {
        done((first + tile) * kLanes, row, a);
        if (tile + 1 < count) done((first + tile + 1) * kLanes, row, b);
      });
    });
  }

  void add_product(const Matrix& matrix, const Buffer<float>& bias, const QuantizedRows& x, Scratch& own, WorkQueue& queue) {
    multiply(matrix, x, own, queue, [&](int at, int row, F32 out) {
      float* to = hidden_ + size_t(row) * spec_.width + at;
      store(to, load(to) + out + load(&bias[at]));
    });
  }

  // Only where rows are quantized by their own largest number must all of them be kept.
  void grow_inner() {
    std::call_once(has_floats_, [&] { floats_ = Buffer<float>(size_t(spec_.num_patches) * spec_.mlp_width); });
  }

  static constexpr int kCacheTiles = 8;

  const TowerSpec spec_;
  ThreadTeam team_;
  std::vector<TowerLayer> layers_;
  TowerAttention attention_;
  std::vector<Scratch> scratch_;
  std::unique_ptr<WorkQueue[]> queues_;
  QuantizedRows rows_, inner_;
  Buffer<float> attended_, floats_;
  std::once_flag has_floats_;
  float* hidden_ = nullptr;  // of the call
  bool is_complete_ = false;
};

}  // namespace nvila
