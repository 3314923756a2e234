// The one exception of the runtime; c_api.cpp turns it into a status and a message.
#pragma once

#include <exception>
#include <sstream>
#include <string>

#include "include/enma/enma.h"

namespace enma {

class Error : public std::exception {
   public:
    Error(enma_status status, std::string message) : status_(status), message_(std::move(message)) {}
    const char* what() const noexcept override { return message_.c_str(); }
    enma_status status() const { return status_; }

   private:
    enma_status status_;
    std::string message_;
};

// The parts one after the other, as text.
template <class... Parts>
std::string text(const Parts&... parts) {
    std::ostringstream out;
    out.imbue(std::locale::classic());
    (out << ... << parts);
    return out.str();
}

template <class... Parts>
[[noreturn]] void fail(enma_status status, const Parts&... parts) {
    throw Error(status, text(parts...));
}

}  // namespace enma
