#include "core/json.h"

#include <charconv>
#include <cmath>
#include <set>

#include "core/error.h"

namespace enma {

namespace {

constexpr int MOST_DEPTH = 64;

bool is_digit(char c) { return '0' <= c && c <= '9'; }

void append_utf8(std::string& out, std::uint32_t code) {
    if (code < 0x80) {
        out += static_cast<char>(code);
        return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    constexpr unsigned FIRST[] = {0, 0xC0, 0xE0, 0xF0};
    out += static_cast<char>(FIRST[more] | (code >> (6 * more)));
    for (int i = more - 1; i >= 0; --i) out += static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F));
}

}  // namespace

class JsonParser {
   public:
    JsonParser(std::string_view input, const std::string& source) : input_(input), source_(source) {}

    Json document() {
        Json value = this->value(0);
        skip_space();
        if (at_ != input_.size()) wrong("something follows the value");
        return value;
    }

   private:
    [[noreturn]] void wrong(const char* what) const {
        fail(ENMA_CHECKPOINT, source_, ": not valid JSON at byte ", at_, ": ", what, "; copy the checkpoint again");
    }

    // The next byte, or 0 at the end; a zero byte is valid nowhere.
    char peek() const { return at_ < input_.size() ? input_[at_] : '\0'; }

    void expect(char c, const char* what) {
        if (peek() != c) wrong(what);
        ++at_;
    }

    void skip_space() {
        while (peek() == ' ' || peek() == '\n' || peek() == '\r' || peek() == '\t') ++at_;
    }

    Json value(int depth) {
        if (depth > MOST_DEPTH) wrong("too many levels");
        skip_space();
        Json out;
        switch (peek()) {
            case '{': object(out, depth); break;
            case '[': array(out, depth); break;
            case '"':
                out.kind_ = Json::Kind::string;
                out.string_ = string();
                break;
            case 't': word(out, "true", Json::Kind::boolean, 1); break;
            case 'f': word(out, "false", Json::Kind::boolean, 0); break;
            case 'n': word(out, "null", Json::Kind::null, 0); break;
            default: number(out);
        }
        return out;
    }

    void word(Json& out, std::string_view expected, Json::Kind kind, double number) {
        if (input_.substr(at_, expected.size()) != expected) wrong("unknown word");
        at_ += expected.size();
        out.kind_ = kind;
        out.number_ = number;
    }

    void object(Json& out, int depth) {
        out.kind_ = Json::Kind::object;
        ++at_;
        skip_space();
        std::set<std::string> keys;
        if (peek() != '}') {
            for (;;) {
                skip_space();
                if (peek() != '"') wrong("a key is expected");
                std::string key = string();
                if (!keys.insert(key).second) wrong("a key is there twice");
                skip_space();
                expect(':', "':' is expected");
                out.members_.emplace_back(std::move(key), value(depth + 1));
                skip_space();
                if (peek() != ',') break;
                ++at_;
            }
        }
        expect('}', "'}' is expected");
    }

    void array(Json& out, int depth) {
        out.kind_ = Json::Kind::array;
        ++at_;
        skip_space();
        if (peek() != ']') {
            for (;;) {
                out.items_.push_back(value(depth + 1));
                skip_space();
                if (peek() != ',') break;
                ++at_;
            }
        }
        expect(']', "']' is expected");
    }

    void digits() {
        if (!is_digit(peek())) wrong("a digit is expected");
        while (is_digit(peek())) ++at_;
    }

    void number(Json& out) {
        const std::size_t begin = at_;
        if (peek() == '-') ++at_;
        if (peek() == '0') {
            ++at_;
        } else {
            digits();
        }
        bool whole = true;
        if (peek() == '.') {
            whole = false;
            ++at_;
            digits();
        }
        if (peek() == 'e' || peek() == 'E') {
            whole = false;
            ++at_;
            if (peek() == '+' || peek() == '-') ++at_;
            digits();
        }
        const char *first = input_.data() + begin, *last = input_.data() + at_;
        out.kind_ = Json::Kind::number;
        if (std::from_chars(first, last, out.number_).ec != std::errc() || !std::isfinite(out.number_)) {
            wrong("the number is out of range");
        }
        out.is_integer_ = whole && std::from_chars(first, last, out.integer_).ec == std::errc();
    }

    std::uint32_t hex4() {
        std::uint32_t code = 0;
        for (int i = 0; i < 4; ++i, ++at_) {
            const char c = peek();
            const int digit = is_digit(c)            ? c - '0'
                              : 'a' <= c && c <= 'f' ? c - 'a' + 10
                              : 'A' <= c && c <= 'F' ? c - 'A' + 10
                                                     : -1;
            if (digit < 0) wrong("four hexadecimal digits are expected");
            code = code << 4 | static_cast<std::uint32_t>(digit);
        }
        return code;
    }

    void escape(std::string& out) {
        const char c = peek();
        ++at_;
        switch (c) {
            case '"':
            case '\\':
            case '/': out += c; return;
            case 'b': out += '\b'; return;
            case 'f': out += '\f'; return;
            case 'n': out += '\n'; return;
            case 'r': out += '\r'; return;
            case 't': out += '\t'; return;
            case 'u': break;
            default: wrong("unknown escape");
        }
        std::uint32_t code = hex4();
        if (0xDC00 <= code && code < 0xE000) wrong("half of a surrogate pair");
        if (0xD800 <= code && code < 0xDC00) {
            if (input_.substr(at_, 2) != "\\u") wrong("half of a surrogate pair");
            at_ += 2;
            const std::uint32_t low = hex4();
            if (low < 0xDC00 || low >= 0xE000) wrong("half of a surrogate pair");
            code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        }
        append_utf8(out, code);
    }

    // Copies one character of more than one byte, the shortest form of a code point that may stand alone.
    void multibyte(std::string& out) {
        const auto byte = [&](std::size_t i) {
            return at_ + i < input_.size() ? static_cast<unsigned char>(input_[at_ + i]) : 0u;
        };
        const unsigned lead = byte(0);
        const std::size_t size = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
        std::uint32_t code = lead & (0xFFu >> (size + 1));
        for (std::size_t i = 1; i < size; ++i) {
            if ((byte(i) & 0xC0) != 0x80) wrong("not UTF-8");
            code = code << 6 | (byte(i) & 0x3F);
        }
        constexpr std::uint32_t LEAST[] = {0, 0, 0x80, 0x800, 0x10000};
        if (lead < 0xC2 || lead > 0xF4 || code < LEAST[size] || code > 0x10FFFF || (0xD800 <= code && code < 0xE000)) {
            wrong("not UTF-8");
        }
        out.append(input_.substr(at_, size));
        at_ += size;
    }

    std::string string() {
        ++at_;
        std::string out;
        for (;;) {
            if (at_ >= input_.size()) wrong("the text does not end");
            const unsigned char c = static_cast<unsigned char>(input_[at_]);
            if (c == '"') break;
            if (c < 0x20) wrong("a control character");
            if (c == '\\') {
                ++at_;
                escape(out);
            } else if (c < 0x80) {
                out += static_cast<char>(c);
                ++at_;
            } else {
                multibyte(out);
            }
        }
        ++at_;
        return out;
    }

    std::string_view input_;
    const std::string& source_;
    std::size_t at_ = 0;
};

Json Json::parse(std::string_view input, const std::string& source) { return JsonParser(input, source).document(); }

const Json* Json::find(std::string_view key) const {
    for (const auto& [name, value] : members_) {
        if (name == key) return &value;
    }
    return nullptr;
}

Json Json::of(std::string value) {
    Json out;
    out.kind_ = Kind::string;
    out.string_ = std::move(value);
    return out;
}

Json Json::of(std::int64_t value) {
    Json out;
    out.kind_ = Kind::number;
    out.is_integer_ = true;
    out.integer_ = value;
    out.number_ = static_cast<double>(value);
    return out;
}

void Json::add(std::string key, Json value) {
    kind_ = Kind::object;
    members_.emplace_back(std::move(key), std::move(value));
}

std::optional<Json> Json::take(std::string_view key) {
    for (auto member = members_.begin(); member != members_.end(); ++member) {
        if (member->first != key) continue;
        Json out = std::move(member->second);
        members_.erase(member);
        return out;
    }
    return std::nullopt;
}

}  // namespace enma
