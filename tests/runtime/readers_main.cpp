// Reads changed files of a checkpoint: each is read, or refused by an Error. Arguments: a folder, and how many changes.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>

#include "runtime/checkpoint.h"
#include "runtime/config.h"
#include "runtime/error.h"
#include "runtime/tensor.h"

using namespace enma;

namespace {

std::mt19937 choose(0);

std::string contents(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

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
    const std::string config = contents(folder + "/config.json"), weights = contents(folder + "/model.safetensors");
    // Undamaged, both are read.
    read_config(Json::parse(config, "config.json"), "config.json");
    const auto parse = [](const std::string& input) {
        // As memory of a file is: aligned, and of exactly its size.
        Buffer buffer(input.size());
        std::copy(input.begin(), input.end(), buffer.data());
        Tensors().parse({buffer.data(), buffer.size()}, "model.safetensors");
    };
    parse(weights);
    const int configs = count_refused(config, config.size(), times, [](const std::string& input) {
        read_config(Json::parse(input, "config.json"), "config.json");
    });
    const int tensors = count_refused(weights, 8000, times, parse);
    if (configs < times / 2 || tensors < times / 2) return 1;
    // Of every length around that of a block.
    for (std::size_t size = 0; size < 200; ++size) std::printf("%s\n", hex(sha256(weights.data(), size)).c_str());
    std::printf("ok: %d and %d of %d refused\n", configs, tensors, times);
}
