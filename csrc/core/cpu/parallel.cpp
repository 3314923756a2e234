#include "core/cpu/parallel.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include <fenv.h>
#include <pthread.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>

namespace enma {

namespace {

constexpr std::size_t HUGE_PAGE = std::size_t{2} << 20;
// A thread keeps no more than this between calls.
constexpr std::size_t KEPT = std::size_t{64} << 20;
// About ten microseconds, longer than the parts between barriers differ on cores of their own.
constexpr int SPINS = 1000;

thread_local Buffer kept;

// OpenMP's pool belongs to the thread that made it, and does not live on in a forked child: who waits for it there waits
// for ever. Whether there was one is not known, since the host's own regions make it too.
thread_local int pool = 1;
thread_local bool lost_pool = false;
const int watched = pthread_atfork(nullptr, nullptr, [] { lost_pool = true; });

// A host may have asked for a signal where a number overflows or is none, in threads of its pool too. Kernels rely on
// infinity where exp overflows. Flags and rounding stay those of the thread: bodies may set them.
class Untrapped {
   public:
#ifdef __GLIBC__
    Untrapped() : enabled_(fedisableexcept(FE_ALL_EXCEPT)) {}
    ~Untrapped() {
        if (enabled_ > 0) feenableexcept(enabled_);
    }

   private:
    int enabled_;
#endif
};

std::align_val_t alignment(std::size_t bytes) { return std::align_val_t{bytes < HUGE_PAGE ? PAGE : HUGE_PAGE}; }

void relax() {
#if defined(__x86_64__) && defined(__GNUC__)
    __builtin_ia32_pause();
#endif
}

}  // namespace

Buffer::Buffer(std::size_t bytes) : data_(static_cast<char*>(::operator new(bytes, alignment(bytes)))), size_(bytes) {
#ifdef __linux__
    // Weights of a large model pass by once a mask step: in small pages, looking addresses up takes an eighth of the time
    // (docs/notes/packed-products.md). A system that has no huge page to lend leaves them small.
    if (bytes >= HUGE_PAGE) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
}

Buffer::~Buffer() {
    if (data_ != nullptr) ::operator delete(data_, alignment(size_));
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}

Scratch::Scratch(std::size_t bytes) : buffer_(std::move(kept)) {
    if (buffer_.size() < bytes) buffer_ = Buffer(bytes);
}

Scratch::~Scratch() {
    if (buffer_.size() <= KEPT) kept = std::move(buffer_);
}

void Barrier::wait(int threads) {
    if (threads == 1) return;
    const unsigned generation = generation_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
        arrived_.store(0, std::memory_order_relaxed);
        generation_.store(generation + 1, std::memory_order_release);
        return;
    }
    for (int i = 0; generation_.load(std::memory_order_acquire) == generation; ++i) {
        if (i < SPINS) {
            relax();
        } else {
            std::this_thread::yield();
        }
    }
}

void detail::parallel(int threads, void (*body)(void*, int, int), void* data) {
#ifdef _OPENMP
    // Another thread may have made the session, or the system gives fewer than it did then.
    if (threads > pool && !can_run(threads)) threads = pool;
    if (threads > 1 && !lost_pool) {
        // Threads beyond those of a call end.
        pool = threads;
#pragma omp parallel num_threads(threads)
        {
            [[maybe_unused]] const Untrapped untrapped;
            body(data, omp_get_thread_num(), omp_get_num_threads());
        }
        return;
    }
#endif
    (void)threads;
    body(data, 0, 1);
}

bool can_run(int threads) {
    // Threads that are there already, or that a forked child will not ask for.
    if (threads <= pool || lost_pool) return true;
    std::mutex mutex;
    std::condition_variable ended;
    bool all = false;
    std::vector<std::thread> started;
    bool good = true;
    try {
        started.reserve(threads);
        // They have to live at the same time.
        for (int i = pool; i < threads; ++i) {
            started.emplace_back([&] {
                std::unique_lock<std::mutex> lock(mutex);
                ended.wait(lock, [&] { return all; });
            });
        }
    } catch (...) {
        // The system refuses a thread, or memory for one.
        good = false;
    }
    {
        const std::lock_guard<std::mutex> lock(mutex);
        all = true;
    }
    ended.notify_all();
    for (std::thread& thread : started) thread.join();
    return good;
}

}  // namespace enma
