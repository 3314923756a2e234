// Forecasts from scattered points through enma.hpp: points that frames share, points of each frame, and a context.
//
//     points CHECKPOINT POINTS VALUES OUT     VALUES are those of three frames
#include <enma/enma.hpp>

#include <cstring>
#include <fstream>
#include <iterator>

namespace {

std::vector<float> contents(const char* path) {
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    std::vector<float> values(bytes.size() / sizeof(float));
    std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
    return values;
}

}  // namespace

int main(int, char** argv) {
    const enma::Model model(argv[1]);
    if (model.about().scattered != 1) return 1;
    const std::int64_t d = model.about().dims, c = model.about().field_channels;
    const std::vector<float> points = contents(argv[2]), values = contents(argv[3]);
    const std::int64_t P = static_cast<std::int64_t>(points.size()) / d;
    const enma::Observations<const float> shared{{points.data(), {P, d}}, {values.data(), {3, P, c}}};
    std::ofstream out(argv[4], std::ios::binary);
    enma::SessionOptions options;
    options.num_members = 2;
    enma::Session session(model, options);
    const auto write_forecast = [&] {
        std::vector<float> frames;
        session.forecast(frames);
        out.write(reinterpret_cast<const char*>(frames.data()), static_cast<std::streamsize>(frames.size() * 4));
    };
    session.observe(shared);
    write_forecast();
    // The first two frames with fewer points, of another kind.
    std::vector<double> some_points, some_values;
    const std::vector<std::int64_t> counts = {3, 4, P};
    for (std::int64_t t = 0; t < 3; ++t) {
        const std::int64_t rows = counts[static_cast<std::size_t>(t)];
        some_points.insert(some_points.end(), points.begin(), points.begin() + rows * d);
        const auto frame = values.begin() + t * P * c;
        some_values.insert(some_values.end(), frame, frame + rows * c);
    }
    const std::int64_t rows = P + 7;
    session.observe(
        enma::Observations<const double>{{some_points.data(), {rows, d}}, {some_values.data(), {rows, c}}, counts});
    write_forecast();
    const enma::Observations<const float> context{{points.data(), {5, d}}, {values.data(), {3, 5, c}, {P * c, c, 1}}};
    session.observe(shared, context);
    write_forecast();
    session.observe_context(context);
    // A model with an interpolation takes no errors of values.
    try {
        session.observe(enma::Observations<const float>{shared.points, shared.values, {}, {0.25}});
        write_forecast();
    } catch (const enma::Error& error) {
        if (std::strstr(error.what(), "history.errors: are those of") == nullptr) return 4;
    }
    try {
        session.observe(enma::Observations<const float>{{points.data(), {P, d}}, {values.data(), {3, P - 1, c}}});
    } catch (const enma::Error& error) {
        return error.status() == ENMA_INVALID_ARGUMENT ? 0 : 2;
    }
    return 3;
}
