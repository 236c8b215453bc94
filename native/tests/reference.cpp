#include "reference.h"

#include <algorithm>
#include <cmath>

namespace nvila_test {

using nvila::MatrixForm;
using nvila::Spec;
using Row = std::vector<double>;

namespace {

// Rounds as the kernels do, in float32, so that only sums differ.
Row product(const OwnedMatrix& matrix, const Row& x) {
  const MatrixForm& form = matrix.form;
  const int size = form.num_inputs / form.num_input_groups, repeats = form.num_input_groups / form.num_groups;
  Row y(form.num_outputs);
  for (int g = 0; g < form.num_input_groups; ++g) {
    float top = 0;
    for (int k = g * size; k < (g + 1) * size; ++k) top = std::max(top, std::fabs(float(x[k])));
    const float derived = top > 1e-30f ? top / 127.f : 1.f, scale = form.input_scale > 0 ? form.input_scale : derived;
    std::vector<int64_t> rounded(size);
    for (int i = 0; i < size; ++i) {
      const float number = std::nearbyint(float(x[g * size + i]) * (1.f / scale));
      rounded[i] = int64_t(std::clamp(number, -127.f, 127.f));
    }
    for (int n = 0; n < form.num_outputs; ++n) {
      int64_t sum = 0;
      for (int i = 0; i < size; ++i) {
        sum += rounded[i] * matrix.values[(g * size + i) * matrix.stride_k + n * matrix.stride_n];
      }
      y[n] += double(sum) * scale * matrix.scales[size_t(g / repeats) * form.num_outputs + n];
    }
  }
  return y;
}

Row norm(const Row& x, const std::vector<float>& weight, float eps) {
  double squares = 0;
  for (double number : x) squares += number * number;
  const double scale = 1 / std::sqrt(squares / x.size() + eps);
  Row y(x.size());
  for (size_t i = 0; i < x.size(); ++i) y[i] = x[i] * scale * weight[i];
  return y;
}

void add(Row& x, const Row& y) {
  for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

Row with_bias(Row x, const std::vector<float>& bias) {
  for (size_t i = 0; i < bias.size(); ++i) x[i] += bias[i];
  return x;
}

void rotate(const Tokens& tokens, int64_t token, int size, double* x) {
  const float *cos = &tokens.cos[token * size], *sin = &tokens.sin[token * size];
  for (int i = 0; i < size / 2; ++i) {
    const double a = x[i], b = x[i + size / 2];
    x[i] = a * cos[i] - b * sin[i];
    x[i + size / 2] = b * cos[i + size / 2] + a * sin[i + size / 2];
  }
}

Row attend(const Spec& spec, const Row& query, const Tokens& tokens, int64_t token, const Row& keys,
           const Row& values) {
  const int s = spec.head_size, per_kv = spec.num_heads / spec.num_kv_heads;
  const int64_t num_all = tokens.start + tokens.num_new, step = int64_t{spec.num_kv_heads} * s;
  Row out(size_t(spec.num_heads) * s);
  for (int head = 0; head < spec.num_heads; ++head) {
    const int kv = head / per_kv;
    Row scores(tokens.start + token + 1);  // what comes later is never attended to
    for (size_t m = 0; m < scores.size(); ++m) {
      double sum = 0;
      for (int i = 0; i < s; ++i) sum += query[head * s + i] * keys[m * step + kv * s + i];
      scores[m] = sum / std::sqrt(double(s)) + tokens.mask[token * num_all + m];
    }
    const double top = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (double& score : scores) total += score = std::exp(score - top);
    for (size_t m = 0; m < scores.size(); ++m) {
      for (int i = 0; i < s; ++i) out[head * s + i] += scores[m] / total * values[m * step + kv * s + i];
    }
  }
  return out;
}

void run_layer(const Model& model, int i, const Tokens& tokens, std::vector<Row>& hidden, ReferenceCache& cache) {
  const Spec& spec = model.spec;
  const Layer& layer = model.layers[i];
  const int s = spec.head_size, step = spec.num_kv_heads * s;
  std::vector<Row> queries;
  Row &keys = cache.keys[i], &values = cache.values[i];
  keys.resize((tokens.start + tokens.num_new) * step);
  values.resize(keys.size());
  for (int64_t t = 0; t < tokens.num_new; ++t) {
    const Row x = norm(hidden[t], layer.vectors[nvila::kInputNorm], spec.norm_eps);
    queries.push_back(with_bias(product(layer.matrices[nvila::kQ], x), layer.vectors[nvila::kBiasQ]));
    Row key = with_bias(product(layer.matrices[nvila::kK], x), layer.vectors[nvila::kBiasK]);
    const Row value = with_bias(product(layer.matrices[nvila::kV], x), layer.vectors[nvila::kBiasV]);
    for (int head = 0; head < spec.num_heads; ++head) rotate(tokens, t, s, &queries[t][head * s]);
    for (int head = 0; head < spec.num_kv_heads; ++head) rotate(tokens, t, s, &key[head * s]);
    std::copy(key.begin(), key.end(), keys.begin() + (tokens.start + t) * step);
    std::copy(value.begin(), value.end(), values.begin() + (tokens.start + t) * step);
  }
  for (int64_t t = 0; t < tokens.num_new; ++t) {
    add(hidden[t], product(layer.matrices[nvila::kO], attend(spec, queries[t], tokens, t, keys, values)));
    const Row x = norm(hidden[t], layer.vectors[nvila::kPostNorm], spec.norm_eps);
    const Row gate = product(layer.matrices[nvila::kGate], x), up = product(layer.matrices[nvila::kUp], x);
    Row inner(gate.size());
    for (size_t j = 0; j < inner.size(); ++j) inner[j] = gate[j] / (std::exp(-gate[j]) + 1) * up[j];
    add(hidden[t], product(layer.matrices[nvila::kDown], inner));
  }
}

}  // namespace

nvila::MatrixView OwnedMatrix::view() const {
  return {{values.data(), int64_t(values.size())},
          {scale_bytes.data(), int64_t(scale_bytes.size())},
          stride_k,
          stride_n,
          form};
}

std::vector<double> run_reference(const Model& model, const Tokens& tokens, ReferenceCache& cache) {
  const int width = model.spec.width;
  std::vector<Row> hidden;
  for (int64_t t = 0; t < tokens.num_new; ++t) {
    hidden.emplace_back(tokens.embeds.begin() + t * width, tokens.embeds.begin() + (t + 1) * width);
  }
  for (int i = 0; i < model.spec.num_layers; ++i) run_layer(model, i, tokens, hidden, cache);
  std::vector<double> logits;
  for (int64_t row : tokens.rows) {
    const Row out = product(model.head, norm(hidden[row], model.last_norm, model.spec.norm_eps));
    logits.insert(logits.end(), out.begin(), out.end());
  }
  return logits;
}

}  // namespace nvila_test
