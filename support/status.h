// Status and Result: how every library of droidspeak reports failure. No exceptions cross a library's edge.
//
// A message says what was tried, where (file, op index, key), what was found, what was expected and what to
// do.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace ds {

// The one table of error codes: enumerator, the word shown to people, the exit code of a tool that ends with
// it.
#define DS_STATUS_CODES(X)                                                                                 \
  X(kOk, "ok", 0)                                                                                          \
  X(kInvalidArgument, "invalid argument", 2)   /* the caller asked for nonsense */                         \
  X(kNotFound, "not found", 3)                 /* a file, tensor or entry is absent */                     \
  X(kCorrupt, "corrupt", 4)                    /* bytes are not what their format promises */              \
  X(kMismatch, "mismatch", 5)                  /* two inputs do not belong together */                     \
  X(kUnsupported, "unsupported", 6)            /* valid, but not done by this version */                   \
  X(kInfeasible, "infeasible", 7)              /* no answer meets the constraints */                       \
  X(kIo, "i/o error", 8)                       /* the operating system refused */                          \
  X(kExhausted, "exhausted", 9)                /* memory, disk or another limit ran out */                 \
  X(kInternal, "internal error", 10)           /* a bug in droidspeak */                                   \
  X(kUnavailable, "unavailable", 11)           /* a device, driver or library is not there, or was lost */ \
  X(kDeviceMemory, "out of device memory", 12) /* a device's, or what is pinned on the host for it */

enum class Code : uint8_t {
#define DS_X(name, text, exit) name,
  DS_STATUS_CODES(DS_X)
#undef DS_X
};

/// Whether a failure is that of a device: it is not there, is lost, or has too little memory. Only backends
/// of devices fail so, and the same work may succeed on another one.
inline bool is_device_failure(Code code) { return code == Code::kUnavailable || code == Code::kDeviceMemory; }

/// "not found", "corrupt", ...
std::string_view code_name(Code code);
/// The exit code a tool ends with; 0 only for kOk.
int exit_code(Code code);

class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Code code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == Code::kOk; }
  Code code() const { return code_; }
  const std::string& message() const { return message_; }
  /// The same failure, with what was being done put in front: "reading plan 'x.dsplan': <message>".
  Status with_context(std::string_view context) const {
    return ok() ? *this : Status(code_, fmt::format("{}: {}", context, message_));
  }

 private:
  Code code_ = Code::kOk;
  std::string message_;
};

inline Status ok_status() { return {}; }

template <typename... Args>
Status error(Code code, fmt::format_string<Args...> format, Args&&... args) {
  return Status(code, fmt::format(format, std::forward<Args>(args)...));
}

/// A value or the Status that says why there is none.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}         // NOLINT: implicit on purpose
  Result(Status status) : status_(std::move(status)) {  // NOLINT: implicit on purpose
    if (status_.ok()) status_ = Status(Code::kInternal, "Result made from an ok Status without a value");
  }

  bool ok() const { return value_.has_value(); }
  const Status& status() const { return status_; }
  T& value() & { return *checked(); }
  const T& value() const& { return *const_cast<Result*>(this)->checked(); }
  T&& value() && { return std::move(*checked()); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return checked(); }
  const T* operator->() const { return const_cast<Result*>(this)->checked(); }

 private:
  T* checked() {
    if (!value_) std::abort();  // asking a failed Result for its value is a bug, not an input error
    return &*value_;
  }
  Status status_;
  std::optional<T> value_;
};

namespace detail {
inline const Status& status_of(const Status& s) { return s; }
template <typename T>
const Status& status_of(const Result<T>& r) {
  return r.status();
}
}  // namespace detail

#define DS_CONCAT_(a, b) a##b
#define DS_CONCAT(a, b) DS_CONCAT_(a, b)

/// Returns from the enclosing function when `expr` (a Status or Result) failed.
#define DS_TRY(expr)                                                                     \
  do {                                                                                   \
    if (auto&& ds_try_ = (expr); !ds_try_.ok()) return ::ds::detail::status_of(ds_try_); \
  } while (0)

/// DS_ASSIGN(auto x, f()): assigns the value or returns the Status.
#define DS_ASSIGN(lhs, expr)                                                                  \
  auto DS_CONCAT(ds_result_, __LINE__) = (expr);                                              \
  if (!DS_CONCAT(ds_result_, __LINE__).ok()) return DS_CONCAT(ds_result_, __LINE__).status(); \
  lhs = std::move(DS_CONCAT(ds_result_, __LINE__)).value()

}  // namespace ds
