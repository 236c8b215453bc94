// Random models of every form that there is a kernel for, and the decoders that hold them.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "reference.h"

namespace nvila_test {

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  int between(int low, int high) { return std::uniform_int_distribution<int>(low, high)(engine_); }
  bool chance(double share) { return std::uniform_real_distribution<double>()(engine_) < share; }
  float normal() { return std::normal_distribution<float>()(engine_); }
  template <class T>
  T pick(std::initializer_list<T> from) { return from.begin()[between(0, int(from.size()) - 1)]; }
  std::vector<float> normals(size_t count, float mean, float spread) {
    std::vector<float> numbers(count);
    for (float& number : numbers) number = mean + spread * normal();
    return numbers;
  }

 private:
  std::mt19937_64 engine_;
};

inline void fail(const char* what) {
  std::printf("FAILED: %s\n", what);
  std::exit(1);
}

inline void expect(bool holds, const char* what) {
  if (!holds) fail(what);
}

// A divisor of `whole` that is a multiple of `step` and at most `most`.
inline int divisor(Random& random, int whole, int step, int most) {
  std::vector<int> found;
  for (int part = step; part <= std::min(whole, most); part += step) {
    if (whole % part == 0) found.push_back(part);
  }
  return found[random.between(0, int(found.size()) - 1)];
}

// How the inputs of matrices that share them are quantized, and the weights of one of them.
inline nvila::MatrixForm random_form(Random& random, int inputs, int outputs) {
  nvila::MatrixForm form{inputs, outputs, 1, 1, random.pick({4, 4, 8}), 0, 0.f};
  const int group = divisor(random, inputs, 8, 128);
  form.num_input_groups = inputs / group;
  if (form.bits == 4) {
    form.num_groups = inputs / divisor(random, inputs, group, inputs);
    form.has_half_scales = random.chance(0.5);
  } else if (random.chance(0.3)) {
    form.num_input_groups = 1;
    form.input_scale = 0.02f;
  }
  return form;
}

inline OwnedMatrix random_matrix(Random& random, nvila::MatrixForm form) {
  const int k = form.num_inputs, n = form.num_outputs, low = form.bits == 4 ? -8 : -127, high = form.bits == 4 ? 7 : 127;
  OwnedMatrix matrix{form, std::vector<int8_t>(size_t(k) * n), {}, {}, 0, 0};
  const bool is_by_input = random.chance(0.5);
  matrix.stride_k = is_by_input ? n : 1, matrix.stride_n = is_by_input ? 1 : k;
  for (int8_t& value : matrix.values) value = int8_t(random.between(low, high));
  // Powers of two times a mantissa of float16; of products of as many terms, about one.
  const int exponent = -int(std::ceil(std::log2(std::sqrt(k) * high / 2)));
  for (int i = 0; i < form.num_groups * n; ++i) {
    const int mantissa = random.between(0, 1023);
    const float scale = std::ldexp(1.f + mantissa / 1024.f, exponent);
    const uint16_t half = uint16_t((15 + exponent) << 10 | mantissa);
    const void* from = form.has_half_scales ? static_cast<const void*>(&half) : &scale;
    const size_t bytes = form.has_half_scales ? sizeof half : sizeof scale;
    matrix.scales.push_back(scale);
    matrix.scale_bytes.resize(matrix.scale_bytes.size() + bytes);
    std::memcpy(matrix.scale_bytes.data() + matrix.scale_bytes.size() - bytes, from, bytes);
  }
  return matrix;
}

inline nvila::Spec random_spec(Random& random, bool is_small) {
  nvila::Spec spec{};
  do {
    spec.head_size = 16 * random.between(1, 3);
    spec.num_kv_heads = random.between(1, 3);
    spec.num_heads = spec.num_kv_heads * random.pick({1, 2, 3, 6});
    spec.width = spec.num_heads * spec.head_size;
  } while (spec.width > (is_small ? 48 : 192));
  spec.num_layers = random.between(1, is_small ? 2 : 3);
  spec.mlp_width = 16 * random.between(1, is_small ? 3 : 12);
  spec.vocab_size = random.between(1, 200);
  spec.norm_eps = 1e-6f;
  return spec;
}

inline Layer random_layer(Random& random, const nvila::Spec& spec) {
  Layer layer;
  const int kv = spec.num_kv_heads * spec.head_size;
  nvila::MatrixForm qkv = random_form(random, spec.width, spec.width);
  layer.matrices[nvila::kQ] = random_matrix(random, qkv);
  qkv.num_outputs = kv;
  for (int slot : {nvila::kK, nvila::kV}) layer.matrices[slot] = random_matrix(random, qkv);
  layer.matrices[nvila::kO] = random_matrix(random, random_form(random, spec.width, spec.width));
  const nvila::MatrixForm gate = random_form(random, spec.width, spec.mlp_width);
  for (int slot : {nvila::kGate, nvila::kUp}) layer.matrices[slot] = random_matrix(random, gate);
  layer.matrices[nvila::kDown] = random_matrix(random, random_form(random, spec.mlp_width, spec.width));
  for (int slot : {nvila::kInputNorm, nvila::kPostNorm}) layer.vectors[slot] = random.normals(spec.width, 1, 0.1f);
  if (random.chance(0.8)) {
    layer.vectors[nvila::kBiasQ] = random.normals(spec.width, 0, 0.3f);
    for (int slot : {nvila::kBiasK, nvila::kBiasV}) layer.vectors[slot] = random.normals(kv, 0, 0.3f);
  }
  return layer;
}

inline Model random_model(Random& random, bool is_small) {
  Model model{random_spec(random, is_small), {}, {}, {}};
  for (int i = 0; i < model.spec.num_layers; ++i) model.layers.push_back(random_layer(random, model.spec));
  model.head = random_matrix(random, random_form(random, model.spec.width, model.spec.vocab_size));
  model.last_norm = random.normals(model.spec.width, 1, 0.1f);
  return model;
}

// Fails the test where the library refused.
inline void must(int32_t status) {
  if (status != nvila::kOk) fail(nvila_last_error());
}

// A decoder of the library with a model's weights.
class LoadedDecoder {
 public:
  LoadedDecoder(const Model& model, int threads) {
    must(nvila_decoder_new(&model.spec, threads, &handle_));
    for (size_t i = 0; i < model.layers.size(); ++i) {
      for (int slot = 0; slot < nvila::kNumMatrices; ++slot) set_matrix(int(i), slot, model.layers[i].matrices[slot]);
      for (int slot = 0; slot < nvila::kNumVectors; ++slot) set_vector(int(i), slot, model.layers[i].vectors[slot]);
    }
    set_matrix(nvila::kHeadLayer, 0, model.head);
    set_vector(nvila::kHeadLayer, 0, model.last_norm);
  }
  ~LoadedDecoder() { must(nvila_decoder_delete(handle_)); }
  LoadedDecoder(const LoadedDecoder&) = delete;
  LoadedDecoder& operator=(const LoadedDecoder&) = delete;

  void* handle() const { return handle_; }

 private:
  void set_matrix(int layer, int slot, const OwnedMatrix& matrix) {
    const nvila::MatrixView view = matrix.view();
    must(nvila_decoder_set_matrix(handle_, layer, slot, &view));
  }
  void set_vector(int layer, int slot, const std::vector<float>& vector) {
    if (!vector.empty()) must(nvila_decoder_set_vector(handle_, layer, slot, vector.data(), int64_t(vector.size())));
  }

  void* handle_ = nullptr;
};

// Angles at random positions, and a mask where each token attends to itself and to some or all of what came before.
inline Tokens random_tokens(Random& random, const nvila::Spec& spec, int64_t start, int num_new) {
  Tokens tokens{start, num_new, random.normals(size_t(num_new) * spec.width, 0, 1), {}, {}, {}, {}};
  const double share = random.pick({1.0, 0.5, 0.05});
  for (int t = 0; t < num_new; ++t) {
    std::vector<float> angles = random.normals(spec.head_size / 2, 0, 3);
    angles.insert(angles.end(), angles.begin(), angles.end());
    for (float angle : angles) tokens.cos.push_back(std::cos(angle)), tokens.sin.push_back(std::sin(angle));
    for (int64_t m = 0; m < start + num_new; ++m) {
      const bool attends = m == start + t || (m < start + t && random.chance(share));
      tokens.mask.push_back(attends ? 0.f : -1e9f);
    }
  }
  const double wanted = random.pick({0.0, 0.2, 1.0});
  for (int t = 0; t < num_new; ++t) {
    if (random.chance(wanted)) tokens.rows.insert(tokens.rows.begin() + random.between(0, int(tokens.rows.size())), t);
  }
  return tokens;
}

}  // namespace nvila_test
