// Threads that compute one call together: they spin while it lasts and sleep behind it.
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

class Team {
 public:
  // `size` counts the caller.
  explicit Team(int size) : size_(size) {
    try {
      for (int rank = 1; rank < size; ++rank) helpers_.emplace_back([this, rank] { serve(rank); });
    } catch (...) {  // the system has no more threads: those that there are must end before this does
      end();
      throw;
    }
  }

  ~Team() { end(); }

  int size() const { return size_; }

  // Runs `work(rank)` on every thread and returns when all are through.
  void run(const std::function<void(int)>& work) {
    {
      std::lock_guard lock(mutex_);
      work_ = &work;
      ++round_;
    }
    woken_.notify_all();
    work(0);
    wait();
  }

  // Waits, within `run`, until every thread is here. What each wrote before, all see behind it.
  void wait() {
    const unsigned turn = turn_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; turn_.load(std::memory_order_acquire) == turn;) {
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
    woken_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
  }

  void serve(int rank) {
    for (unsigned seen = 0;;) {
      const std::function<void(int)>* work;
      {
        std::unique_lock lock(mutex_);
        woken_.wait(lock, [&] { return round_ != seen; });
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
  std::condition_variable woken_;
  const std::function<void(int)>* work_ = nullptr;
  unsigned round_ = 0;
  bool is_over_ = false;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> turn_{0};
};

// Deals out the items of one step of the work to whoever is free.
struct alignas(64) Dealer {
  std::atomic<int> next{0};

  // Calls `work(first, end)` for stretches of [0, count) that nobody else has.
  template <class Work>
  void deal(int count, int stretch, Work work) {
    for (int first; (first = next.fetch_add(stretch, std::memory_order_relaxed)) < count;) {
      work(first, first + stretch < count ? first + stretch : count);
    }
  }
};

}  // namespace nvila
