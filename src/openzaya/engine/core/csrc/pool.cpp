#include "pool.h"

#include <signal.h>
#include <time.h>

#include <climits>
#include <new>

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

namespace oz {

namespace {

// Long enough for the gap between two phases, short enough that a core is soon free for whoever else wants it.
constexpr int64_t kSpinNanoseconds = 30'000;

int64_t now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1'000'000'000LL + time.tv_nsec;
}

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

void sleep_while(std::atomic<uint32_t> &word, uint32_t value) {
#if defined(__linux__)
    syscall(SYS_futex, reinterpret_cast<uint32_t *>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
    const timespec moment{0, 50'000};
    if (word.load() == value) nanosleep(&moment, nullptr);
#endif
}

void wake_all(std::atomic<uint32_t> &word) {
#if defined(__linux__)
    syscall(SYS_futex, reinterpret_cast<uint32_t *>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
#else
    (void)word;
#endif
}

}  // namespace

// What a thread must know to take a chunk, in one word that changes at once: which phase it is (`sequence`, over all
// work that was ever done), how many chunks it has and which comes next. `next` may run past `count` by one a thread.
struct Pool::Ticket {
    static constexpr int kBits = 20;
    static constexpr uint64_t kMask = (1u << kBits) - 1;
    uint64_t word;

    static Ticket of(uint64_t sequence, int64_t count) {
        return {sequence << (2 * kBits) | static_cast<uint64_t>(count) << kBits};
    }
    uint64_t sequence() const { return word >> (2 * kBits); }
    uint64_t count() const { return word >> kBits & kMask; }
    uint64_t next() const { return word & kMask; }
    bool open() const { return next() < count(); }
};

Pool::Pool(int threads) : threads_(threads), owner_(getpid()) {
    handles_ = new (std::nothrow) pthread_t[threads_];
    start_threads();
}

Pool::~Pool() {
    if (getpid() == owner_) {
        closing_.store(true);
        changes_.fetch_add(1);
        wake_all(changes_);
        for (int i = 0; i < started_; ++i) pthread_join(handles_[i], nullptr);
    }
    delete[] handles_;
}

void Pool::start_threads() {
    started_ = 0;
    if (handles_ == nullptr) return;
    // Signals are for the threads of the program that uses the pool.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (started_ < threads_ - 1 && pthread_create(&handles_[started_], nullptr, worker, this) == 0) ++started_;
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void Pool::run(Work &work) {
    if (getpid() != owner_) {
        // A forked child has this thread alone, and may have been forked in the middle of a step.
        owner_ = getpid();
        callers_ = PTHREAD_MUTEX_INITIALIZER;
        ticket_.store(Ticket::of(sequence() + 1, 0).word);
        sleepers_.store(0);
        start_threads();
    }
    pthread_mutex_lock(&callers_);
    finished_.store(false, std::memory_order_relaxed);
    work_ = &work;
    begin_phase(0);
    for (;;) {
        const uint64_t before = sequence();
        if (finished_.load(std::memory_order_acquire)) break;
        if (!help()) wait_after(before, finished_);
    }
    pthread_mutex_unlock(&callers_);
}

void *Pool::worker(void *pool) {
    Pool &self = *static_cast<Pool *>(pool);
    while (!self.closing_.load(std::memory_order_acquire)) {
        const uint64_t before = self.sequence();
        if (!self.help()) self.wait_after(before, self.closing_);
    }
    return nullptr;
}

// Does one chunk; false where there is none to take.
bool Pool::help() {
    if (!Ticket{ticket_.load(std::memory_order_acquire)}.open()) return false;
    const Ticket taken{ticket_.fetch_add(1, std::memory_order_acq_rel)};
    if (!taken.open()) return false;
    // From here to `done_` the phase cannot end, so neither `work_` nor `phase_` can change.
    const int phase = phase_;
    work_->chunk(phase, static_cast<int64_t>(taken.next()));
    const int64_t done = done_.fetch_add(1, std::memory_order_acq_rel) + 1;
    if (done == static_cast<int64_t>(taken.count())) begin_phase(phase + 1);
    return true;
}

void Pool::begin_phase(int phase) {
    int64_t count;
    while ((count = work_->begin(phase)) == 0) ++phase;
    phase_ = phase;
    done_.store(0, std::memory_order_relaxed);
    ticket_.store(Ticket::of(sequence() + 1, count < 0 ? 0 : count).word, std::memory_order_release);
    // Once `finished_` is seen the next work may begin, so nothing of this one may be touched after it.
    if (count < 0) finished_.store(true, std::memory_order_release);
    changes_.fetch_add(1);
    if (sleepers_.load() > 0) wake_all(changes_);
}

// Returns once the phase after number `sequence` has begun or `ended` is set, or now and then before.
void Pool::wait_after(uint64_t sequence, const std::atomic<bool> &ended) {
    const auto over = [&] { return this->sequence() != sequence || ended.load(std::memory_order_acquire); };
    const int64_t until = now() + kSpinNanoseconds;
    do {
        for (int i = 0; i < 32; ++i) {
            if (over()) return;
            relax();
        }
    } while (now() < until);
    sleepers_.fetch_add(1);
    const uint32_t change = changes_.load();
    if (!over()) sleep_while(changes_, change);
    sleepers_.fetch_sub(1);
}

uint64_t Pool::sequence() const { return Ticket{ticket_.load(std::memory_order_acquire)}.sequence(); }

}  // namespace oz
