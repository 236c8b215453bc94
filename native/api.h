// The C interface of the library: what a caller passes, and the functions it calls.
//
// Every function that returns an int returns a `Status`, and `nvila_last_error` then gives the thread's message: the
// rule, and the values that broke it. Each array comes with its size, and all sizes are compared with the spec before
// anything is read or written, so that a wrong argument is an error and never an access out of bounds.
//
// Shapes: L tokens of a call, M rows of the cache after it, R tokens whose logits are wanted, D width, H query heads,
// K key and value heads, S head size, V vocabulary.
#pragma once

#include <cstdint>

namespace nvila {

enum Status : int32_t { kOk = 0, kInvalid = 1, kOutOfMemory = 2, kFailed = 3 };

enum MatrixSlot { kQ, kK, kV, kO, kGate, kUp, kDown, kNumMatrices };
enum VectorSlot { kInputNorm, kPostNorm, kBiasQ, kBiasK, kBiasV, kNumVectors };
enum TowerMatrixSlot { kTowerQ, kTowerK, kTowerV, kTowerO, kFc1, kFc2, kNumTowerMatrices };
enum TowerVectorSlot {
  kNorm1Weight, kNorm1Bias, kNorm2Weight, kNorm2Bias, kBiasTowerQ, kBiasTowerK, kBiasTowerV, kBiasTowerO, kBiasFc1,
  kBiasFc2, kNumTowerVectors
};
constexpr int32_t kHeadLayer = -1;  // holds the head and the last norm, each in slot 0

// An array of `size` elements.
template <class T>
struct Span {
  T* data;
  int64_t size;
};

struct Spec {
  int32_t width, num_layers, num_heads, num_kv_heads, head_size, mlp_width, vocab_size;
  float norm_eps;
};

struct TowerSpec {
  int32_t width, num_layers, num_heads, mlp_width, num_patches;
  float norm_eps;
};

// What a matrix is, and how its inputs are quantized.
struct MatrixForm {
  int32_t num_inputs, num_outputs;
  int32_t num_groups;        // of inputs that share a scale of the weights
  int32_t num_input_groups;  // of inputs that share a scale of the activations, a multiple of those
  int32_t bits;              // 4 or 8
  int32_t has_half_scales;   // float16, of four-bit weights only
  float input_scale;         // 0 to derive one for each group of each row
};

// A matrix as its owner holds it: `values[k * stride_k + n * stride_n]`, `scales[g * num_outputs + n]`.
struct MatrixView {
  Span<const int8_t> values;
  Span<const uint8_t> scales;  // the bytes of float32, or of float16
  int64_t stride_k, stride_n;
  MatrixForm form;
};

struct Call {
  Span<const float> embeds;   // (L, D)
  Span<const float> cos;      // (L, S)
  Span<const float> sin;      // (L, S)
  Span<const float> mask;     // (L, M), added to scores
  Span<const int64_t> rows;   // (R,), the tokens whose logits are wanted, each once
  Span<float> cache;          // from the first row of layer 0's keys to the last row of the last layer's values
  int64_t stride;             // floats from layer 0's keys to its values, from those to layer 1's keys and so on
  int64_t capacity;           // rows of each, (capacity, K, S)
  int64_t start;              // rows held before
  int64_t num_new;            // L
  Span<float> logits;         // (R, V)
};

}  // namespace nvila

#pragma GCC visibility push(default)
extern "C" {

// The instructions that this library was compiled for.
const char* nvila_isa();
// Whether the system lets this process use those instructions, which it must be asked for in some cases; 0 if not.
int32_t nvila_can_run();
// A number that changes with the sizes of the structures, so that a caller of another version is detected.
int64_t nvila_layout();
const char* nvila_last_error();

// A decoder is used by one thread at a time, in the process that made it; any other call fails.
int32_t nvila_decoder_new(const nvila::Spec* spec, int32_t threads, void** decoder);
int32_t nvila_decoder_delete(void* decoder);
int32_t nvila_decoder_set_matrix(void* decoder, int32_t layer, int32_t slot, const nvila::MatrixView* matrix);
int32_t nvila_decoder_set_vector(void* decoder, int32_t layer, int32_t slot, const float* values, int64_t count);
// Appends L tokens to the cache and writes the wanted logits; every matrix and norm must have been set.
int32_t nvila_decoder_run(void* decoder, const nvila::Call* call);

// A vision tower's layers, used as a decoder is. Every library has these functions; those without tiles fail.
int32_t nvila_tower_new(const nvila::TowerSpec* spec, int32_t threads, void** tower);
int32_t nvila_tower_delete(void* tower);
int32_t nvila_tower_set_matrix(void* tower, int32_t layer, int32_t slot, const nvila::MatrixView* matrix);
int32_t nvila_tower_set_vector(void* tower, int32_t layer, int32_t slot, const float* values, int64_t count);
// Passes patches, (P, E), through all layers, in place.
int32_t nvila_tower_run(void* tower, float* patches, int64_t count);

}
#pragma GCC visibility pop
