// Random models and random schedules of calls, cuts and copies, each compared with the reference.
//
// Usage: random_drive ROUNDS SEED. A round is one model, one number of threads, and two caches. Rows that hold no token
// are NaN and the gaps between a cache's buffers hold a mark, so that what reads the first or writes the second is seen.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <thread>

#include "random_model.h"

using namespace nvila_test;

namespace {

constexpr float kMark = 12345.f;
// An activation that lies between two steps may be rounded to either: one in 127 of the largest in its group.
constexpr double kMaxError = 0.08, kMaxMeanError = 0.01;
constexpr int64_t kEnough = 256;  // numbers of which a mean says something

struct Worst {
  double error = 0, mean = 0;
  int64_t calls = 0, tokens = 0;
};

class Cache {
 public:
  Cache(Random& random, const nvila::Spec& spec, int capacity)
      : step_(spec.num_kv_heads * spec.head_size),
        num_buffers_(2 * spec.num_layers),
        capacity_(capacity),
        stride_(int64_t{capacity} * step_ + random.pick({0, 1, 48})),
        rows_(stride_ * (num_buffers_ - 1) + int64_t{capacity} * step_, kMark) {
    reference.keys.resize(spec.num_layers);
    reference.values.resize(spec.num_layers);
    forget();
  }

  int64_t room() const { return capacity_ - length; }

  void truncate(int64_t to) {
    length = to;
    forget();
  }

  void copy_prefix(const Cache& source, int64_t count) {
    for (int i = 0; i < num_buffers_; ++i) {
      std::copy_n(&source.rows_[i * source.stride_], count * step_, &rows_[i * stride_]);
    }
    reference = source.reference;
    truncate(count);
  }

  nvila::Call call(const Tokens& tokens, std::vector<float>& logits) {
    auto span = [](auto& vector) { return nvila::Span<const float>{vector.data(), int64_t(vector.size())}; };
    return {span(tokens.embeds), span(tokens.cos), span(tokens.sin), span(tokens.mask),
            {tokens.rows.data(), int64_t(tokens.rows.size())}, {rows_.data(), int64_t(rows_.size())},
            stride_, capacity_, tokens.start, tokens.num_new, {logits.data(), int64_t(logits.size())}};
  }

  // Compares the rows held with the reference, and the gaps with their mark.
  void compare(Worst& worst) const {
    for (int i = 0; i < num_buffers_; ++i) {
      const auto& want = (i % 2 ? reference.values : reference.keys)[i / 2];
      expect_near(&rows_[i * stride_], want.data(), length * step_, worst);
      for (int64_t at = int64_t{capacity_} * step_; i + 1 < num_buffers_ && at < stride_; ++at) {
        expect(rows_[i * stride_ + at] == kMark, "a gap between two buffers of the cache was written");
      }
    }
  }

  static void expect_near(const float* got, const double* want, int64_t count, Worst& worst) {
    double largest = 1, most = 0, total = 0;
    for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(want[i]));
    for (int64_t i = 0; i < count; ++i) {
      const double error = std::fabs(got[i] - want[i]) / largest;
      if (!(error <= kMaxError)) std::printf("number %lld is %g, not %g\n", (long long)i, got[i], want[i]);
      expect(error <= kMaxError, "a number is not that of the reference");
      most = std::max(most, error), total += error;
    }
    const double mean = total / double(std::max(count, kEnough));
    if (mean > kMaxMeanError) std::printf("%lld numbers have a mean error of %g\n", (long long)count, mean);
    expect(mean <= kMaxMeanError, "numbers are not near those of the reference");
    worst.error = std::max(worst.error, most), worst.mean = std::max(worst.mean, mean);
  }

  ReferenceCache reference;
  int64_t length = 0;

 private:
  void forget() {
    for (int i = 0; i < num_buffers_; ++i) {
      std::fill(&rows_[i * stride_] + length * step_, &rows_[i * stride_] + int64_t{capacity_} * step_,
                std::numeric_limits<float>::quiet_NaN());
    }
    for (auto* buffers : {&reference.keys, &reference.values}) {
      for (auto& buffer : *buffers) buffer.resize(length * step_);
    }
  }

  const int step_, num_buffers_, capacity_;
  const int64_t stride_;
  std::vector<float> rows_;
};

void append(Random& random, const Model& model, void* decoder, Cache& cache, int num_new, Worst& worst) {
  const Tokens tokens = random_tokens(random, model.spec, cache.length, num_new);
  std::vector<float> logits(tokens.rows.size() * model.spec.vocab_size);
  const nvila::Call call = cache.call(tokens, logits);
  must(nvila_decoder_run(decoder, &call));
  const std::vector<double> want = run_reference(model, tokens, cache.reference);
  cache.length += num_new;
  Cache::expect_near(logits.data(), want.data(), int64_t(want.size()), worst);
  cache.compare(worst);
  ++worst.calls, worst.tokens += num_new;
}

void drive(Random& random, Worst& worst) {
  const bool is_long = random.chance(0.05);  // a call of more than one pass, on a small model
  const Model model = random_model(random, is_long);
  const LoadedDecoder decoder(model, random.between(1, 5));
  const int capacity = is_long ? 600 : random.between(1, 150);
  Cache caches[2] = {{random, model.spec, capacity}, {random, model.spec, random.between(1, 150)}};
  if (is_long) append(random, model, decoder.handle(), caches[0], random.between(513, 600), worst);
  for (int step = 0; step < 8; ++step) {
    Cache &cache = caches[random.between(0, 1)], &other = caches[random.between(0, 1)];
    if (random.chance(0.2)) cache.truncate(random.between(0, int(cache.length)));
    if (random.chance(0.2) && &cache != &other) {
      cache.copy_prefix(other, random.between(0, int(std::min(other.length, cache.length + cache.room()))));
    }
    const int wanted = random.chance(0.6) ? random.between(1, 9) : random.between(9, 60);
    if (cache.room()) append(random, model, decoder.handle(), cache, std::min<int>(wanted, int(cache.room())), worst);
  }
}

// Two threads at once: each call either has the decoder to itself or is refused.
void share(Random& random) {
  const Model model = random_model(random, true);
  const LoadedDecoder decoder(model, 2);
  const Tokens tokens = random_tokens(random, model.spec, 0, 3);
  std::atomic<int> num_done{0};
  auto work = [&](Cache* cache) {
    std::vector<float> logits(tokens.rows.size() * model.spec.vocab_size);
    const nvila::Call call = cache->call(tokens, logits);
    for (int i = 0; i < 50; ++i) {
      const int32_t status = nvila_decoder_run(decoder.handle(), &call);
      expect(status == nvila::kOk || std::strstr(nvila_last_error(), "another thread"), "a shared decoder failed");
      num_done += status == nvila::kOk;
    }
  };
  Cache first(random, model.spec, 3), second(random, model.spec, 3);
  std::thread thread(work, &first);
  work(&second);
  thread.join();
  expect(num_done > 0, "nobody had the shared decoder");
}

}  // namespace

int main(int argc, char** argv) {
  expect(argc == 3, "usage: random_drive ROUNDS SEED");
  Worst worst;
  Random random(std::strtoull(argv[2], nullptr, 10));
  for (int round = 0; round < std::atoi(argv[1]); ++round) drive(random, worst);
  share(random);
  std::printf("%s: %lld calls, %lld tokens, worst error %.1e, worst mean %.1e\n", nvila_isa(),
              static_cast<long long>(worst.calls), static_cast<long long>(worst.tokens), worst.error, worst.mean);
  return 0;
}
