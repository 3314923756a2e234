// Fields of a config by name, each checked as it is read; one that nobody has asked for is refused.
#pragma once

#include <algorithm>
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/json.h"

namespace enma {

// Far beyond any model, and small enough that products of a few fit 64 bits.
constexpr std::int64_t MOST = 1 << 20;

class Fields {
   public:
    // Throws Error, as all that follows: ENMA_CHECKPOINT for what is not valid, ENMA_UNSUPPORTED for what this library
    // does not implement; the message begins with `place` and the name of the field.
    Fields(const Json& json, std::string place);

    [[noreturn]] void wrong(const std::string& key, const std::string& what) const;
    [[noreturn]] void unsupported(const std::string& key, const std::string& what) const;

    // Null for a key that is missing, which has its default, and with `or_null` for a value of null too.
    const Json* find(const std::string& key);
    const Json* find_or_null(const std::string& key);
    Fields inner(const std::string& key, const Json& json) const { return Fields(json, place_ + "." + key); }

    void read(const std::string& key, int& out, std::int64_t least = 1, std::int64_t most = MOST);
    void read_or_null(const std::string& key, int& out);
    void read(const std::string& key, double& out, double least);
    void read(const std::string& key, bool& out);
    void read(const std::string& key, std::string& out);
    void read(const std::string& key, std::vector<std::int64_t>& out);
    // One number for each channel, or null.
    void read_channels(const std::string& key, int channels, std::vector<float>& out);
    // True for the second of two words.
    void choose(const std::string& key, const char* first, const char* second, bool& out);

    // take(item) for each of a list; false for one that is not valid.
    template <class Take>
    void list(const std::string& key, const Take& take) {
        const Json* value = find(key);
        if (value == nullptr) return;
        if (!value->is(Json::Kind::array) || value->items().size() > 256 ||
            !std::all_of(value->items().begin(), value->items().end(), take)) {
            wrong(key, "a list of valid entries is expected");
        }
    }

    void ignore(const std::string& key) { asked_.insert(key); }
    void check_all_read() const;

   private:
    const Json& json_;
    std::string place_;
    std::set<std::string> asked_;
};

}  // namespace enma
