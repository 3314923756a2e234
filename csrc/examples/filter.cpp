// A bootstrap particle filter: 64 members whose place and strength are uncertain are forecast by the surrogate, weighed
// every few frames by noisy values at scattered points of the truth, and resampled.
//
//     filter CHECKPOINT TRAJECTORY
//
// TRAJECTORY holds frames [n, grid] of the truth on a periodic line, fp32. What is printed: relative L2 errors of the mean
// of the members, beside those of the same members without observations.
#include <enma/enma.hpp>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <numeric>
#include <random>

namespace {

constexpr int MEMBERS = 64, HISTORY = 3, CYCLE = 4, SENSORS = 12;
// Standard deviations: of the place in points, of the strength, and of the noise of a sensor relative to the field.
constexpr double PLACE = 6.0, STRENGTH = 0.2, NOISE = 0.05;

// The last frames of a member, one after the other.
using Particle = std::vector<double>;

// Frames t, ..., t + count - 1 of the truth, moved by so many points and scaled.
Particle moved(const float* truth, int grid, int count, int points, double factor) {
    Particle out;
    for (int t = 0; t < count; ++t) {
        for (int i = 0; i < grid; ++i) out.push_back(factor * truth[t * grid + ((i - points) % grid + grid) % grid]);
    }
    return out;
}

// Each member CYCLE frames on, by a session of its own: after resampling each has a history of its own. What it returns
// are the frames that were forecast; `particles` get the last ones.
std::vector<Particle> advance(const enma::Model& model, std::vector<Particle>& particles, int cycle) {
    std::vector<Particle> forecasts(particles.size());
    for (std::size_t k = 0; k < particles.size(); ++k) {
        enma::SessionOptions options;
        options.seed = static_cast<std::uint64_t>(cycle);
        options.first_member = static_cast<std::int64_t>(k);
        options.num_frames = CYCLE;
        enma::Session session(model, options);
        session.observe(particles[k]);
        session.forecast(forecasts[k]);
        particles[k].assign(forecasts[k].end() - static_cast<std::ptrdiff_t>(particles[k].size()), forecasts[k].end());
    }
    return forecasts;
}

double mean_error(const std::vector<Particle>& forecasts, std::size_t frame, const float* truth, std::size_t grid) {
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < grid; ++i) {
        double mean = 0;
        for (const Particle& forecast : forecasts) mean += forecast[frame * grid + i] / MEMBERS;
        difference += (mean - truth[i]) * (mean - truth[i]);
        size += static_cast<double>(truth[i]) * truth[i];
    }
    return std::sqrt(difference / size);
}

// Members drawn by their likelihood given the values that sensors see, by one comb with a random offset.
std::vector<Particle> resampled(const std::vector<Particle>& particles, const std::vector<int>& places,
                                const std::vector<double>& seen, double noise, std::mt19937& random) {
    const std::size_t grid = particles[0].size() / HISTORY;
    std::vector<double> logs;
    for (const Particle& particle : particles) {
        double misfit = 0;
        for (std::size_t s = 0; s < seen.size(); ++s) {
            const double d = particle[(HISTORY - 1) * grid + static_cast<std::size_t>(places[s])] - seen[s];
            misfit += d * d / (2 * noise * noise);
        }
        logs.push_back(-misfit);
    }
    const double most = *std::max_element(logs.begin(), logs.end());
    double total = 0;
    for (double& log : logs) total += log = std::exp(log - most);
    std::vector<Particle> out;
    const double tooth = total / MEMBERS;
    double at = std::uniform_real_distribution<double>(0.0, tooth)(random), passed = 0;
    for (std::size_t k = 0; k < particles.size(); ++k) {
        for (passed += logs[k]; out.size() < MEMBERS && at <= passed; at += tooth) out.push_back(particles[k]);
    }
    while (out.size() < MEMBERS) out.push_back(particles.back());
    return out;
}

}  // namespace

int main(int argc, char** argv) try {
    if (argc != 3) throw std::runtime_error("usage: filter CHECKPOINT TRAJECTORY");
    const enma::Model model(argv[1]);
    const int grid = static_cast<int>(model.about().grid);
    std::ifstream file(argv[2], std::ios::binary | std::ios::ate);
    std::vector<float> truth(static_cast<std::size_t>(std::max<std::streamoff>(0, file.tellg())) / sizeof(float));
    file.seekg(0).read(reinterpret_cast<char*>(truth.data()),
                       static_cast<std::streamsize>(truth.size() * sizeof(float)));
    const int frames = static_cast<int>(truth.size()) / grid;
    if (!file || frames < HISTORY + CYCLE) throw std::runtime_error(std::string(argv[2]) + ": too few frames");

    std::mt19937 random(0);
    std::normal_distribution<double> normal;
    std::vector<Particle> filtered;
    for (int k = 0; k < MEMBERS; ++k) {
        const int points = static_cast<int>(std::lround(PLACE * normal(random)));
        filtered.push_back(moved(truth.data(), grid, HISTORY, points, 1 + STRENGTH * normal(random)));
    }
    std::vector<Particle> free_run = filtered;
    for (int cycle = 0, last = HISTORY + CYCLE - 1; last < frames; ++cycle, last += CYCLE) {
        const std::vector<Particle> forecasts = advance(model, filtered, cycle),
                                    unseen = advance(model, free_run, cycle);
        for (int t = last - CYCLE + 1; t <= last; ++t) {
            const std::size_t frame = static_cast<std::size_t>(t - last + CYCLE - 1),
                              size = static_cast<std::size_t>(grid);
            std::printf("frame %2d: filtered %.4f, free run %.4f\n", t,
                        mean_error(forecasts, frame, &truth[t * grid], size),
                        mean_error(unseen, frame, &truth[t * grid], size));
        }
        // Sensors at scattered places, others each time.
        const float* now = &truth[static_cast<std::size_t>(last * grid)];
        const double noise = NOISE * std::sqrt(std::inner_product(now, now + grid, now, 0.0) / grid);
        std::vector<int> places;
        std::vector<double> seen;
        for (int s = 0; s < SENSORS; ++s) {
            places.push_back(std::uniform_int_distribution<int>(0, grid - 1)(random));
            seen.push_back(now[places.back()] + noise * normal(random));
        }
        filtered = resampled(filtered, places, seen, noise, random);
    }
} catch (const std::exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return 1;
}
