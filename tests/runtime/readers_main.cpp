// Changed files of a checkpoint and changed saved sessions: each is read, or refused by an Error. By itself it changes
// what a folder holds; compiled with ENMA_LIBFUZZER, libFuzzer does.
//
//     readers FOLDER TIMES SECONDS     rounds of so many changes of each, until the time is over
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <string>

#include "runtime/checkpoint.h"
#include "runtime/config.h"
#include "runtime/format_1.h"
#include "core/error.h"
#include "runtime/session.h"
#include "runtime/tensor.h"

using namespace enma;

namespace {

// Values of a shape, none of them constant.
struct Values {
    std::vector<std::int64_t> shape;
    std::vector<float> values;
    DLTensor tensor;

    explicit Values(std::vector<std::int64_t> sizes) : shape(std::move(sizes)) {
        std::int64_t count = 1;
        for (const std::int64_t size : shape) count *= size;
        for (std::int64_t i = 0; i < count; ++i) values.push_back(0.1f * static_cast<float>(i % 7));
        const auto dims = static_cast<std::int32_t>(shape.size());
        tensor = {values.data(), {kDLCPU, 0}, dims, {kDLFloat, 32, 1}, shape.data(), nullptr, 0};
    }
};

struct Target {
    std::shared_ptr<const Model> model;
    std::string saved;  // without its digest

    explicit Target(const std::string& folder) : model(std::make_shared<const Model>(folder, NumberFormat::fp32)) {
        const ModelConfig& config = model->config();
        const Values history(config.frames_shape({3})), context(config.frames_shape({config.num_frames}));
        Session session = fresh();
        for (const KnownInput& input : config.known) {
            std::vector<std::int64_t> shape;
            if (input.in_time) shape.push_back(config.num_frames);
            if (input.in_space) shape.insert(shape.end(), config.codec.grid.begin(), config.codec.grid.end());
            const Values given(shape);
            session.known(input.name.c_str(), &given.tensor, &given.tensor);
        }
        session.observe(&history.tensor, config.known.empty() ? nullptr : &context.tensor);
        step(session);
        const std::uint8_t stopped[] = {0, 1};
        session.stop(stopped, 2);
        step(session);
        saved.resize(session.saved_bytes());
        session.save(saved.data());
        saved.resize(saved.size() - sizeof(Digest));
    }

    Session fresh() const {
        return Session(model, {0, 0, 0, 2, 0, 1, model->config().sampling.shifts, 1.0f, isa_by_name("")}, Log{});
    }

    void step(Session& session) const {
        const Values frame(model->config().frames_shape({2}));
        session.step(&frame.tensor);
    }
};

// Of either format.
void read_text(const std::string& input) {
    Json json = Json::parse(input, "config.json");
    if (json.find("codec") == nullptr) json = from_format_1(std::move(json), "config.json").config;
    read_config(json, "config.json");
}

void read_weights(const std::string& input) {
    // As memory of a file is: aligned, and of exactly its size.
    Buffer buffer(input.size());
    std::copy(input.begin(), input.end(), buffer.data());
    Tensors().parse({buffer.data(), buffer.size()}, "model.safetensors");
}

// With the digest that belongs to it, as somebody who makes it up would give it; what is accepted goes on.
void read_saved(const Target& target, const std::string& input) {
    const Digest digest = sha256(input.data(), input.size());
    const std::string whole = input + std::string(reinterpret_cast<const char*>(digest.data()), digest.size());
    Session session = target.fresh();
    session.restore(whole.data(), whole.size());
    if (session.done() < session.total()) target.step(session);
}

}  // namespace

#ifdef ENMA_LIBFUZZER

namespace {
std::unique_ptr<const Target> target;
}

// -folder=FOLDER names the checkpoint.
extern "C" int LLVMFuzzerInitialize(int* argc, char*** argv) {
    for (int i = 1; i < *argc; ++i) {
        const std::string argument = (*argv)[i];
        if (argument.rfind("-folder=", 0) == 0) target = std::make_unique<const Target>(argument.substr(8));
    }
    return 0;
}

// The first byte says what the others are.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    const std::string input(reinterpret_cast<const char*>(data) + 1, size - 1);
    try {
        switch (data[0]) {
            case 'c': read_text(input); break;
            case 'w': read_weights(input); break;
            case 's': read_saved(*target, input);
        }
    } catch (const Error&) {
    }
    return 0;
}

#else

namespace {

std::string contents(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

std::mt19937 choose(0);

std::size_t below(std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(choose); }

// A few bytes of the first `reach` are replaced, removed or doubled.
std::string changed(std::string data, std::size_t reach) {
    static const char bytes[] = "{}[]:,\"\\eE+-.0129 tfn\x7f\x80\xc2\xe0\xf4\xff";
    for (std::size_t i = 1 + below(4); i > 0; --i) {
        if (data.empty()) break;
        const std::size_t at = below(std::min(reach, data.size()));
        switch (below(4)) {
            case 0: data.erase(at, 1 + below(8)); break;
            case 1: data.insert(at, data.substr(at, 1 + below(8))); break;
            case 2: data.resize(std::max<std::size_t>(1, at)); break;
            default: data[at] = bytes[below(sizeof bytes)];
        }
    }
    return data;
}

template <class Read>
int count_refused(const std::string& data, std::size_t reach, int times, const Read& read) {
    int refused = 0;
    for (int i = 0; i < times; ++i) {
        const std::string input = changed(data, reach);
        try {
            read(input);
        } catch (const Error&) {
            ++refused;
        }
    }
    return refused;
}

}  // namespace

int main(int, char** argv) {
    const std::string folder = argv[1];
    const int times = std::atoi(argv[2]);
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(argv[3]));
    const std::string config = contents(folder + "/config.json"), weights = contents(folder + "/model.safetensors");
    const Target target(folder);
    // Undamaged, all are read.
    read_text(config);
    read_weights(weights);
    read_saved(target, target.saved);
    int rounds = 0;
    do {
        const int configs = count_refused(config, config.size(), times, read_text);
        const int tensors = count_refused(weights, 8000, times, read_weights);
        // The header, and all of it: members that were stopped, and what was told, are at its end.
        const auto restore = [&](const std::string& input) { read_saved(target, input); };
        const int sessions = count_refused(target.saved, 144, times / 10, restore) +
                             count_refused(target.saved, target.saved.size(), times / 10, restore);
        if (configs < times / 2 || tensors < times / 2 || sessions < times / 10) return 1;
        ++rounds;
    } while (std::chrono::steady_clock::now() < end);
    // Messages of every length around that of a block.
    for (std::size_t size = 0; size < 200; ++size) std::printf("%s\n", hex(sha256(weights.data(), size)).c_str());
    std::printf("ok: %d rounds of %d changes\n", rounds, times);
}

#endif
