// Checks of what crosses the C interface. Each throws `std::invalid_argument` with the rule and the values.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "api.h"

namespace nvila {

constexpr int kWidthMultiple = 16;     // of every width: kernels read sixteen numbers at a time
constexpr int kMaxHeadsPerKv = 64;     // query heads that share a key and value head
constexpr int kMaxGroupInputs = 65536; // whose products a 32-bit sum holds: 2^31 / (127 * 255)
constexpr int64_t kMaxThreads = 1024, kMaxLayers = 4096, kMaxWidth = 1 << 20, kMaxVocab = 1 << 24;
constexpr int64_t kMaxNew = 1 << 20, kMaxRows = int64_t{1} << 31, kMaxSpan = int64_t{1} << 48;
constexpr int64_t kMaxPatches = 1 << 16;

template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

inline void require_between(const char* name, int64_t value, int64_t low, int64_t high) {
  require(low <= value && value <= high, name, " must be in [", low, ", ", high, "], got ", value);
}

template <class T>
void require_size(const char* name, const Span<T>& span, int64_t size) {
  require(span.size == size, name, " must have ", size, " elements, got ", span.size);
  require(span.data || !size, name, " has no data");
}

inline void check_spec(const Spec& spec, int32_t threads) {
  require_between("threads", threads, 1, kMaxThreads);
  require_between("num_layers", spec.num_layers, 1, kMaxLayers);
  require_between("vocab_size", spec.vocab_size, 1, kMaxVocab);
  const struct {
    const char* name;
    int32_t value;
  } widths[] = {{"width", spec.width}, {"mlp_width", spec.mlp_width}, {"head_size", spec.head_size}};
  for (const auto& each : widths) {
    require_between(each.name, each.value, 1, kMaxWidth);
    require(each.value % kWidthMultiple == 0, each.name, " must be a multiple of ", kWidthMultiple, ", got ",
            each.value);
  }
  require_between("num_heads", spec.num_heads, 1, kMaxWidth);
  require_between("num_kv_heads", spec.num_kv_heads, 1, spec.num_heads);
  require(int64_t{spec.num_heads} * spec.head_size == spec.width, "num_heads times head_size must be the width ",
          spec.width, ", got ", spec.num_heads, " times ", spec.head_size);
  require(spec.num_heads % spec.num_kv_heads == 0, "num_heads must be a multiple of num_kv_heads, got ",
          spec.num_heads, " and ", spec.num_kv_heads);
  require(spec.num_heads / spec.num_kv_heads <= kMaxHeadsPerKv, "at most ", kMaxHeadsPerKv,
          " query heads may share a key and value head, got ", spec.num_heads / spec.num_kv_heads);
  require(spec.norm_eps > 0 && std::isfinite(spec.norm_eps), "norm_eps must be a number above 0, got ", spec.norm_eps);
}

inline void check_place(const Spec& spec, int32_t layer, int32_t slot, int32_t num_slots) {
  require_between("layer", layer, kHeadLayer, spec.num_layers - 1);
  require_between("slot", slot, 0, layer == kHeadLayer ? 0 : num_slots - 1);
}

inline int32_t num_inputs_of(const Spec& spec, int32_t layer, int32_t slot) {
  return layer != kHeadLayer && slot == kDown ? spec.mlp_width : spec.width;
}

inline int32_t num_outputs_of(const Spec& spec, int32_t layer, int32_t slot) {
  if (layer == kHeadLayer) return spec.vocab_size;
  if (slot == kK || slot == kV) return spec.num_kv_heads * spec.head_size;
  return slot == kGate || slot == kUp ? spec.mlp_width : spec.width;
}

inline void check_form(const MatrixForm& form) {
  require(form.bits == 4 || form.bits == 8, "bits must be 4 or 8, got ", form.bits);
  require(form.bits == 4 || !form.has_half_scales, "float16 scales are for four-bit weights, got ", form.bits, " bits");
  require_between("num_input_groups", form.num_input_groups, 1, form.num_inputs);
  require_between("num_groups", form.num_groups, 1, form.num_input_groups);
  require(form.num_input_groups % form.num_groups == 0, "num_input_groups must be a multiple of num_groups, got ",
          form.num_input_groups, " and ", form.num_groups);
  const int32_t block = form.bits == 4 ? 8 : 4, size = form.num_inputs / form.num_input_groups;
  require(form.num_inputs % form.num_input_groups == 0 && size % block == 0, "groups must be multiples of ", block,
          " inputs, got ", form.num_inputs, " inputs in ", form.num_input_groups, " groups");
  require_between("inputs of a group", size, block, kMaxGroupInputs);
  require(form.input_scale >= 0 && std::isfinite(form.input_scale), "input_scale must be 0 or above, got ",
          form.input_scale);
}

// Of a matrix at a place, whatever the model.
inline void check_view(int32_t layer, int32_t slot, int32_t num_inputs, int32_t num_outputs, const MatrixView& matrix) {
  const MatrixForm& form = matrix.form;
  require(form.num_inputs == num_inputs && form.num_outputs == num_outputs, "the matrix of layer ", layer, " slot ",
          slot, " must be ", num_inputs, " x ", num_outputs, ", got ", form.num_inputs, " x ", form.num_outputs);
  check_form(form);
  const int64_t scale_bytes = form.has_half_scales ? 2 : 4;
  require_size("scales", matrix.scales, scale_bytes * form.num_groups * num_outputs);
  const int64_t last = matrix.values.size - 1;
  require(matrix.values.data && last >= 0 && last < kMaxSpan, "values must be an array, got ", last + 1, " elements");
  // Each stride by itself first: their sum then fits 64 bits.
  auto reaches = [&](int64_t stride, int32_t count) { return stride >= 0 && (count == 1 || stride <= last / (count - 1)); };
  require(reaches(matrix.stride_k, num_inputs) && reaches(matrix.stride_n, num_outputs) &&
              matrix.stride_k * (num_inputs - 1) + matrix.stride_n * (num_outputs - 1) <= last,
          "values must hold ", num_inputs, " x ", num_outputs, " at strides of ", matrix.stride_k, " and ",
          matrix.stride_n, ", got ", last + 1, " elements");
}

inline void check_matrix(const Spec& spec, int32_t layer, int32_t slot, const MatrixView& matrix) {
  check_place(spec, layer, slot, kNumMatrices);
  check_view(layer, slot, num_inputs_of(spec, layer, slot), num_outputs_of(spec, layer, slot), matrix);
}

inline void check_vector(const Spec& spec, int32_t layer, int32_t slot, Span<const float> values) {
  check_place(spec, layer, slot, kNumVectors);
  const bool is_kv = layer != kHeadLayer && (slot == kBiasK || slot == kBiasV);
  require_size("the vector", values, is_kv ? spec.num_kv_heads * spec.head_size : spec.width);
}

inline void check_rows(const Span<const int64_t>& rows, int64_t num_new) {
  require_between("wanted rows", rows.size, 0, num_new);
  require(rows.data || !rows.size, "rows has no data");
  std::vector<bool> seen(num_new);
  for (int64_t i = 0; i < rows.size; ++i) {
    require_between("a wanted row", rows.data[i], 0, num_new - 1);
    require(!seen[rows.data[i]], "each token has its logits once, got ", rows.data[i], " twice");
    seen[rows.data[i]] = true;
  }
}

inline void check_call(const Spec& spec, const Call& call) {
  require_between("new tokens", call.num_new, 1, kMaxNew);
  require_between("capacity", call.capacity, 1, kMaxRows);
  require(call.start >= 0 && call.start <= call.capacity - call.num_new, "a cache of ", call.capacity,
          " rows cannot take ", call.num_new, " behind ", call.start);
  require_size("embeds", call.embeds, call.num_new * spec.width);
  require_size("cos", call.cos, call.num_new * spec.head_size);
  require_size("sin", call.sin, call.num_new * spec.head_size);
  require_size("mask", call.mask, call.num_new * (call.start + call.num_new));
  check_rows(call.rows, call.num_new);
  require_size("logits", call.logits, call.rows.size * spec.vocab_size);
  const int64_t buffer = call.capacity * spec.num_kv_heads * spec.head_size, num_buffers = 2 * spec.num_layers;
  require(call.cache.data && buffer <= call.stride && call.stride <= call.cache.size && call.cache.size <= kMaxSpan &&
              (num_buffers - 1) * call.stride + buffer <= call.cache.size,
          "the cache must have ", num_buffers, " buffers of ", buffer, " floats, got ", call.cache.size,
          " floats at a stride of ", call.stride);
}

inline void check_tower_spec(const TowerSpec& spec, int32_t threads) {
  require_between("threads", threads, 1, kMaxThreads);
  require_between("num_layers", spec.num_layers, 1, kMaxLayers);
  require_between("num_patches", spec.num_patches, 1, kMaxPatches);
  require_between("width", spec.width, 1, kMaxWidth);
  require_between("mlp_width", spec.mlp_width, 1, kMaxWidth);
  require(spec.width % kWidthMultiple == 0 && spec.mlp_width % kWidthMultiple == 0,
          "width and mlp_width must be multiples of ", kWidthMultiple, ", got ", spec.width, " and ", spec.mlp_width);
  require_between("num_heads", spec.num_heads, 1, spec.width);
  require(spec.width % spec.num_heads == 0 && spec.width / spec.num_heads % 2 == 0,
          "width must be an even multiple of num_heads, got ", spec.width, " and ", spec.num_heads);
  require(spec.norm_eps > 0 && std::isfinite(spec.norm_eps), "norm_eps must be a number above 0, got ", spec.norm_eps);
}

inline void check_tower_place(const TowerSpec& spec, int32_t layer, int32_t slot, int32_t num_slots) {
  require_between("layer", layer, 0, spec.num_layers - 1);
  require_between("slot", slot, 0, num_slots - 1);
}

inline void check_tower_matrix(const TowerSpec& spec, int32_t layer, int32_t slot, const MatrixView& matrix) {
  check_tower_place(spec, layer, slot, kNumTowerMatrices);
  const int32_t num_inputs = slot == kFc2 ? spec.mlp_width : spec.width;
  check_view(layer, slot, num_inputs, slot == kFc1 ? spec.mlp_width : spec.width, matrix);
  require(matrix.form.bits == 8 && matrix.form.num_input_groups == 1,
          "a tower's matrices have eight bits and inputs of one group, got ", matrix.form.bits, " bits and ",
          matrix.form.num_input_groups, " groups");
}

inline void check_tower_vector(const TowerSpec& spec, int32_t layer, int32_t slot, Span<const float> values) {
  check_tower_place(spec, layer, slot, kNumTowerVectors);
  require_size("the vector", values, slot == kBiasFc1 ? spec.mlp_width : spec.width);
}

}  // namespace nvila
