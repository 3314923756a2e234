#include "core/cpu/swiglu.h"

#include <algorithm>

#include "core/cpu/parallel.h"
#include "core/cpu/vector_kernels.h"

namespace enma {

namespace {

// Fewer values are not worth waking a thread.
constexpr int64_t VALUES_PER_THREAD = 16384;

template <class Body>
void share_rows(const Swiglu& g, Body body) {
    const int64_t most = std::max<int64_t>(1, std::min(g.rows, 1 + g.rows * g.width / VALUES_PER_THREAD));
    parallel(static_cast<int>(std::clamp<int64_t>(g.threads, 1, most)),
             [&](int thread, int n) { body(g.rows * thread / n, g.rows * (thread + 1) / n); });
}

}  // namespace

void swiglu_forward(const Swiglu& g, void* y, Isa isa) {
    share_rows(g, [&](int64_t begin, int64_t end) { vector_kernels(isa).swiglu.forward(g, y, begin, end); });
}

void swiglu_backward(const Swiglu& g, const void* grad_y, void* grad_x, Isa isa) {
    share_rows(g,
               [&](int64_t begin, int64_t end) { vector_kernels(isa).swiglu.backward(g, grad_y, grad_x, begin, end); });
}

}  // namespace enma
