// The exported functions. All else is hidden: several of these libraries may be loaded at once, each with vectors of
// its own.
#include "api.h"

#include <unistd.h>

#include <atomic>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "checks.h"
#include "decoder.h"

namespace {

// A decoder, and who may use it: one thread at a time, of the process whose threads it has.
struct Handle {
  nvila::Decoder decoder;
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

// Has a decoder to itself for as long as it lives.
class Turn {
 public:
  explicit Turn(void* handle) : handle_(static_cast<Handle*>(handle)) {
    nvila::require(handle_, "there is no decoder");
    nvila::require(handle_->process == getpid(), "the decoder belongs to process ", handle_->process,
                   ", whose threads do not survive a fork; this is ", getpid());
    nvila::require(!handle_->is_busy.exchange(true, std::memory_order_acquire),
                   "another thread runs this decoder; one thread may at a time");
  }
  ~Turn() { handle_->is_busy.store(false, std::memory_order_release); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

  nvila::Decoder* operator->() const { return &handle_->decoder; }

 private:
  Handle* handle_;
};

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
    *decoder = new Handle{{*spec, threads}};
  });
}

int32_t nvila_decoder_delete(void* decoder) {
  return guard([&] {
    { Turn turn(decoder); }
    delete static_cast<Handle*>(decoder);
  });
}

int32_t nvila_decoder_set_matrix(void* decoder, int32_t layer, int32_t slot, const nvila::MatrixView* matrix) {
  return guard([&] {
    nvila::require(matrix, "there is no matrix");
    Turn(decoder)->set_matrix(layer, slot, *matrix);
  });
}

int32_t nvila_decoder_set_vector(void* decoder, int32_t layer, int32_t slot, const float* values, int64_t count) {
  return guard([&] { Turn(decoder)->set_vector(layer, slot, {values, count}); });
}

int32_t nvila_decoder_run(void* decoder, const nvila::Call* call) {
  return guard([&] {
    nvila::require(call, "there is no call");
    Turn(decoder)->run(*call);
  });
}
