// Compares products of packed matrices with sums over their values: prints the instructions and the worst error.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "matrix.h"

using namespace nvila;

// The largest error of products of any number of rows, as a share of the sum of their terms.
double worst_error(int bits, bool has_half_scales, std::mt19937& random) {
  const int inputs = 192, outputs = 40, groups = 3, low = bits == 4 ? -8 : -127, high = bits == 4 ? 7 : 127;
  double worst = 0;
  for (int rows = 1; rows <= kMaxTileRows; ++rows) {
    std::vector<int8_t> values(inputs * outputs);
    std::vector<float> scales(groups * outputs), x(rows * inputs);
    std::vector<uint16_t> halves(scales.size());
    for (int8_t& value : values) value = std::uniform_int_distribution<int>(low, high)(random);
    for (size_t i = 0; i < scales.size(); ++i) {  // powers of two, whose bits are plain in either form
      const int exponent = std::uniform_int_distribution<int>(-8, 0)(random);
      scales[i] = std::ldexp(1.f, exponent);
      halves[i] = uint16_t((15 + exponent) << 10);
    }
    for (float& number : x) number = std::normal_distribution<float>()(random);
    const MatrixForm form{inputs, outputs, groups, groups, bits, has_half_scales, 0};
    const void* scale_bytes = has_half_scales ? static_cast<void*>(halves.data()) : scales.data();
    const MatrixView view{{values.data(), int64_t(values.size())}, {static_cast<const uint8_t*>(scale_bytes),
                          int64_t(scales.size() * (has_half_scales ? 2 : 4))}, outputs, 1, form};
    Matrix matrix(form);
    QuantizedRows quantized;
    quantized.reserve(rows, inputs, groups);
    for (int row = 0; row < rows; ++row) matrix.quantize(&x[row * inputs], row, quantized);
    for (int tile = 0; tile < matrix.num_tiles(); ++tile) {
      matrix.pack(view, tile);
      F32 out[1][kMaxTileRows];
      const Matrix::Tile tiles[1] = {matrix.tile(tile)};
      matrix.multiply(tiles, quantized, 0, rows, out);
      for (int row = 0; row < rows; ++row) {
        for (int lane = 0; lane < kLanes && tile * kLanes + lane < outputs; ++lane) {
          const int n = tile * kLanes + lane;
          double want = 0, size = 0;
          for (int k = 0; k < inputs; ++k) {
            const int g = k / (inputs / groups);
            const double term = double(values[k * outputs + n]) * scales[g * outputs + n] *
                                quantized.values[row * inputs + k] * quantized.scales[row * groups + g];
            want += term, size += std::fabs(term);
          }
          worst = std::max(worst, std::fabs(out[0][row][lane] - want) / size);
        }
      }
    }
  }
  return worst;
}

int main() {
  std::mt19937 random(0);
  const double worst = std::max({worst_error(4, false, random), worst_error(4, true, random),
                                 worst_error(8, false, random)});
  std::printf("%s %.2e\n", kIsa, worst);
  return worst < 1e-6 ? 0 : 1;
}
