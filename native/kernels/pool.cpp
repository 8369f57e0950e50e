#include "pool.h"

#include <algorithm>
#include <chrono>

#if defined(__linux__)
#include <sched.h>
#endif

namespace osaurus {
namespace {

// However many are asked for.
constexpr int MOST_THREADS = 256;
// How long a worker looks out for the next job: longer than it takes from one kernel of a pass to the next.
constexpr auto PATIENCE = std::chrono::microseconds(50);
constexpr int SPINS_BETWEEN_LOOKS = 64;
// How long a caller waits for the last pieces before it lets others have the processor.
constexpr int SPINS_BEFORE_YIELD = 4096;
// Waiting so long for the last pieces, and for so many times as long as a piece takes, means that a thread stands still.
constexpr auto LONG = std::chrono::microseconds(200);
constexpr int LONG_IN_PIECES = 8;
// So many times as long jobs are done alone then, and so long at most.
constexpr int ALONE = 16;
constexpr auto MOST_ALONE = std::chrono::seconds(1);
// Some jobs try one way, for a small part of the time: sharing often, since what it gains changes with what else the
// machine does.
constexpr int TRIAL = 128;
constexpr auto LONGEST_SHARED_TRIAL = std::chrono::milliseconds(10), LONGEST_ALONE_TRIAL = std::chrono::milliseconds(40);
constexpr auto BETWEEN_SHARED = std::chrono::milliseconds(100), BETWEEN_ALONE = std::chrono::milliseconds(4000);

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

int processors() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    const int count = (int)std::thread::hardware_concurrency();
    return count > 0 ? count : 1;
}

std::mutex pool_mutex;
// Never destroyed: its threads may still be asleep when the process ends.
std::atomic<Pool*> the_pool{nullptr};

}  // namespace

Pool::Pool(int threads) {
    try {
        for (int index = 1; index < std::min(threads, MOST_THREADS); index++) workers_.emplace_back([this] { live(); });
    } catch (const std::exception&) {
        // Those that could be started are at work by now, and do.
    }
}

Pool::~Pool() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        ending_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
}

bool Pool::tries(Clock::time_point now) {
    if (tries_ > 0 && (--tries_ == 0 || now >= tries_until_)) {
        tries_ = 0;
        if (tries_shared_) {
            shared_due_ = now + BETWEEN_SHARED;
        } else {
            alone_due_ = now + BETWEEN_ALONE;
        }
    }
    if (tries_ == 0 && (now >= shared_due_ || now >= alone_due_)) {
        // What has waited for longer.
        tries_ = TRIAL, tries_shared_ = shared_due_ <= alone_due_, first_try_ = true;
        tries_until_ = now + (tries_shared_ ? LONGEST_SHARED_TRIAL : LONGEST_ALONE_TRIAL);
    }
    return tries_ > 0;
}

bool Pool::share(size_t count, size_t piece, Call call, const void* self) {
    call_ = call;
    self_ = self;
    count_ = count;
    piece_ = piece;
    next_ = 0;
    job_ = ++jobs_;
    if (sleeping_ > 0) {
        // Under the lock, or a worker about to sleep would miss it.
        { std::lock_guard<std::mutex> lock(mutex_); }
        wake_.notify_all();
    }
    const auto began = Clock::now();
    const size_t taken = take_pieces();
    // A worker that comes in from now on sees that there is no job; those inside are finishing their last piece.
    job_ = 0;
    const auto waiting = Clock::now();
    for (int spins = 0; inside_ > 0; spins++) {
        if (spins > SPINS_BEFORE_YIELD) std::this_thread::yield();
        pause();
    }
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    const auto waited = Clock::now() - waiting;
    if (waited < LONG || waited * (taken + 1) < (waiting - began) * LONG_IN_PIECES) return true;
    alone_until_ = Clock::now() + std::min<Clock::duration>(ALONE * waited, MOST_ALONE);
    return false;
}

size_t Pool::take_pieces() {
    size_t taken = 0;
    try {
        for (;; taken++) {
            const size_t begin = next_.fetch_add(piece_);
            if (begin >= count_) break;
            call_(self_, begin, begin + piece_ < count_ ? begin + piece_ : count_);
        }
    } catch (...) {
        next_ = count_;
        std::lock_guard<std::mutex> lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
    }
    return taken;
}

void Pool::live() {
    uint64_t last = 0;
    for (;;) {
        auto until = std::chrono::steady_clock::now() + PATIENCE;
        for (int spins = 0; !ending_; spins++) {
            const uint64_t job = job_;
            if (job != 0 && job != last) {
                inside_++;
                // The job may have ended, or another begun, before this thread was seen to be inside.
                const uint64_t current = job_;
                if (current != 0) {
                    take_pieces();
                    last = current;
                }
                inside_--;
                until = std::chrono::steady_clock::now() + PATIENCE;
                spins = 0;
            }
            if (spins % SPINS_BETWEEN_LOOKS == SPINS_BETWEEN_LOOKS - 1 && std::chrono::steady_clock::now() > until) break;
            pause();
        }
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_++;
        wake_.wait(lock, [&] {
            const uint64_t job = job_;
            return ending_ || (job != 0 && job != last);
        });
        sleeping_--;
        if (ending_) return;
    }
}

Pool& pool() {
    if (Pool* present = the_pool) return *present;
    std::lock_guard<std::mutex> lock(pool_mutex);
    if (!the_pool) the_pool = new Pool(processors());
    return *the_pool;
}

bool set_threads(int threads) {
    const int wanted = threads > 0 ? threads : std::min(processors(), MOST_THREADS);
    std::lock_guard<std::mutex> lock(pool_mutex);
    Pool* present = the_pool;
    if (present && present->threads() == wanted) return true;
    Pool* const made = new Pool(wanted);
    the_pool = made;
    delete present;
    return made->threads() == wanted;
}

}  // namespace osaurus
