// The decoder as plain loops over doubles: what every kernel, thread count and pass length must compute.
#pragma once

#include <cstdint>
#include <vector>

#include "api.h"

namespace nvila_test {

// A matrix with its memory, as a caller would hold it.
struct OwnedMatrix {
  nvila::MatrixForm form;
  std::vector<int8_t> values;
  std::vector<uint8_t> scale_bytes;
  std::vector<float> scales;  // (G, N), what the bytes stand for
  int64_t stride_k, stride_n;

  nvila::MatrixView view() const;
};

struct Layer {
  OwnedMatrix matrices[nvila::kNumMatrices];
  std::vector<float> vectors[nvila::kNumVectors];  // an absent bias is empty
};

struct Model {
  nvila::Spec spec;
  std::vector<Layer> layers;
  OwnedMatrix head;
  std::vector<float> last_norm;
};

// Keys and values of each layer, (rows, K, S).
struct ReferenceCache {
  std::vector<std::vector<double>> keys, values;
};

// One call's inputs and what it must give.
struct Tokens {
  int64_t start, num_new;
  std::vector<float> embeds, cos, sin, mask;
  std::vector<int64_t> rows;
};

// Appends tokens to the cache and returns the wanted logits, (R, V).
std::vector<double> run_reference(const Model& model, const Tokens& tokens, ReferenceCache& cache);

}  // namespace nvila_test
