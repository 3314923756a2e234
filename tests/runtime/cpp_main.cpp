// enma.hpp as a C++ program uses it: handles that move, failures as exceptions, vectors and views.
// Arguments: a checkpoint, a file with three observed frames, and one for the forecast of four members.
#include <enma/enma.hpp>
#include <enma/enma.hpp>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>

namespace {

void require(bool holds, const char* what) {
    if (holds) return;
    std::cerr << "not so: " << what << "\n";
    std::exit(1);
}

template <class Body>
void refused(enma_status status, const std::string& message, const Body& body) {
    try {
        body();
    } catch (const enma::Error& error) {
        if (error.status() != status) std::cerr << error.what() << "\n";
        require(error.status() == status && std::string(error.what()).find(message) != std::string::npos, error.what());
        return;
    }
    require(false, message.c_str());
}

template <class T>
constexpr bool moves_only = std::is_nothrow_move_constructible_v<T> && std::is_move_assignable_v<T> &&
                            !std::is_copy_constructible_v<T> && !std::is_copy_assignable_v<T>;
static_assert(moves_only<enma::Model> && moves_only<enma::Session>);

}  // namespace

int main(int, char** argv) {
    std::vector<std::string> messages;
    enma::Model model(argv[1], [&](int, const std::string& message) {
        messages.push_back(message);
        throw std::runtime_error("must not pass through the library");
    });
    require(messages.size() == 1, "a message of opening");
    std::ifstream file(argv[2], std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    std::vector<float> history(bytes.size() / sizeof(float));
    std::memcpy(history.data(), bytes.data(), bytes.size());

    enma::SessionOptions options;
    options.num_members = 4;
    enma::Session session(model, options);
    refused(ENMA_STATE, "observe first", [&] { session.save(); });
    session.observe(history);
    std::vector<float> values;
    session.forecast(values);
    std::ofstream(argv[3], std::ios::binary).write(reinterpret_cast<const char*>(values.data()), values.size() * 4);
    const std::int64_t frames = session.total(), size = model.frame_size();

    // In the caller's order and precision: frames of members side by side.
    std::vector<double> wide(values.size());
    const enma::Sizes shape = model.shape({4, frames});
    enma::Sizes strides(shape.size(), 1);
    for (std::size_t i = shape.size() - 1; i-- > 2;) strides[i] = strides[i + 1] * shape[i + 1];
    strides[0] = size;
    strides[1] = 4 * size;
    const std::vector<double> given(history.begin(), history.end());
    session.observe(given, given);
    session.observe_context(history);
    require(session.total() == frames + 3, "a context alone");
    session.observe(enma::View<const double>(given.data(), model.shape({3})));
    session.forecast(enma::View<double>(wide.data(), shape, strides));
    for (std::int64_t k = 0; k < 4; ++k) {
        for (std::int64_t t = 0; t < frames; ++t) {
            for (std::int64_t i = 0; i < size; ++i) {
                require(wide[(t * 4 + k) * size + i] == values[(k * frames + t) * size + i], "the same by a view");
            }
        }
    }

    // A session outlives the name of its model, and continues from a buffer; one member is stopped.
    session.observe(history);
    std::vector<float> frame;
    session.step(frame);
    enma::Session other(model, options);
    {
        const enma::Model closed = std::move(model);
        require(closed.about().field_channels > 0, "moved");
    }
    other.restore(session.save());
    session = std::move(other);
    session.stop({false, true, false, false});
    session.step(frame);
    for (std::int64_t i = 0; i < size; ++i) {
        require(frame[i] == values[size + i] && frame[size + i] != frame[size + i], "the next frame, with one stopped");
    }
    require(session.done() == 2, "two frames were given out");

    refused(ENMA_INVALID_ARGUMENT, "axes", [&] { session.step(enma::View<float>(frame.data(), {4})); });
    refused(ENMA_INVALID_ARGUMENT, "whole frames", [&] { session.observe(std::vector<float>(5)); });
    refused(ENMA_INVALID_ARGUMENT, "strides", [&] { enma::View<float>(frame.data(), {4}, {1, 1}); });
    refused(ENMA_CHECKPOINT, "manifest.json", [] { enma::Model("/nowhere"); });
    refused(ENMA_INVALID_ARGUMENT, "is NULL", [&] { other.done(); });
    std::puts("ok");
}
