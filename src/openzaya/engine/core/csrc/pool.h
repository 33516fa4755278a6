// Threads that share the chunks of one piece of work after another.
//
// Work is a row of phases, each of a number of chunks. A phase ends when all of its chunks are done, not when all
// threads have come to some barrier: a thread that a competing process keeps off its core delays the others by the one
// chunk that it holds, and by nothing where it holds none. It finds the phase that is current when it comes back.
#pragma once

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

namespace oz {

class Work {
  public:
    // How many chunks phase number `phase` has, less than `kMostChunks`; 0 skips it, a negative number ends the work.
    // Called by one thread, once all chunks of the phases before are done: the place for what cannot be shared.
    virtual int64_t begin(int phase) = 0;
    virtual void chunk(int phase, int64_t index) = 0;

  protected:
    ~Work() = default;
};

class Pool {
  public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    // Does all of `work`, together with the pool's threads. Callers wait for each other. In a child of fork() the
    // threads are started anew.
    void run(Work &work);

    int threads() const { return threads_; }

    static constexpr int64_t kMostChunks = (1 << 20) - (1 << 12);

  private:
    struct Ticket;
    static void *worker(void *pool);
    void start_threads();
    bool help();
    void begin_phase(int phase);
    void wait_after(uint64_t sequence, const std::atomic<bool> &ended);
    uint64_t sequence() const;

    const int threads_;
    int started_ = 0;
    pthread_t *handles_ = nullptr;
    pid_t owner_ = 0;
    pthread_mutex_t callers_ = PTHREAD_MUTEX_INITIALIZER;

    Work *work_ = nullptr;
    int phase_ = 0;
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<int64_t> done_{0};
    std::atomic<bool> finished_{true};
    std::atomic<bool> closing_{false};
    alignas(64) std::atomic<uint32_t> changes_{0};
    std::atomic<int> sleepers_{0};
};

}  // namespace oz
