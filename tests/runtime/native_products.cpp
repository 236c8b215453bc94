// Holds products of packed matrices against sums over their values, for processors that are emulated: one line, then 0.
#include <algorithm>
#include <cstdio>
#include <random>
#include <vector>

#include "matrix.h"

using namespace nvila;

int main() {
  std::mt19937 random(0);
  double worst = 0;
  for (int bits : {4, 8}) {
    for (int rows = 1; rows <= kGroupRows; ++rows) {
      const int inputs = 192, outputs = 40, groups = 3, low = bits == 4 ? -8 : -127, high = bits == 4 ? 7 : 127;
      std::vector<int8_t> values(inputs * outputs);
      std::vector<float> scales(groups * outputs), x(rows * inputs);
      for (int8_t& value : values) value = std::uniform_int_distribution<int>(low, high)(random);
      for (float& scale : scales) scale = std::uniform_real_distribution<float>(0.1f, 1)(random);
      for (float& number : x) number = std::normal_distribution<float>()(random);
      const GivenMatrix given{values.data(), scales.data(), outputs, 1, inputs, outputs, groups, groups, bits, 0, 0};
      const Matrix matrix(given);
      Rounded rounded;
      rounded.reserve(rows, inputs, groups);
      for (int row = 0; row < rows; ++row) matrix.round(&x[row * inputs], row, rounded);
      for (int tile = 0; tile < matrix.num_tiles(); ++tile) {
        matrix.pack(tile);
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
  }
  std::printf("%s %.2e\n", kIsa, worst);
  return worst < 1e-6 ? 0 : 1;
}
