// Random towers against plain loops over doubles, and arguments that break a rule.
//
// Usage: tower ROUNDS SEED.
#include <algorithm>
#include <cmath>

#include "random_model.h"

using namespace nvila_test;

namespace {

using Row = std::vector<double>;
// An activation that lies between two steps may be rounded to either, and shares are rounded to bfloat16.
constexpr double kMaxError = 0.1, kMaxMeanError = 0.015;
constexpr int64_t kEnough = 256;  // numbers of which a mean says something

struct TowerLayer {
  OwnedMatrix matrices[nvila::kNumTowerMatrices];
  std::vector<float> vectors[nvila::kNumTowerVectors];
};

struct TowerModel {
  nvila::TowerSpec spec;
  std::vector<TowerLayer> layers;
};

TowerModel random_tower(Random& random) {
  const int heads = random.between(1, 3), size = 16 * random.between(1, 6);
  const int layers = random.between(1, 2), inner = 16 * random.between(1, 12);
  TowerModel model{{heads * size, layers, heads, inner, random.between(1, 80), 1e-6f}, {}};
  if (random.chance(0.3)) model.spec.num_heads *= 2;  // of which one may begin amid a vector
  const nvila::TowerSpec& spec = model.spec;
  for (int i = 0; i < spec.num_layers; ++i) {
    TowerLayer layer;
    const float shared = random.pick({0.f, 0.03f}), other = random.pick({0.f, 0.03f});
    for (int slot = 0; slot < nvila::kNumTowerMatrices; ++slot) {
      const int inputs = slot == nvila::kFc2 ? spec.mlp_width : spec.width;
      const int outputs = slot == nvila::kFc1 ? spec.mlp_width : spec.width;
      const float scale = slot <= nvila::kTowerV ? shared : other;
      layer.matrices[slot] = random_matrix(random, {inputs, outputs, 1, 1, 8, 0, scale});
    }
    for (int slot = 0; slot < nvila::kNumTowerVectors; ++slot) {
      const bool is_weight = slot == nvila::kNorm1Weight || slot == nvila::kNorm2Weight;
      const int count = slot == nvila::kBiasFc1 ? spec.mlp_width : spec.width;
      layer.vectors[slot] = random.normals(count, is_weight ? 1 : 0, 0.2f);
    }
    model.layers.push_back(std::move(layer));
  }
  return model;
}

class LoadedTower {
 public:
  LoadedTower(const TowerModel& model, int threads) {
    must(nvila_tower_new(&model.spec, threads, &handle_));
    for (size_t i = 0; i < model.layers.size(); ++i) {
      for (int slot = 0; slot < nvila::kNumTowerMatrices; ++slot) {
        const nvila::MatrixView view = model.layers[i].matrices[slot].view();
        must(nvila_tower_set_matrix(handle_, int(i), slot, &view));
      }
      for (int slot = 0; slot < nvila::kNumTowerVectors; ++slot) {
        const std::vector<float>& vector = model.layers[i].vectors[slot];
        must(nvila_tower_set_vector(handle_, int(i), slot, vector.data(), int64_t(vector.size())));
      }
    }
  }
  ~LoadedTower() { must(nvila_tower_delete(handle_)); }
  LoadedTower(const LoadedTower&) = delete;
  LoadedTower& operator=(const LoadedTower&) = delete;

  void* handle() const { return handle_; }

 private:
  void* handle_ = nullptr;
};

Row product(const OwnedMatrix& matrix, const Row& x, const std::vector<float>& bias) {
  float top = 0;
  for (double number : x) top = std::max(top, std::fabs(float(number)));
  const float derived = top > 1e-30f ? top / 127.f : 1.f, fixed = matrix.form.input_scale;
  const float scale = fixed > 0 ? fixed : derived;
  Row y(bias.begin(), bias.end());
  for (size_t k = 0; k < x.size(); ++k) {
    const float rounded = std::clamp(std::nearbyint(float(x[k]) * (1.f / scale)), -127.f, 127.f);
    for (size_t n = 0; n < y.size(); ++n) {
      y[n] += double(rounded) * scale * matrix.values[k * matrix.stride_k + n * matrix.stride_n] * matrix.scales[n];
    }
  }
  return y;
}

Row norm(const Row& x, const std::vector<float>& weight, const std::vector<float>& bias, float eps) {
  double mean = 0, squares = 0;
  for (double number : x) mean += number / x.size();
  for (double number : x) squares += (number - mean) * (number - mean) / x.size();
  Row y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = (x[i] - mean) / std::sqrt(squares + eps) * weight[i] + bias[i];
  return y;
}

std::vector<Row> attend(const nvila::TowerSpec& spec, const std::vector<Row> (&qkv)[3]) {
  const int size = spec.width / spec.num_heads;
  std::vector<Row> mixed(spec.num_patches, Row(spec.width));
  for (int row = 0; row < spec.num_patches; ++row) {
    for (int at = 0; at < spec.width; at += size) {
      Row shares(spec.num_patches);
      double total = 0;
      for (int key = 0; key < spec.num_patches; ++key) {
        for (int i = at; i < at + size; ++i) shares[key] += qkv[0][row][i] * qkv[1][key][i] / std::sqrt(double(size));
      }
      const double top = *std::max_element(shares.begin(), shares.end());
      for (double& share : shares) total += share = std::exp(share - top);
      for (int key = 0; key < spec.num_patches; ++key) {
        for (int i = at; i < at + size; ++i) mixed[row][i] += shares[key] / total * qkv[2][key][i];
      }
    }
  }
  return mixed;
}

void run_reference(const TowerModel& model, std::vector<Row>& hidden) {
  using namespace nvila;
  const TowerSpec& spec = model.spec;
  for (const auto& [matrices, vectors] : model.layers) {
    std::vector<Row> qkv[3];
    for (const Row& row : hidden) {
      const Row normed = norm(row, vectors[kNorm1Weight], vectors[kNorm1Bias], spec.norm_eps);
      for (int i = 0; i < 3; ++i) qkv[i].push_back(product(matrices[kTowerQ + i], normed, vectors[kBiasTowerQ + i]));
    }
    const std::vector<Row> mixed = attend(spec, qkv);
    for (int row = 0; row < spec.num_patches; ++row) {
      const Row output = product(matrices[kTowerO], mixed[row], vectors[kBiasTowerO]);
      for (int i = 0; i < spec.width; ++i) hidden[row][i] += output[i];
      Row inner = product(matrices[kFc1], norm(hidden[row], vectors[kNorm2Weight], vectors[kNorm2Bias], spec.norm_eps),
                          vectors[kBiasFc1]);
      for (double& x : inner) x = x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
      const Row outer = product(matrices[kFc2], inner, vectors[kBiasFc2]);
      for (int i = 0; i < spec.width; ++i) hidden[row][i] += outer[i];
    }
  }
}

void compare(Random& random, double& worst) {
  const TowerModel model = random_tower(random);
  const LoadedTower tower(model, random.between(1, 4));
  const size_t count = size_t(model.spec.num_patches) * model.spec.width;
  for (int call = 0; call < 2; ++call) {
    std::vector<float> patches = random.normals(count, 0, 1);
    std::vector<Row> want;
    for (size_t i = 0; i < count; i += model.spec.width) {
      want.emplace_back(patches.begin() + i, patches.begin() + i + model.spec.width);
    }
    must(nvila_tower_run(tower.handle(), patches.data(), int64_t(count)));
    run_reference(model, want);
    double largest = 1, total = 0;
    for (const Row& row : want) {
      for (double number : row) largest = std::max(largest, std::fabs(number));
    }
    for (size_t i = 0; i < count; ++i) {
      const double error = std::fabs(patches[i] - want[i / model.spec.width][i % model.spec.width]) / largest;
      expect(error <= kMaxError, "a number is not that of the reference");
      worst = std::max(worst, error), total += error;
    }
    const double mean = total / double(std::max(int64_t(count), kEnough));
    expect(mean <= kMaxMeanError, "numbers are not near those of the reference");
  }
}

void refuse(int32_t status, const char* rule) {
  expect(status == nvila::kInvalid, "a wrong argument was taken");
  if (!std::strstr(nvila_last_error(), rule)) std::printf("%s does not say: %s\n", nvila_last_error(), rule);
  expect(std::strstr(nvila_last_error(), rule), "a message names no rule");
}

void refuse_arguments(Random& random) {
  const TowerModel model = random_tower(random);
  const LoadedTower tower(model, 1);
  const OwnedMatrix& matrix = model.layers[0].matrices[nvila::kFc1];
  nvila::MatrixView view = matrix.view();
  refuse(nvila_tower_set_matrix(tower.handle(), model.spec.num_layers, 0, &view), "layer must be");
  refuse(nvila_tower_set_matrix(tower.handle(), 0, nvila::kNumTowerMatrices, &view), "slot must be");
  view.form.num_input_groups = matrix.form.num_inputs / 4;
  refuse(nvila_tower_set_matrix(tower.handle(), 0, nvila::kFc1, &view), "inputs of one group");
  view = matrix.view(), view.values.size -= 1;
  refuse(nvila_tower_set_matrix(tower.handle(), 0, nvila::kFc1, &view), "values must hold");
  std::vector<float> patches(size_t(model.spec.num_patches) * model.spec.width);
  refuse(nvila_tower_set_vector(tower.handle(), 0, nvila::kBiasQ, patches.data(), 1), "must have");
  refuse(nvila_tower_run(tower.handle(), patches.data(), int64_t(patches.size()) - 1), "patches must have");
  refuse(nvila_tower_run(nullptr, patches.data(), int64_t(patches.size())), "there is no tower");
  void* other = nullptr;
  nvila::TowerSpec spec = model.spec;
  spec.width += 8;
  refuse(nvila_tower_new(&spec, 1, &other), "multiples of 16");
  spec = model.spec, spec.num_patches = 0;
  refuse(nvila_tower_new(&spec, 1, &other), "num_patches");
  must(nvila_tower_new(&model.spec, 1, &other));
  refuse(nvila_tower_run(other, patches.data(), int64_t(patches.size())), "not set");
  must(nvila_tower_delete(other));
}

}  // namespace

int main(int argc, char** argv) {
  expect(argc == 3, "usage: tower ROUNDS SEED");
  Random random(std::strtoull(argv[2], nullptr, 10));
  double worst = 0;
  for (int round = 0; round < std::atoi(argv[1]); ++round) compare(random, worst);
  refuse_arguments(random);
  std::printf("%s: worst error of a tower %.1e\n", nvila_isa(), worst);
  return 0;
}
