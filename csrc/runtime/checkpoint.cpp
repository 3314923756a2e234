#include "runtime/checkpoint.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "core/error.h"
#include "core/half.h"
#include "runtime/format_1.h"
#include "runtime/tensor.h"

namespace enma {

namespace {

static_assert(std::endian::native == std::endian::little, "safetensors is little-endian");

constexpr std::int64_t OLDEST = 1, NEWEST = 2;
constexpr std::uint64_t MOST_TEXT = 1 << 20;
constexpr std::uint64_t MOST_HEADER = 16 << 20;
constexpr std::uint64_t MOST_BYTES = std::uint64_t{1} << 40;
constexpr char AGAIN[] = "; copy the checkpoint again";

class Descriptor {
   public:
    // Does not wait for a pipe to be written.
    explicit Descriptor(const std::string& path) : number_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {}
    ~Descriptor() {
        if (number_ >= 0) ::close(number_);
    }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;
    int number() const { return number_; }

   private:
    int number_;
};

// A whole regular file of at most `most` bytes.
Buffer read_file(const std::string& path, std::uint64_t most) {
    const Descriptor file(path);
    if (file.number() < 0) fail(ENMA_CHECKPOINT, path, ": cannot be opened (", std::strerror(errno), ")", AGAIN);
    struct stat about;
    if (::fstat(file.number(), &about) != 0 || !S_ISREG(about.st_mode)) {
        fail(ENMA_CHECKPOINT, path, ": not a regular file", AGAIN);
    }
    const std::uint64_t size = static_cast<std::uint64_t>(about.st_size);
    if (size > most) fail(ENMA_CHECKPOINT, path, ": ", size, " bytes; at most ", most, " are expected", AGAIN);
    Buffer out(size);
    for (std::uint64_t done = 0; done < size;) {
        const ssize_t n = ::read(file.number(), out.data() + done, size - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) fail(ENMA_CHECKPOINT, path, ": ends early or cannot be read", AGAIN);
        done += static_cast<std::uint64_t>(n);
    }
    return out;
}

std::string_view view(const Buffer& buffer) { return {buffer.data(), buffer.size()}; }

bool is_name(const std::string& name) {
    const auto plain = [](char c) {
        return ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || ('0' <= c && c <= '9') || c == '_';
    };
    return !name.empty() && name.size() <= 100 && plain(name[0]) &&
           std::all_of(name.begin(), name.end(), [&](char c) { return plain(c) || c == '.' || c == '-'; });
}

struct Manifest {
    std::int64_t format;
    // Size and SHA-256 of each.
    std::map<std::string, std::pair<std::int64_t, std::string>> files;
};

Manifest read_manifest(const std::string& path) {
    const Buffer bytes = read_file(path, MOST_TEXT);
    const Json manifest = Json::parse(view(bytes), path);
    const Json *format = manifest.find("format"), *files = manifest.find("files");
    if (format == nullptr || !format->is_integer() || files == nullptr || !files->is(Json::Kind::object)) {
        fail(ENMA_CHECKPOINT, path, ": not a manifest", AGAIN);
    }
    if (format->integer() < OLDEST || format->integer() > NEWEST) {
        fail(ENMA_UNSUPPORTED, path, ": format ", format->integer(), "; this version of libenma reads ", OLDEST, " to ",
             NEWEST);
    }
    Manifest found{format->integer(), {}};
    for (const auto& [name, entry] : files->members()) {
        const Json *size = entry.find("bytes"), *digest = entry.find("sha256");
        if (!is_name(name) || size == nullptr || !size->is_integer() || size->integer() < 0 || digest == nullptr ||
            digest->string().size() != 64) {
            fail(ENMA_CHECKPOINT, path, ": not a manifest, entry '", name, "'", AGAIN);
        }
        found.files[name] = {size->integer(), digest->string()};
    }
    for (const char* name : {"config.json", "model.safetensors"}) {
        if (found.files.count(name) == 0) fail(ENMA_CHECKPOINT, path, ": lists no ", name, AGAIN);
    }
    return found;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
    std::string out = "(";
    for (std::size_t i = 0; i < shape.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
    return out + ")";
}

}  // namespace

void Tensors::add(const std::string& name, const Json& entry, std::string_view data) {
    const Json *dtype = entry.find("dtype"), *shape = entry.find("shape"), *offsets = entry.find("data_offsets");
    if (dtype == nullptr || shape == nullptr || !shape->is(Json::Kind::array) || offsets == nullptr ||
        offsets->items().size() != 2 || entry.members().size() != 3) {
        fail(ENMA_CHECKPOINT, source_, ": ", name, " has no dtype, shape and data_offsets", AGAIN);
    }
    const std::string& type = dtype->string();
    static const std::map<std::string, std::size_t> widths = {{"F64", 8},  {"F32", 4}, {"F16", 2},
                                                              {"BF16", 2}, {"I64", 8}, {"BOOL", 1}};
    const auto found = widths.find(type);
    if (found == widths.end()) {
        fail(ENMA_UNSUPPORTED, source_, ": ", name, " is ", type, "; libenma reads F64, F32, F16, BF16, I64 and BOOL");
    }
    const std::size_t width = found->second;
    Tensor tensor{};
    std::uint64_t count = 1;
    for (const Json& size : shape->items()) {
        if (!size.is_integer() || size.integer() < 0 || size.integer() > 1 << 30) {
            fail(ENMA_CHECKPOINT, source_, ": ", name, " has a shape that is not valid", AGAIN);
        }
        tensor.shape.push_back(size.integer());
        const auto each = static_cast<std::uint64_t>(size.integer());
        if (each > 0 && count > MOST_BYTES / each) {
            fail(ENMA_CHECKPOINT, source_, ": ", name, " is too large", AGAIN);
        }
        count *= each;
    }
    const Json &begin = offsets->items()[0], &end = offsets->items()[1];
    if (!begin.is_integer() || !end.is_integer() || begin.integer() < 0 || end.integer() < begin.integer() ||
        static_cast<std::uint64_t>(end.integer()) > data.size() ||
        static_cast<std::uint64_t>(end.integer() - begin.integer()) != count * width) {
        fail(ENMA_CHECKPOINT, source_, ": ", name, " has data_offsets that do not fit its shape or the file", AGAIN);
    }
    const char* at = data.data() + begin.integer();
    if (reinterpret_cast<std::uintptr_t>(at) % width != 0) {
        fail(ENMA_CHECKPOINT, source_, ": ", name, " is not aligned", AGAIN);
    }
    const auto finite = [count](const auto* values) {
        return std::all_of(values, values + count, [](auto x) { return std::isfinite(x); });
    };
    if (type == "F64") {
        tensor.wide = reinterpret_cast<const double*>(at);
    } else if (type == "F32") {
        tensor.values = reinterpret_cast<const float*>(at);
    } else {
        const std::uint16_t* const halves = reinterpret_cast<const std::uint16_t*>(at);
        std::vector<float>& values = widened_.emplace_back(count);
        if (type == "I64") {
            const std::int64_t* const integers = reinterpret_cast<const std::int64_t*>(at);
            std::transform(integers, integers + count, values.begin(), [](std::int64_t x) { return float(x); });
        } else if (type == "BOOL") {
            std::transform(at, at + count, values.begin(), [](char x) { return x == 0 ? 0.0f : 1.0f; });
        } else {
            std::transform(halves, halves + count, values.begin(), type == "F16" ? from_fp16 : from_bf16);
        }
        tensor.values = values.data();
    }
    if (!(tensor.wide != nullptr ? finite(tensor.wide) : finite(tensor.values))) {
        fail(ENMA_CHECKPOINT, source_, ": ", name, " holds a value that is not finite; copy or train it again");
    }
    tensors_.emplace(name, std::move(tensor));
}

void Tensors::add(const std::string& name, const DLTensor& array) {
    Tensor tensor{{array.shape, array.shape + array.ndim}, nullptr, nullptr, false};
    if (std::find(tensor.shape.begin(), tensor.shape.end(), 0) != tensor.shape.end()) {
        tensor.values = widened_.emplace_back(1).data();
        tensors_.emplace(name, std::move(tensor));
        return;
    }
    // Checks type, device and alignment; an array of the caller has any shape.
    const Array checked(&array, name.c_str(), tensor.shape, false);
    tensor.wide = checked.wide();
    if (tensor.wide == nullptr) tensor.values = checked.contiguous();
    tensors_.emplace(name, std::move(tensor));
}

void Tensors::parse(std::string_view bytes, const std::string& source) {
    source_ = source;
    std::uint64_t header = 0;
    if (bytes.size() >= sizeof header) std::memcpy(&header, bytes.data(), sizeof header);
    if (bytes.size() < sizeof header || header > bytes.size() - sizeof header || header > MOST_HEADER || header == 0 ||
        bytes[sizeof header] != '{') {
        fail(ENMA_CHECKPOINT, source, ": not a whole safetensors file", AGAIN);
    }
    const Json json = Json::parse(bytes.substr(sizeof header, header), source);
    const std::string_view data = bytes.substr(sizeof header + header);
    // The format has neither holes nor overlaps.
    std::vector<std::pair<std::int64_t, std::int64_t>> parts;
    for (const auto& [name, entry] : json.members()) {
        if (name == "__metadata__") continue;
        add(name, entry, data);
        const std::vector<Json>& offsets = entry.find("data_offsets")->items();
        parts.emplace_back(offsets[0].integer(), offsets[1].integer());
    }
    std::sort(parts.begin(), parts.end());
    std::int64_t end = 0;
    for (const auto& part : parts) {
        if (part.first != end) fail(ENMA_CHECKPOINT, source, ": tensors overlap or leave a hole", AGAIN);
        end = part.second;
    }
    if (static_cast<std::uint64_t>(end) != data.size()) {
        fail(ENMA_CHECKPOINT, source, ": tensors do not cover the file", AGAIN);
    }
}

void Tensors::rename(const std::function<std::string(const std::string&)>& name) {
    std::map<std::string, Tensor> renamed;
    for (auto& [old, tensor] : tensors_) {
        const std::string now = name(old);
        if (!now.empty() && !renamed.emplace(now, std::move(tensor)).second) {
            fail(ENMA_CHECKPOINT, source_, ": holds ", now, " twice");
        }
    }
    tensors_ = std::move(renamed);
}

Tensors::Tensor& Tensors::found(const std::string& name, const std::vector<std::int64_t>& shape, bool wide) {
    const auto at = tensors_.find(name);
    if (at == tensors_.end()) {
        fail(ENMA_CHECKPOINT, source_, ": lacks ", name, "; config and weights do not belong together");
    }
    if (at->second.shape != shape) {
        fail(ENMA_CHECKPOINT, source_, ": ", name, " has shape ", shape_text(at->second.shape), "; config asks for ",
             shape_text(shape));
    }
    if ((at->second.wide != nullptr) != wide) {
        fail(ENMA_CHECKPOINT, source_, ": ", name, " has another type than config asks for");
    }
    at->second.taken = true;
    return at->second;
}

const float* Tensors::take(const std::string& name, const std::vector<std::int64_t>& shape) {
    return found(name, shape, false).values;
}

const double* Tensors::take_wide(const std::string& name, const std::vector<std::int64_t>& shape) {
    return found(name, shape, true).wide;
}

void Tensors::check_all_taken() const {
    for (const auto& [name, tensor] : tensors_) {
        if (!tensor.taken) {
            fail(ENMA_CHECKPOINT, source_, ": holds unknown ", name, "; config and weights do not belong together");
        }
    }
}

// A run of `enma-fast train`, which Python accepts, holds its model in a folder of its own.
static void check_no_run(const std::string& folder) {
    const std::string inner = folder + "/checkpoint";
    struct stat about;
    if (::stat((folder + "/manifest.json").c_str(), &about) != 0 &&
        ::stat((inner + "/manifest.json").c_str(), &about) == 0) {
        fail(ENMA_CHECKPOINT, folder, ": the folder of a training run, not a checkpoint; give ", inner);
    }
}

Checkpoint::Checkpoint(const std::string& folder) {
    check_no_run(folder);
    const Manifest manifest = read_manifest(folder + "/manifest.json");
    Digest parts[2];
    for (const auto& [name, entry] : manifest.files) {
        const std::string path = folder + "/" + name;
        Buffer bytes = read_file(path, name == "config.json" ? MOST_TEXT : MOST_BYTES);
        if (static_cast<std::int64_t>(bytes.size()) != entry.first) {
            fail(ENMA_CHECKPOINT, path, ": ", bytes.size(), " bytes, ", entry.first, " expected", AGAIN);
        }
        const Digest digest = sha256(bytes.data(), bytes.size());
        if (hex(digest) != entry.second) {
            fail(ENMA_CHECKPOINT, path, ": SHA-256 differs from manifest.json", AGAIN);
        }
        if (name == "config.json") {
            config_path_ = path;
            config_ = Json::parse(view(bytes), path);
            parts[0] = digest;
        } else if (name == "model.safetensors") {
            weights_ = std::move(bytes);
            weights_sha256_ = entry.second;
            tensors_.parse(view(weights_), path);
            parts[1] = digest;
        } else if (name == "covariance.safetensors") {
            covariance_bytes_ = std::move(bytes);
            covariance_.parse(view(covariance_bytes_), path);
        }
    }
    identity_ = sha256(parts, sizeof parts);
    if (manifest.format == NEWEST) return;
    FromFormat1 read = from_format_1(std::move(config_), config_path_ + ": config");
    config_ = std::move(read.config);
    tensors_.rename(read.name);
}

}  // namespace enma
