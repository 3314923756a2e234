// A solver of the Combined equation hands over to the surrogate in the middle of its run, and takes over again:
//
//     u_t = -alpha u u_x + beta u_xx - gamma u_xxx,   0 <= x < 2 pi, periodic
//
//     handover CHECKPOINT TRAJECTORY ALPHA BETA GAMMA
//
// TRAJECTORY holds frames [20, 128] of a solution, fp32, 0.05 apart; the solver starts from the first, the others tell the
// errors. The solver is pseudo-spectral with the 2/3 rule, its time step RK4 with the linear part integrated exactly.
#include <enma/enma.hpp>

#include <cmath>
#include <complex>
#include <cstdio>
#include <ctime>
#include <fstream>

namespace {

using Wave = std::complex<double>;
using Field = std::vector<double>;
constexpr int POINTS = 128, FRAMES = 20, STEPS = 20, FIRST = 5, LAST = 13, MEMBERS = 16;
constexpr double INTERVAL = 0.05, DT = INTERVAL / STEPS, TWO_PI = 6.283185307179586;

// Radix-2 transform in place, forward or (sign 1, not scaled) back.
void fft(Wave* a, int n, int sign) {
    if (n == 1) return;
    std::vector<Wave> half(n);
    for (int i = 0; i < n; ++i) half[i / 2 + (i % 2) * n / 2] = a[i];
    fft(half.data(), n / 2, sign);
    fft(half.data() + n / 2, n / 2, sign);
    for (int k = 0; k < n / 2; ++k) {
        const Wave odd = std::polar(1.0, sign * TWO_PI * k / n) * half[k + n / 2];
        a[k] = half[k] + odd;
        a[k + n / 2] = half[k] - odd;
    }
}

class Solver {
   public:
    Solver(double alpha, double beta, double gamma) : half_(POINTS), slope_(POINTS) {
        for (int i = 0; i < POINTS; ++i) {
            const double k = i <= POINTS / 2 ? i : i - POINTS;
            half_[i] = std::exp(DT / 2 * Wave(-beta * k * k, gamma * k * k * k));
            // -alpha (u^2 / 2)_x, of the waves that products do not fold back.
            slope_[i] = std::abs(k) <= POINTS / 3 ? Wave(0, -alpha * k / 2) : 0.0;
        }
    }

    // The frame after this one.
    Field advance(const Field& u) const {
        std::vector<Wave> v(u.begin(), u.end());
        fft(v.data(), POINTS, -1);
        for (int step = 0; step < STEPS; ++step) {
            std::vector<Wave> stage(POINTS);
            const std::vector<Wave> a = convection(v);
            for (int i = 0; i < POINTS; ++i) stage[i] = half_[i] * (v[i] + DT / 2 * a[i]);
            const std::vector<Wave> b = convection(stage);
            for (int i = 0; i < POINTS; ++i) stage[i] = half_[i] * v[i] + DT / 2 * b[i];
            const std::vector<Wave> c = convection(stage);
            for (int i = 0; i < POINTS; ++i) stage[i] = half_[i] * (half_[i] * v[i] + DT * c[i]);
            const std::vector<Wave> d = convection(stage);
            for (int i = 0; i < POINTS; ++i) {
                v[i] = half_[i] * (half_[i] * (v[i] + DT / 6 * a[i]) + DT / 3 * (b[i] + c[i])) + DT / 6 * d[i];
            }
        }
        return back(v);
    }

   private:
    static Field back(std::vector<Wave> v) {
        fft(v.data(), POINTS, 1);
        Field u(POINTS);
        for (int i = 0; i < POINTS; ++i) u[i] = v[i].real() / POINTS;
        return u;
    }

    std::vector<Wave> convection(const std::vector<Wave>& v) const {
        const Field u = back(v);
        std::vector<Wave> n(POINTS);
        for (int i = 0; i < POINTS; ++i) n[i] = u[i] * u[i];
        fft(n.data(), POINTS, -1);
        for (int i = 0; i < POINTS; ++i) n[i] *= slope_[i];
        return n;
    }

    std::vector<Wave> half_, slope_;
};

double seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

double error(const Field& u, const float* truth) {
    double difference = 0, size = 0;
    for (int i = 0; i < POINTS; ++i) {
        difference += (u[i] - truth[i]) * (u[i] - truth[i]);
        size += static_cast<double>(truth[i]) * truth[i];
    }
    return std::sqrt(difference / size);
}

}  // namespace

int main(int argc, char** argv) try {
    if (argc != 6) throw std::runtime_error("usage: handover CHECKPOINT TRAJECTORY ALPHA BETA GAMMA");
    std::vector<float> truth(FRAMES * POINTS);
    std::ifstream file(argv[2], std::ios::binary);
    file.read(reinterpret_cast<char*>(truth.data()), static_cast<std::streamsize>(truth.size() * sizeof(float)));
    if (!file) throw std::runtime_error(std::string(argv[2]) + ": too few frames");
    const Solver solver(std::stod(argv[3]), std::stod(argv[4]), std::stod(argv[5]));

    // The whole of it by the solver.
    const double begin = seconds();
    std::vector<Field> alone = {Field(truth.begin(), truth.begin() + POINTS)};
    while (alone.size() < FRAMES) alone.push_back(solver.advance(alone.back()));
    const double solver_cost = (seconds() - begin) / (FRAMES - 1);

    // Frames FIRST to LAST by the surrogate, from those before.
    const enma::Model model(argv[1]);
    if (model.about().grid != POINTS || model.about().dims != 1) throw std::runtime_error("the model has another grid");
    enma::SessionOptions options;
    options.num_members = MEMBERS;
    options.num_frames = LAST - FIRST + 1;
    enma::Session session(model, options);
    const double handed_over = seconds();
    std::vector<double> history;
    for (int t = 0; t < FIRST; ++t) history.insert(history.end(), alone[t].begin(), alone[t].end());
    session.observe(history);
    std::vector<double> members;
    Field mixed;
    for (int t = FIRST; t <= LAST; ++t) {
        session.step(members);
        mixed.assign(POINTS, 0.0);
        for (std::size_t i = 0; i < members.size(); ++i) mixed[i % POINTS] += members[i] / MEMBERS;
        std::printf("frame %2d: surrogate %.2e, solver %.2e\n", t, error(mixed, &truth[t * POINTS]),
                    error(alone[t], &truth[t * POINTS]));
    }
    const double surrogate_cost = (seconds() - handed_over) / (LAST - FIRST + 1);

    // And back: the solver goes on from the mean of the members.
    for (int t = LAST + 1; t < FRAMES; ++t) {
        mixed = solver.advance(mixed);
        std::printf("frame %2d: handed back %.2e, solver %.2e\n", t, error(mixed, &truth[t * POINTS]),
                    error(alone[t], &truth[t * POINTS]));
    }
    std::printf("cost of a frame: solver %.2e s, surrogate %.2e s for %d members\n", solver_cost, surrogate_cost,
                MEMBERS);
} catch (const std::exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return 1;
}
