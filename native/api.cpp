// The exported functions. All else is hidden: several of these libraries may be loaded at once, each with vectors of
// its own.
#include "api.h"

#include <unistd.h>

#include <atomic>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "checks.h"
#include "decoder.h"
#include "tower.h"

namespace {

// A decoder or a tower, and who may use it: one thread at a time, of the process whose threads it has.
template <class Model>
struct Handle {
  Model model;
  const pid_t process = getpid();
  std::atomic<bool> is_busy{false};
};

thread_local std::string last_error;

int32_t fail(nvila::Status status, const char* message) {
  try {
    last_error = message;
  } catch (const std::bad_alloc&) {
    last_error.clear();
  }
  return status;
}

// Returns the status of `work`, which may throw.
template <class Work>
int32_t guard(Work work) {
  try {
    work();
    return nvila::kOk;
  } catch (const std::invalid_argument& error) {
    return fail(nvila::kInvalid, error.what());
  } catch (const std::bad_alloc&) {
    return fail(nvila::kOutOfMemory, "there is no memory left for the decoder");
  } catch (const std::exception& error) {
    return fail(nvila::kFailed, error.what());
  } catch (...) {
    return fail(nvila::kFailed, "an unknown error");
  }
}

// Has a model to itself for as long as it lives.
template <class Model>
class Turn {
 public:
  explicit Turn(void* handle) : handle_(static_cast<Handle<Model>*>(handle)) {
    nvila::require(handle_, "there is no ", kName);
    nvila::require(handle_->process == getpid(), "the ", kName, " belongs to process ", handle_->process,
                   ", whose threads do not survive a fork; this is ", getpid());
    nvila::require(!handle_->is_busy.exchange(true, std::memory_order_acquire),
                   "another thread runs this ", kName, "; one thread may at a time");
  }
  ~Turn() { handle_->is_busy.store(false, std::memory_order_release); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

  Model* operator->() const { return &handle_->model; }

 private:
  static constexpr const char* kName = std::is_same_v<Model, nvila::Tower> ? "tower" : "decoder";
  Handle<Model>* handle_;
};
using DecoderTurn = Turn<nvila::Decoder>;
using TowerTurn = Turn<nvila::Tower>;

}  // namespace

const char* nvila_isa() { return nvila::kIsa; }

int64_t nvila_layout() {
  return int64_t{sizeof(nvila::Spec)} << 20 | sizeof(nvila::MatrixView) << 10 | sizeof(nvila::Call);
}

int32_t nvila_can_run() { return nvila::enable_tiles(); }

const char* nvila_last_error() { return last_error.c_str(); }

int32_t nvila_decoder_new(const nvila::Spec* spec, int32_t threads, void** decoder) {
  return guard([&] {
    nvila::require(spec && decoder, "a spec and a place for the decoder are needed");
    nvila::check_spec(*spec, threads);
    nvila::require(nvila::enable_tiles(), "the system does not let this process use the tiles of AMX");
    *decoder = new Handle<nvila::Decoder>{{*spec, threads}};
  });
}

int32_t nvila_decoder_delete(void* decoder) {
  return guard([&] {
    { DecoderTurn turn(decoder); }
    delete static_cast<Handle<nvila::Decoder>*>(decoder);
  });
}

int32_t nvila_decoder_set_matrix(void* decoder, int32_t layer, int32_t slot, const nvila::MatrixView* matrix) {
  return guard([&] {
    nvila::require(matrix, "there is no matrix");
    DecoderTurn(decoder)->set_matrix(layer, slot, *matrix);
  });
}

int32_t nvila_decoder_set_vector(void* decoder, int32_t layer, int32_t slot, const float* values, int64_t count) {
  return guard([&] { DecoderTurn(decoder)->set_vector(layer, slot, {values, count}); });
}

int32_t nvila_decoder_run(void* decoder, const nvila::Call* call) {
  return guard([&] {
    nvila::require(call, "there is no call");
    DecoderTurn(decoder)->run(*call);
  });
}

int32_t nvila_tower_new(const nvila::TowerSpec* spec, int32_t threads, void** tower) {
  return guard([&] {
    nvila::require(spec && tower, "a spec and a place for the tower are needed");
    nvila::require(nvila::kHasTiles, "this library has no tiles, without which there is no tower");
    nvila::check_tower_spec(*spec, threads);
    nvila::require(nvila::enable_tiles(), "the system does not let this process use the tiles of AMX");
    *tower = new Handle<nvila::Tower>{{*spec, threads}};
  });
}

int32_t nvila_tower_delete(void* tower) {
  return guard([&] {
    { TowerTurn turn(tower); }
    delete static_cast<Handle<nvila::Tower>*>(tower);
  });
}

int32_t nvila_tower_set_matrix(void* tower, int32_t layer, int32_t slot, const nvila::MatrixView* matrix) {
  return guard([&] {
    nvila::require(matrix, "there is no matrix");
    TowerTurn(tower)->set_matrix(layer, slot, *matrix);
  });
}

int32_t nvila_tower_set_vector(void* tower, int32_t layer, int32_t slot, const float* values, int64_t count) {
  return guard([&] { TowerTurn(tower)->set_vector(layer, slot, {values, count}); });
}

int32_t nvila_tower_run(void* tower, float* patches, int64_t count) {
  return guard([&] { TowerTurn(tower)->run({patches, count}); });
}
