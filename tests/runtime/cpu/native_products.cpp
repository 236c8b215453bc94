// Holds products of packed matrices against sums over their values, for processors that are emulated: one line, then 0.
#include <algorithm>
#include <cstdio>
#include <random>
#include <vector>

#include "matrix.h"

using namespace nvila;

// The largest error of products of any number of rows, as a share of the sum of their terms.
double worst_error(int bits, bool has_half_scales, std::mt19937& random) {
  const int inputs = 192, outputs = 40, groups = 3, low = bits == 4 ? -8 : -127, high = bits == 4 ? 7 : 127;
  double worst = 0;
  for (int rows = 1; rows <= kGroupRows; ++rows) {
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
    const Form form{inputs, outputs, groups, groups, bits, has_half_scales, 0};
    const void* given_scales = has_half_scales ? static_cast<void*>(halves.data()) : scales.data();
    const GivenMatrix given{values.data(), given_scales, outputs, 1, form};
    Matrix matrix(form);
    Rounded rounded;
    rounded.reserve(rows, inputs, groups);
    for (int row = 0; row < rows; ++row) matrix.round(&x[row * inputs], row, rounded);
    for (int tile = 0; tile < matrix.num_tiles(); ++tile) {
      matrix.pack(given, tile);
      F32 out[1][kGroupRows];
      const Matrix::Tile tiles[1] = {matrix.tile(tile)};
      matrix.multiply(tiles, rounded, 0, rows, out);
      for (int row = 0; row < rows; ++row) {
        for (int lane = 0; lane < kLanes && tile * kLanes + lane < outputs; ++lane) {
          const int n = tile * kLanes + lane;
          double want = 0, size = 0;
          for (int k = 0; k < inputs; ++k) {
            const int g = k / (inputs / groups);
            const double term = double(values[k * outputs + n]) * scales[g * outputs + n] *
                                rounded.values[row * inputs + k] * rounded.scales[row * groups + g];
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
