// Rows of activations in eight bits, with a scale for each group of inputs.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "buffer.h"
#include "lanes.h"

namespace nvila {

// The matrix that multiplies the rows knows their inputs K and groups G.
struct QuantizedRows {
  Buffer<int8_t> values;     // (rows, K), in [-127, 127]
  Buffer<float> scales;      // (rows, G)
  Buffer<int32_t> row_sums;  // (rows, G), of the values

  void reserve(size_t rows, size_t inputs, size_t groups) {
    if (values.size() < rows * inputs) values = Buffer<int8_t>(rows * inputs);
    if (row_sums.size() >= rows * groups) return;
    scales = Buffer<float>(rows * groups);
    row_sums = Buffer<int32_t>(rows * groups);
  }

  // Quantizes one group of `size` numbers to `values[first]` and behind, with the scale of index `group`. A scale of 0
  // is derived from the largest number.
  void quantize(const float* x, int size, size_t first, size_t group, float scale) {
    scales[group] = scale > 0 ? scale : derive_scale(x, size);
    row_sums[group] = quantize_group(&values[first], x, size, 1.f / scales[group]);
  }

 private:
  static float derive_scale(const float* x, int size) {
    F32 most = broadcast(0.f);
    int i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      const F32 v = load(x + i);
      most = max(most, max(v, -v));
    }
    float top = reduce_max(most);
    for (; i < size; ++i) top = std::fabs(x[i]) > top ? std::fabs(x[i]) : top;
    return top > 1e-30f ? top / 127.f : 1.f;
  }

  // Returns the sum of the values.
  static int32_t quantize_group(int8_t* to, const float* x, int size, float inverse) {
    I32 sums = broadcast(0);
    int i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      const I32 n = round_to_int(min(max(load(x + i) * inverse, broadcast(-127.f)), broadcast(127.f)));
      store_bytes(to + i, n);
      sums += n;
    }
    int32_t sum = reduce_sum(sums);
    for (; i < size; ++i) {
      const float v = std::nearbyint(x[i] * inverse);
      to[i] = int8_t(v > -127 ? (v < 127 ? v : 127) : -127);
      sum += to[i];
    }
    return sum;
  }
};

}  // namespace nvila
