// Memory that is read from end to end in each step.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace nvila {

constexpr size_t kHugePage = size_t{2} << 20;

// Zeroed memory, in huge pages where the system has them: reading weights would wait for the page tables else.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t count) : count_(count) {
    const size_t bytes = count * sizeof(T), huge = bytes / kHugePage * kHugePage;
    const size_t align = huge ? kHugePage : 64;
    // 64 bytes more than asked for, since sixteen numbers are loaded where the last few are.
    data_ = static_cast<T*>(std::aligned_alloc(align, (bytes + 64 + align - 1) / align * align));
    if (!data_) throw std::bad_alloc();
    if (huge) madvise(data_, huge, MADV_HUGEPAGE);  // but for the rest, of which a page more would be kept
    std::memset(static_cast<void*>(data_), 0, bytes + 64);
  }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  ~Buffer() { std::free(data_); }

  const T* data() const { return data_; }
  T* data() { return data_; }
  size_t size() const { return count_; }
  const T& operator[](size_t i) const { return data_[i]; }
  T& operator[](size_t i) { return data_[i]; }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

inline void grow(Buffer<float>& buffer, size_t count) {
  if (buffer.size() < count) buffer = Buffer<float>(count + count / 4);
}

}  // namespace nvila
