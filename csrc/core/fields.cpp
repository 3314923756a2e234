#include "core/fields.h"

#include <cmath>

namespace enma {

Fields::Fields(const Json& json, std::string place) : json_(json), place_(std::move(place)) {
    if (!json.is(Json::Kind::object)) wrong("", "an object is expected");
}

void Fields::wrong(const std::string& key, const std::string& what) const {
    fail(ENMA_CHECKPOINT, place_, key.empty() ? "" : "." + key, ": ", what);
}

void Fields::unsupported(const std::string& key, const std::string& what) const {
    fail(ENMA_UNSUPPORTED, place_, ".", key, " is ", what, "; libenma does not implement it: use the Python package");
}

const Json* Fields::find(const std::string& key) {
    asked_.insert(key);
    return json_.find(key);
}

const Json* Fields::find_or_null(const std::string& key) {
    const Json* const value = find(key);
    return value == nullptr || value->is(Json::Kind::null) ? nullptr : value;
}

void Fields::read(const std::string& key, int& out, std::int64_t least, std::int64_t most) {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (!value->is_integer() || value->integer() < least || value->integer() > most) {
        wrong(key, text("a whole number from ", least, " to ", most, " is expected"));
    }
    out = static_cast<int>(value->integer());
}

void Fields::read_or_null(const std::string& key, int& out) {
    if (find_or_null(key) != nullptr) read(key, out);
}

void Fields::read(const std::string& key, double& out, double least) {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (!value->is(Json::Kind::number) || value->number() < least) {
        wrong(key, text("a number of at least ", least, " is expected"));
    }
    out = value->number();
}

void Fields::read(const std::string& key, bool& out) {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (!value->is(Json::Kind::boolean)) wrong(key, "true or false is expected");
    out = value->boolean();
}

void Fields::read(const std::string& key, std::string& out) {
    const Json* value = find(key);
    if (value == nullptr || !value->is(Json::Kind::string)) wrong(key, "text is expected");
    out = value->string();
}

void Fields::read(const std::string& key, std::vector<std::int64_t>& out) {
    if (find(key) == nullptr) return;
    out.clear();
    list(key, [&](const Json& item) {
        out.push_back(item.integer());
        return item.is_integer() && item.integer() >= 1 && item.integer() <= MOST;
    });
}

void Fields::read_channels(const std::string& key, int channels, std::vector<float>& out) {
    if (find_or_null(key) == nullptr) return;
    list(key, [&](const Json& item) {
        out.push_back(static_cast<float>(item.number()));
        return item.is(Json::Kind::number) && std::isfinite(out.back());
    });
    if (out.size() != static_cast<std::size_t>(channels)) wrong(key, "one entry for each channel is expected");
}

void Fields::choose(const std::string& key, const char* first, const char* second, bool& out) {
    const Json* value = find(key);
    if (value == nullptr) return;
    if (!value->is(Json::Kind::string) || (value->string() != first && value->string() != second)) {
        wrong(key, text("'", first, "' or '", second, "' is expected"));
    }
    out = value->string() == second;
}

void Fields::check_all_read() const {
    for (const auto& [key, value] : json_.members()) {
        if (asked_.count(key) == 0) {
            fail(ENMA_UNSUPPORTED, place_, ".", key,
                 ": unknown field; use the libenma that belongs to this checkpoint");
        }
    }
}

}  // namespace enma
