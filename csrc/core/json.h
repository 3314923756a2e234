// JSON by RFC 8259, read strictly: whole input, UTF-8, no key twice, finite numbers, limited depth.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace enma {

class Json {
   public:
    enum class Kind { null, boolean, number, string, array, object };

    // Throws Error (ENMA_CHECKPOINT) that begins with `source`.
    static Json parse(std::string_view input, const std::string& source);

    Kind kind() const { return kind_; }
    bool is(Kind kind) const { return kind_ == kind; }
    bool boolean() const { return number_ != 0; }
    double number() const { return number_; }
    // True for a number without fraction and exponent that fits 64 bits.
    bool is_integer() const { return is_integer_; }
    std::int64_t integer() const { return integer_; }
    const std::string& string() const { return string_; }
    const std::vector<Json>& items() const { return items_; }
    // In the order of the file.
    const std::vector<std::pair<std::string, Json>>& members() const { return members_; }
    // Null if there is no such member.
    const Json* find(std::string_view key) const;

    // Changes of a value that was read, or of null.
    static Json of(std::string value);
    static Json of(std::int64_t value);
    // Null becomes an object, which has no such member yet.
    void add(std::string key, Json value);
    // Takes a member away; nothing where there is none.
    std::optional<Json> take(std::string_view key);

   private:
    friend class JsonParser;
    Kind kind_ = Kind::null;
    bool is_integer_ = false;
    double number_ = 0;
    std::int64_t integer_ = 0;
    std::string string_;
    std::vector<Json> items_;
    std::vector<std::pair<std::string, Json>> members_;
};

}  // namespace enma
