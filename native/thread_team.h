// Threads that compute one call together: they spin while it lasts and sleep between calls.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace nvila {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class ThreadTeam {
 public:
  // `size` counts the caller.
  explicit ThreadTeam(int size) : size_(size) {
    try {
      for (int rank = 1; rank < size; ++rank) helpers_.emplace_back([this, rank] { serve(rank); });
    } catch (...) {  // the system has no more threads: those that there are must end before this does
      end();
      throw;
    }
  }

  ~ThreadTeam() { end(); }

  int size() const { return size_; }

  // Runs `work(rank)` on every thread and returns when all have finished.
  void run(const std::function<void(int)>& work) {
    {
      std::lock_guard lock(mutex_);
      work_ = &work;
      ++round_;
    }
    wake_.notify_all();
    work(0);
    wait();
  }

  // A barrier within `run`: waits for every thread, and what each wrote before it, all see after it.
  void wait() {
    const unsigned generation = generation_.load(std::memory_order_relaxed);
    if (num_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      num_arrived_.store(0, std::memory_order_relaxed);
      generation_.store(generation + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; generation_.load(std::memory_order_acquire) == generation;) {
      if (spins < kSpins) {
        relax();
        ++spins;
      } else {
        std::this_thread::yield();  // whoever is late may need this very core
      }
    }
  }

 private:
  static constexpr int kSpins = 200;

  void end() {
    {
      std::lock_guard lock(mutex_);
      is_over_ = true;
      ++round_;
    }
    wake_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
  }

  void serve(int rank) {
    for (unsigned seen = 0;;) {
      const std::function<void(int)>* work;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return round_ != seen; });
        seen = round_;
        if (is_over_) return;
        work = work_;
      }
      (*work)(rank);
      wait();
    }
  }

  const int size_;
  std::vector<std::thread> helpers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  const std::function<void(int)>* work_ = nullptr;
  unsigned round_ = 0;
  bool is_over_ = false;
  alignas(64) std::atomic<int> num_arrived_{0};
  alignas(64) std::atomic<unsigned> generation_{0};
};

// The items of one step, which the threads of a team take as they become free.
struct alignas(64) WorkQueue {
  std::atomic<int> next{0};

  // Calls `work(first, end)` for ranges of [0, count), at most `grain` long, that no other thread has taken.
  template <class Work>
  void parallel_for(int count, int grain, Work work) {
    for (int first; (first = next.fetch_add(grain, std::memory_order_relaxed)) < count;) {
      work(first, first + grain < count ? first + grain : count);
    }
  }
};

}  // namespace nvila
