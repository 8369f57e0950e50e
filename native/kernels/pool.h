// Threads that compute together with their caller.
//
// The difficulty is that a pass through a model is hundreds of jobs of some ten microseconds each: waking a thread costs
// as much as it would do. So a worker that has finished looks out for the next job for a while before it sleeps; an idle
// pool costs nothing. A job is cut into pieces that threads take one by one, so that a slower thread takes fewer.
//
// A thread that loses its processor to another process, in the middle of a piece, holds everybody up for as long as the
// system lets others run: hundreds of times as long as the job takes. Where that happens the caller computes alone for
// some times as long as it waited, and then tries again: so what is lost to waiting stays a small part of the time.
//
// Nor does it always pay to share: a product with one row waits for memory, which one thread may ask for as fast as two,
// and the others are wanted elsewhere. So the pool measures jobs of each kind, alone and shared, and does them in the
// way that pays. The results are the same. Now and then the other way is tried, by all jobs for a while: a single one
// would find the workers asleep, and measure how long they take to wake up.
//
// A pool does one job at a time; whoever comes meanwhile, on a stream of its own, computes alone.
//
// A piece may throw, for want of memory as a rule. Then nobody takes another, and the caller is told when all are out.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

namespace osaurus {

class Pool {
  public:
    // `threads` counts the caller. Where the system does not let so many be started, there are fewer.
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return (int)workers_.size() + 1; }

    // Call work(begin, end) until all of [0, count) is done, in pieces of `piece` or less; returns when all are. Throws
    // what the first piece that failed did. Jobs of the same function, with counts and sizes of the same magnitude, are
    // taken to be of one kind.
    template <typename Work>
    void run(size_t count, size_t piece, const Work& work, size_t size = 1) {
        if (count == 0) return;
        if (count <= piece || workers_.empty() || !busy_.try_lock()) {
            work((size_t)0, count);
            return;
        }
        std::lock_guard<std::mutex> done(busy_, std::adopt_lock);
        static const char function = 0;
        Kind& kind = kinds_[{&function, std::bit_width(count), std::bit_width(size)}];
        const auto began = Clock::now();
        const bool shared = began >= alone_until_ && (tries(began) ? tries_shared_ : kind.pays_to_share());
        if (!shared) {
            work((size_t)0, count);
        } else if (!share(
                       count, piece, [](const void* self, size_t begin, size_t end) { (*(const Work*)self)(begin, end); },
                       &work)) {
            return;
        }
        if (std::exchange(first_try_, false)) return;
        kind.took(shared, std::chrono::duration<double>(Clock::now() - began).count() / (double)count);
    }

  private:
    // What jobs of one kind cost, in seconds for each of their count, as averages that follow the machine.
    struct Kind {
        double alone = 0, together = 0;

        bool pays_to_share() const {
            if (alone == 0 || together == 0) return together == 0;
            // The other threads' processors are not free.
            return together * 1.25 < alone;
        }
        void took(bool shared, double seconds) {
            double& average = shared ? together : alone;
            // One that was interrupted says little.
            average = average == 0 ? seconds : average + (std::min(seconds, 4 * average) - average) / 8;
        }
    };

    using Call = void (*)(const void*, size_t, size_t);
    using Clock = std::chrono::steady_clock;

    // Return whether the next jobs all try one way.
    bool tries(Clock::time_point now);
    // Return whether no thread stood still meanwhile; throws what a piece did.
    bool share(size_t count, size_t piece, Call call, const void* self);
    size_t take_pieces();
    void live();

    std::vector<std::thread> workers_;
    std::mutex busy_;
    // The job. Written while `job_` is 0 and nobody is inside.
    Call call_ = nullptr;
    const void* self_ = nullptr;
    size_t count_ = 0, piece_ = 1;
    std::atomic<size_t> next_{0};
    std::atomic<uint64_t> job_{0};  // its number, 0 where there is none
    uint64_t jobs_ = 0;
    std::exception_ptr failure_;  // the first; written under `mutex_`
    std::map<std::tuple<const void*, int, int>, Kind> kinds_;
    Clock::time_point alone_until_{};
    // How many jobs still try one way, and until when; which; whether none has yet: it may find the others asleep. When
    // each way is tried again.
    int tries_ = 0;
    bool tries_shared_ = false, first_try_ = false;
    Clock::time_point tries_until_{}, shared_due_{}, alone_due_{};
    std::atomic<int> inside_{0};
    std::atomic<bool> ending_{false};
    // Sleep.
    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<int> sleeping_{0};
};

// The pool that all kernels share. It has as many threads as this process may use processors, until it is told other.
Pool& pool();
// Change how many threads it has; 0 for as many as processors. Return whether it has so many. Not while kernels run.
bool set_threads(int threads);

}  // namespace osaurus
