#include "log.h"

#include <cstdio>
#include <mutex>

#include "facts.h"
#include "hosts.h"

namespace turbotrt {

namespace {

// Who is told; never freed, since plugins may outlive what is static.
struct Told {
  std::mutex mutex;
  std::optional<Logger> logger;
  std::optional<LoggerFinder> finder;
};

Told& told() {
  static Told* const made = new Told;
  return *made;
}

// The logger of the first that has one: the host's own, the finder's, that of a TensorRT in this process.
std::optional<Logger> current_logger() {
  std::lock_guard<std::mutex> const held(told().mutex);
  if (told().logger) {
    return told().logger;
  }
  std::optional<Logger> found = told().finder ? told().finder->find() : std::nullopt;
  for (Host const& host : found ? std::vector<Host>() : hosts()) {
    found = found ? found : host.logger;
  }
  return found;
}

}  // namespace

void set_logger(Logger logger) {
  std::lock_guard<std::mutex> const held(told().mutex);
  told().logger = logger;
}

void set_logger_finder(LoggerFinder finder) {
  std::lock_guard<std::mutex> const held(told().mutex);
  told().finder = finder;
}

void log_error(std::string_view op, std::string_view message) noexcept {
  try {
    std::string text = "turbotrt " TURBOTRT_VERSION ", ";
    text.append(op).append(": ").append(message);
    if (std::optional<Logger> const logger = current_logger()) {
      logger->error(text.c_str());
    } else {
      std::fprintf(stderr, "%s\n", text.c_str());
    }
  } catch (...) {  // no memory for the message
    std::fputs("turbotrt " TURBOTRT_VERSION ": a failure, and no memory to say which\n", stderr);
  }
}

}  // namespace turbotrt
