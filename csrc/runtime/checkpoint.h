// Files of a checkpoint folder, verified against its manifest before anything is read from them, and its tensors.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/cpu/parallel.h"
#include "enma/enma.h"
#include "core/json.h"
#include "runtime/sha256.h"

namespace enma {

// Tensors as fp32 or fp64 by name: of a safetensors file, all finite, as views into the file's bytes, or widened from fp16,
// bf16 or bool; or in the memory of a caller.
class Tensors {
   public:
    // A contiguous array of fp32 or fp64 on the CPU, which has to outlive the views. Throws Error (ENMA_INVALID_ARGUMENT).
    void add(const std::string& name, const DLTensor& array);
    // `bytes` has to outlive the views. Throws Error (ENMA_CHECKPOINT, ENMA_UNSUPPORTED).
    void parse(std::string_view bytes, const std::string& source);

    // Under new names; one whose name is empty goes. Throws Error (ENMA_CHECKPOINT) if two have the same.
    void rename(const std::function<std::string(const std::string&)>& name);
    // The values of a tensor of this shape; remembers that it was taken.
    const float* take(const std::string& name, const std::vector<std::int64_t>& shape);
    // The same of one in fp64.
    const double* take_wide(const std::string& name, const std::vector<std::int64_t>& shape);
    // Refuses a tensor that nobody has taken: it would be missing from every result.
    void check_all_taken() const;

   private:
    struct Tensor {
        std::vector<std::int64_t> shape;
        const float* values;
        const double* wide;  // one of them is null
        bool taken;
    };
    Tensor& found(const std::string& name, const std::vector<std::int64_t>& shape, bool wide);
    void add(const std::string& name, const Json& entry, std::string_view data);

    std::string source_ = "parameters";
    std::map<std::string, Tensor> tensors_;
    std::vector<std::vector<float>> widened_;
};

class Checkpoint {
   public:
    // Throws Error (ENMA_CHECKPOINT, ENMA_UNSUPPORTED).
    explicit Checkpoint(const std::string& folder);

    // As of format 2, like the names of the tensors.
    const Json& config() const { return config_; }
    const std::string& config_path() const { return config_path_; }
    Tensors& tensors() { return tensors_; }
    // What a checkpoint says of how its fields vary; null if nothing.
    Tensors* covariance() { return covariance_bytes_.size() > 0 ? &covariance_ : nullptr; }
    // Digest of config and weights.
    const Digest& identity() const { return identity_; }
    const std::string& weights_sha256() const { return weights_sha256_; }

   private:
    Buffer weights_, covariance_bytes_;
    Json config_;
    std::string config_path_, weights_sha256_;
    Tensors tensors_, covariance_;
    Digest identity_;
};

}  // namespace enma
