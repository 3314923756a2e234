// A field model on a plane in C++, from two frames with a context, and with known inputs where it is told some.
// Arguments: a checkpoint, a file with the frames and the known inputs of both trajectories, one for the forecast of two
// members, and "told" or "fields".
#include <enma/enma.hpp>

#include <fstream>
#include <iostream>
#include <string>

int main(int, char** argv) try {
    const enma::Model model(argv[1]);
    std::ifstream file(argv[2], std::ios::binary);
    const auto read = [&](std::size_t count) {
        std::vector<float> values(count);
        file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(count * sizeof(float)));
        return values;
    };
    const enma_model_description& about = model.about();
    const std::int64_t frames = about.num_frames, nx = about.shape[0], ny = about.shape[1];
    const std::size_t points = static_cast<std::size_t>(about.grid), length = static_cast<std::size_t>(frames);
    const std::vector<float> history = read(2 * model.frame_size()), context = read(length * model.frame_size());
    enma::SessionOptions options;
    options.num_members = 2;
    enma::Session session(model, options);
    if (std::string(argv[4]) == "told") {
        std::vector<float> nu[2], wind[2], depth[2], heat[2];
        for (int i = 0; i < 2; ++i) {
            nu[i] = read(1);
            wind[i] = read(length);
            depth[i] = read(points);
            heat[i] = read(length * points);
        }
        using Values = enma::View<const float>;
        session.known("nu", double{nu[0][0]}, double{nu[1][0]});
        session.known("wind", Values(wind[0].data(), {frames}), Values(wind[1].data(), {frames}));
        session.known("depth", Values(depth[0].data(), {nx, ny}), Values(depth[1].data(), {nx, ny}));
        session.known("heat", Values(heat[0].data(), {frames - 1, nx, ny}), Values(heat[1].data(), {frames, nx, ny}));
        try {
            session.observe(history, context);
            return 2;
        } catch (const enma::Error& error) {
            if (std::string(error.what()).find("known: heat has 7 frames") == std::string::npos) throw;
        }
        session.known("heat", Values(heat[0].data(), {frames, nx, ny}));
        try {
            session.known("salt", 1.0);
            return 3;
        } catch (const enma::Error& error) {
            if (error.status() != ENMA_INVALID_ARGUMENT) throw;
        }
    }
    session.observe(history, context);
    std::vector<float> made;
    session.forecast(made);
    std::ofstream(argv[3], std::ios::binary)
        .write(reinterpret_cast<const char*>(made.data()), static_cast<std::streamsize>(made.size() * sizeof(float)));
} catch (const enma::Error& failure) {
    std::cerr << failure.what() << "\n";
    return 1;
}
