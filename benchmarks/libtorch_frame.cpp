// A forecast of a traced model in libtorch, for benchmarks.embed_others: one for each line of standard input, on one
// thread, answered by the processor time of the process in seconds. The first one's frames are written to a file, as
// float32, after its time was taken.
//
//     libtorch_frame STEP DECODER START FRAMES    STEP and DECODER are traces; START holds the arguments of all steps
#include <ctime>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <string>
#include <vector>

#include <ATen/Parallel.h>
#include <torch/script.h>

namespace {

double seconds() {
    timespec now{};
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace

int main(int, char** argv) {
    at::set_num_threads(1);
    const c10::InferenceMode inference;
    torch::jit::Module step = torch::jit::load(argv[1]), decoder = torch::jit::load(argv[2]);
    const torch::jit::Module start = torch::jit::load(argv[3]);
    const auto given = [&](const char* name) { return start.attr(name).toTensor(); };
    const at::Tensor history = given("history"), context = given("context"), past = given("past");
    const std::vector<at::Tensor> noise = given("noise").unbind(), cosines = given("cosines").unbind(),
                                  sines = given("sines").unbind();
    bool written = false;
    for (std::string line; std::getline(std::cin, line);) {
        const double begin = seconds();
        std::vector<at::Tensor> made{history};
        std::vector<at::Tensor> state{context, past};
        for (std::size_t t = 0; t < noise.size(); ++t) {
            const auto found = step.forward({state[0], noise[t], state[1], cosines[t], sines[t]}).toTuple();
            made.push_back(found->elements()[0].toTensor().unsqueeze(1));
            state = {found->elements()[1].toTensor(), found->elements()[2].toTensor()};
        }
        const at::Tensor frames = decoder.forward({at::cat(made, 1)}).toTensor();
        const double taken = seconds() - begin;
        if (!written) {
            const at::Tensor plain = frames.contiguous();
            std::ofstream(argv[4], std::ios::binary)
                .write(reinterpret_cast<const char*>(plain.data_ptr<float>()),
                       static_cast<std::streamsize>(plain.numel() * sizeof(float)));
            written = true;
        }
        std::cout << std::setprecision(9) << taken << std::endl;
    }
}
