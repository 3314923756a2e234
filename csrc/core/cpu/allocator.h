// Parts of a piece of memory, each of whole cache lines.
#pragma once

#include <cstddef>

namespace enma {

// Hands out parts of a piece of memory; without one, counts.
class Allocator {
   public:
    explicit Allocator(char* memory) : memory_(memory) {}
    template <class T>
    T* take(std::size_t count) {
        char* part = memory_ == nullptr ? nullptr : memory_ + used_;
        used_ += (count * sizeof(T) + 63) / 64 * 64;
        return reinterpret_cast<T*>(part);
    }
    std::size_t used() const { return used_; }

   private:
    char* memory_;
    std::size_t used_ = 0;
};

}  // namespace enma
