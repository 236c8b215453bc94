// Wrong arguments are refused with a message, and random ones never read or write out of bounds.
//
// Usage: wrong_arguments ROUNDS SEED. Arrays have their true sizes, so that the sanitizer sees any other access.
#include <functional>
#include <limits>
#include <string>

#include "random_model.h"

using namespace nvila_test;

namespace {

// A decoder and a valid call of it.
struct Case {
  explicit Case(Random& random)
      : model(random_model(random, true)),
        decoder(model, 2),
        tokens(random_tokens(random, model.spec, 2, 5)),
        cache(size_t(2) * model.spec.num_layers * 8 * model.spec.num_kv_heads * model.spec.head_size) {
    tokens.rows = {4, 0};
    logits.resize(2 * size_t(model.spec.vocab_size));
    auto span = [](auto& vector) { return nvila::Span<const float>{vector.data(), int64_t(vector.size())}; };
    call = {span(tokens.embeds), span(tokens.cos), span(tokens.sin), span(tokens.mask),
            {tokens.rows.data(), 2}, {cache.data(), int64_t(cache.size())},
            int64_t(cache.size()) / (2 * model.spec.num_layers), 8, 2, 5, {logits.data(), int64_t(logits.size())}};
  }

  Model model;
  LoadedDecoder decoder;
  Tokens tokens;
  std::vector<float> cache, logits;
  nvila::Call call;
};

void expect_refused(int32_t status, const char* rule) {
  if (status == nvila::kInvalid && std::strstr(nvila_last_error(), rule)) return;
  std::printf("expected an error about '%s', got status %d: %s\n", rule, status, nvila_last_error());
  fail("a wrong argument was not refused");
}

void refuse_calls(Case& valid) {
  const int64_t repeated[] = {1, 1}, outside[] = {5, 0}, negative[] = {-1, 0};
  const struct {
    const char* rule;
    std::function<void(nvila::Call&)> change;
  } changes[] = {
      {"new tokens must be", [](auto& call) { call.num_new = 0; }},
      {"new tokens must be", [](auto& call) { call.num_new = -5; }},
      {"capacity must be", [](auto& call) { call.capacity = 0; }},
      {"cannot take 5 behind 4", [](auto& call) { call.start = 4; }},
      {"cannot take 5 behind -1", [](auto& call) { call.start = -1; }},
      {"the cache must have", [](auto& call) { ++call.capacity; }},
      {"the cache must have", [](auto& call) { --call.cache.size; }},
      {"the cache must have", [](auto& call) { ++call.stride; }},
      {"the cache must have", [](auto& call) { --call.stride; }},
      {"the cache must have", [](auto& call) { call.stride = std::numeric_limits<int64_t>::max(); }},
      {"the cache must have", [](auto& call) { call.cache.data = nullptr; }},
      {"embeds must have", [](auto& call) { --call.embeds.size; }},
      {"embeds has no data", [](auto& call) { call.embeds.data = nullptr; }},
      {"cos must have", [](auto& call) { ++call.cos.size; }},
      {"sin must have", [](auto& call) { call.sin.size = 0; }},
      {"mask must have", [](auto& call) { --call.start; }},
      {"logits must have", [](auto& call) { --call.logits.size; }},
      {"wanted rows must be", [](auto& call) { call.rows.size = 6; }},
      {"has its logits once, got 1 twice", [&](auto& call) { call.rows.data = repeated; }},
      {"a wanted row must be in [0, 4], got 5", [&](auto& call) { call.rows.data = outside; }},
      {"a wanted row must be in [0, 4], got -1", [&](auto& call) { call.rows.data = negative; }},
  };
  for (const auto& each : changes) {
    nvila::Call call = valid.call;
    each.change(call);
    expect_refused(nvila_decoder_run(valid.decoder.handle(), &call), each.rule);
  }
  expect_refused(nvila_decoder_run(valid.decoder.handle(), nullptr), "there is no call");
  expect_refused(nvila_decoder_run(nullptr, &valid.call), "there is no decoder");
}

void refuse_weights(Case& valid) {
  const OwnedMatrix& matrix = valid.model.layers[0].matrices[nvila::kO];
  const struct {
    const char* rule;
    std::function<void(nvila::MatrixView&)> change;
  } changes[] = {
      {"must be", [](auto& view) { view.form.num_inputs *= 2; }},
      {"must be", [](auto& view) { view.form.num_outputs -= 16; }},
      {"bits must be", [](auto& view) { view.form.bits = 2; }},
      {"float16 scales", [](auto& view) { view.form.bits = 8, view.form.has_half_scales = 1; }},
      {"num_input_groups must be", [](auto& view) { view.form.num_input_groups = 0; }},
      {"num_groups must be", [](auto& view) { view.form.num_groups = 0; }},
      {"num_groups must be", [](auto& view) { view.form.num_groups = view.form.num_input_groups + 1; }},
      {"multiples of", [](auto& view) { view.form.num_input_groups = view.form.num_inputs; }},
      {"input_scale", [](auto& view) { view.form.input_scale = -1; }},
      {"input_scale", [](auto& view) { view.form.input_scale = std::numeric_limits<float>::infinity(); }},
      {"scales must have", [](auto& view) { --view.scales.size; }},
      {"values must hold", [](auto& view) { --view.values.size; }},
      {"values must hold", [](auto& view) { view.stride_k = -1; }},
      {"values must hold", [](auto& view) { view.stride_n = std::numeric_limits<int64_t>::max() / 2; }},
      {"values must be", [](auto& view) { view.values.data = nullptr; }},
  };
  for (const auto& each : changes) {
    nvila::MatrixView view = matrix.view();
    each.change(view);
    expect_refused(nvila_decoder_set_matrix(valid.decoder.handle(), 0, nvila::kO, &view), each.rule);
  }
  const nvila::MatrixView view = matrix.view();
  const int num_layers = valid.model.spec.num_layers;
  expect_refused(nvila_decoder_set_matrix(valid.decoder.handle(), num_layers, nvila::kO, &view), "layer must be");
  expect_refused(nvila_decoder_set_matrix(valid.decoder.handle(), -2, nvila::kO, &view), "layer must be");
  expect_refused(nvila_decoder_set_matrix(valid.decoder.handle(), 0, nvila::kNumMatrices, &view), "slot must be");
  expect_refused(nvila_decoder_set_matrix(valid.decoder.handle(), nvila::kHeadLayer, 1, &view), "slot must be");
  const float number = 0;
  expect_refused(nvila_decoder_set_vector(valid.decoder.handle(), 0, nvila::kBiasK, &number, 1), "vector must have");
  expect_refused(nvila_decoder_set_vector(valid.decoder.handle(), 0, -1, &number, 1), "slot must be");
}

void refuse_specs(const nvila::Spec& valid) {
  const struct {
    const char* rule;
    std::function<void(nvila::Spec&)> change;
  } changes[] = {
      {"width must be", [](auto& spec) { spec.width = 0; }},
      {"must be a multiple of 16", [](auto& spec) { spec.mlp_width = 40; }},
      {"times head_size must be the width", [](auto& spec) { spec.width += 16; }},
      {"num_layers must be", [](auto& spec) { spec.num_layers = -1; }},
      {"num_kv_heads must be", [](auto& spec) { spec.num_kv_heads = 0; }},
      {"vocab_size must be", [](auto& spec) { spec.vocab_size = 1 << 30; }},
      {"norm_eps must be", [](auto& spec) { spec.norm_eps = std::numeric_limits<float>::quiet_NaN(); }},
      {"at most 64", [](auto& spec) { spec.head_size = 16, spec.num_heads = 65, spec.num_kv_heads = 1, spec.width = 1040; }},
  };
  void* decoder = nullptr;
  for (const auto& each : changes) {
    nvila::Spec spec = valid;
    each.change(spec);
    expect_refused(nvila_decoder_new(&spec, 1, &decoder), each.rule);
  }
  for (int threads : {0, -1, 100000}) expect_refused(nvila_decoder_new(&valid, threads, &decoder), "threads must be");
  expect(!decoder, "a refused decoder was made");
  must(nvila_decoder_new(&valid, 1, &decoder));
  nvila::Call call{};
  expect_refused(nvila_decoder_run(decoder, &call), "must be");
  must(nvila_decoder_delete(decoder));
}

// A decoder without all of its weights runs nothing.
void refuse_incomplete(Case& valid) {
  void* decoder = nullptr;
  must(nvila_decoder_new(&valid.model.spec, 1, &decoder));
  expect_refused(nvila_decoder_run(decoder, &valid.call), "not set");
  must(nvila_decoder_delete(decoder));
}

// Numbers near the right ones, and far off.
template <class T>
void disturb(Random& random, T& number) {
  if (random.chance(0.7)) return;
  const int64_t odd[] = {0, 1, -1, 16, 4096, number + 1, number - 1, 2 * int64_t{number},
                         std::numeric_limits<T>::max(), std::numeric_limits<T>::min()};
  number = T(odd[random.between(0, 9)]);
}

// A span is never said to be longer than it is.
template <class T>
void shorten(Random& random, nvila::Span<T>& span) {
  if (random.chance(0.15)) span.size = random.between(0, int(span.size));
}

void disturb_call(Random& random, Case& valid) {
  nvila::Call call = valid.call;
  std::vector<int64_t> rows = valid.tokens.rows;
  for (int64_t& row : rows) disturb(random, row);
  call.rows.data = rows.data();
  for (auto* span : {&call.embeds, &call.cos, &call.sin, &call.mask}) shorten(random, *span);
  shorten(random, call.cache), shorten(random, call.logits), shorten(random, call.rows);
  for (int64_t* number : {&call.stride, &call.capacity, &call.start, &call.num_new}) disturb(random, *number);
  nvila_decoder_run(valid.decoder.handle(), &call);
}

void disturb_matrix(Random& random, Case& valid) {
  int32_t layer = random.between(0, valid.model.spec.num_layers - 1), slot = random.between(0, nvila::kNumMatrices - 1);
  nvila::MatrixView view = valid.model.layers[layer].matrices[slot].view();
  disturb(random, layer), disturb(random, slot);
  shorten(random, view.values), shorten(random, view.scales);
  for (int64_t* number : {&view.stride_k, &view.stride_n}) disturb(random, *number);
  nvila::MatrixForm& form = view.form;
  for (int32_t* number : {&form.num_inputs, &form.num_outputs, &form.num_groups, &form.num_input_groups, &form.bits,
                          &form.has_half_scales}) {
    disturb(random, *number);
  }
  nvila_decoder_set_matrix(valid.decoder.handle(), layer, slot, &view);
  nvila_decoder_run(valid.decoder.handle(), &valid.call);
}

}  // namespace

int main(int argc, char** argv) {
  expect(argc == 3, "usage: wrong_arguments ROUNDS SEED");
  Random random(std::strtoull(argv[2], nullptr, 10));
  for (int round = 0; round < std::atoi(argv[1]); ++round) {
    Case valid(random);
    must(nvila_decoder_run(valid.decoder.handle(), &valid.call));
    const std::vector<float> logits = valid.logits;
    refuse_calls(valid);
    refuse_weights(valid);
    refuse_specs(valid.model.spec);
    refuse_incomplete(valid);
    for (int i = 0; i < 200; ++i) disturb_call(random, valid);
    must(nvila_decoder_run(valid.decoder.handle(), &valid.call));
    expect(valid.logits == logits, "what was refused left a trace");
    for (int i = 0; i < 200; ++i) disturb_matrix(random, valid);
  }
  std::printf("%s: every wrong argument was refused\n", nvila_isa());
  return 0;
}
