// Products by tiles against products without them, bit by bit, and the unit's instructions against plain loops.
//
// Usage: tiles ROUNDS SEED.
#include "pass.h"
#include "random_model.h"
#include "tile_product.h"

using namespace nvila_test;
using nvila::F32;
using nvila::kLanes;
using nvila::kTileRowBytes;
using nvila::kTileRows;

namespace {

// Of random shapes, where the rows and bytes outside of them hold no zeros that a sum could not show.
void compare_instructions(Random& random) {
  const int rows = random.between(1, kTileRows), outputs = random.between(1, 16), inputs = 4 * random.between(1, 16);
  nvila::TileShapes shapes;
  shapes.rows[0] = shapes.rows[1] = uint8_t(rows), shapes.rows[2] = uint8_t(inputs / 4);
  shapes.row_bytes[0] = shapes.row_bytes[2] = uint16_t(4 * outputs), shapes.row_bytes[1] = uint16_t(inputs);
  const int step = kTileRowBytes + 4 * random.between(0, 5);
  std::vector<int8_t> a(kTileRows * step), b(kTileRows * step);
  for (auto* bytes : {&a, &b}) {
    for (int8_t& byte : *bytes) byte = int8_t(random.between(-128, 127));
  }
  std::vector<int32_t> sums(kTileRows * step / 4), want;
  for (int32_t& sum : sums) sum = random.between(-1000, 1000);
  want = sums;
  for (int m = 0; m < rows; ++m) {
    for (int n = 0; n < outputs; ++n) {
      for (int k = 0; k < inputs; ++k) want[m * step / 4 + n] += a[m * step + k] * b[k / 4 * step + 4 * n + k % 4];
    }
  }
  nvila::set_tiles(shapes);
  nvila::load_tile<0>(sums.data(), step), nvila::load_tile<1>(a.data(), step), nvila::load_tile<2>(b.data(), step);
  nvila::dot_tiles<0, 1, 2>();
  nvila::store_tile<0>(sums.data(), step);
  expect(sums == want, "a product of two tiles is not the sum of its terms, or more than its rows was written");
  nvila::zero_tile<0>();
  nvila::store_tile<0>(sums.data(), step);
  for (int n = 0; n < outputs; ++n) expect(sums[n] == 0, "a tile was not zeroed");
  nvila::release_tiles();
}

// Of any form, any number of rows and of matrices' tiles.
void compare_products(Random& random, nvila::TileProduct& product) {
  const int inputs = 8 * random.between(1, 60), num_tiles = random.between(1, 9), rows = random.between(1, 70);
  const OwnedMatrix owned = random_matrix(random, random_form(random, inputs, num_tiles * kLanes - random.between(0, 15)));
  nvila::Matrix matrix(owned.form);
  const int groups = owned.form.num_input_groups;
  nvila::QuantizedRows x;
  x.reserve(nvila::pad(rows), inputs, groups);
  for (int row = 0; row < rows; ++row) matrix.quantize(random.normals(inputs, 0, 1).data(), row, x);
  std::vector<nvila::Matrix::Tile> tiles;
  for (int tile = 0; tile < num_tiles; ++tile) matrix.pack(owned.view(), tile), tiles.push_back(matrix.tile(tile));
  int64_t count = 0;
  auto expect_same = [&](int tile, int row, const F32& got) {
    F32 want[1][nvila::kMaxTileRows];
    matrix.multiply<1>({tiles[tile]}, x, row, 1, want);
    expect(!std::memcmp(&got, &want[0][0], sizeof got), "a product by tiles is another than without them");
    ++count;
  };
  product.multiply(owned.form, tiles.data(), num_tiles, x, rows, [&](int tile, int row, F32 first, F32 second) {
    expect_same(tile, row, first);
    if (tile + 1 < num_tiles) expect_same(tile + 1, row, second);
  });
  expect(count == int64_t{rows} * num_tiles, "not every row was multiplied by every tile once");
  if (random.chance(0.3)) product.release();
}

}  // namespace

int main(int argc, char** argv) {
  expect(argc == 3, "usage: tiles ROUNDS SEED");
  expect(nvila::enable_tiles(), "the system does not let this process use tiles");
  Random random(std::strtoull(argv[2], nullptr, 10));
  nvila::TileProduct product;
  for (int round = 0; round < 10 * std::atoi(argv[1]); ++round) {
    compare_instructions(random);
    compare_products(random, product);
    product.release();  // the other test sets shapes of its own
  }
  std::printf("%s: products by tiles are those without them\n", nvila_isa());
  return 0;
}
