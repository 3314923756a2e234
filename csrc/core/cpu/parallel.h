// Threads of one call: one parallel region, a barrier for it, and memory that outlives the call.
#pragma once

#include <atomic>
#include <cstddef>

namespace enma {

// Aligned memory that is not initialised. Throws std::bad_alloc.
class Buffer {
   public:
    Buffer() = default;
    explicit Buffer(std::size_t bytes);
    ~Buffer();
    Buffer(Buffer&& other) noexcept;
    Buffer& operator=(Buffer&& other) noexcept;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    char* data() const { return data_; }
    std::size_t size() const { return size_; }

   private:
    char* data_ = nullptr;
    std::size_t size_ = 0;
};

constexpr std::size_t PAGE = 4096;
// A whole number of pages.
constexpr std::size_t pages(std::size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

// Work space of one call. The calling thread keeps it for its next one, since a fresh mapping faults on every page.
class Scratch {
   public:
    explicit Scratch(std::size_t bytes);
    ~Scratch();
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    char* data() const { return buffer_.data(); }

   private:
    Buffer buffer_;
};

// Waits for all threads of a region: spins a little, then yields, since threads may outnumber cores.
class Barrier {
   public:
    // Every one of the `threads` of the region calls it with that number.
    void wait(int threads);

   private:
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> generation_{0};
};

// Whether a call of this thread can have so many threads, which the system may refuse: OpenMP's library would end the
// program.
bool can_run(int threads);

namespace detail {
void parallel(int threads, void (*body)(void*, int, int), void* data);
}

// Calls body(thread, threads) on at most `threads` threads; fewer may come, only those that there are already where the
// system refuses more, and one in the thread that a forked child begins with. Bodies must not throw.
template <class Body>
void parallel(int threads, Body body) {
    detail::parallel(threads, [](void* data, int thread, int n) { (*static_cast<Body*>(data))(thread, n); }, &body);
}

}  // namespace enma
