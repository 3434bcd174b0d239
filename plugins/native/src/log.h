// What the library says, through TensorRT's logger; on stderr where there is none.
#pragma once

#include <exception>
#include <string>
#include <string_view>

#include "abi.h"

namespace turbotrt {

// The logger that a host gave by itself, and what finds TensorRT's.
void set_logger(Logger logger);
void set_logger_finder(LoggerFinder finder);

// One line about an op. Never throws.
void log_error(std::string_view op, std::string_view message) noexcept;

// The result of ``body``, or ``failed`` where it threw, which is then logged: no exception may leave TensorRT's noexcept
// interface.
template <typename Result, typename Body>
Result guarded(std::string_view op, Result failed, Body body) noexcept {
  try {
    return body();
  } catch (std::exception const& error) {
    log_error(op, error.what());
  } catch (...) {
    log_error(op, "an unknown failure");
  }
  return failed;
}

}  // namespace turbotrt
