#include "log.h"

#include <atomic>
#include <cstdio>

#include "facts.h"
#include "hosts.h"

namespace turbotrt {

namespace {

std::atomic<nvinfer1::ILogger*> given_logger{nullptr};
std::atomic<nvinfer1::ILoggerFinder*> given_finder{nullptr};

// The logger of the first that has one: the host's own, the finder's, that of a TensorRT in this process.
nvinfer1::ILogger* logger() {
  if (nvinfer1::ILogger* const given = given_logger.load()) {
    return given;
  }
  nvinfer1::ILoggerFinder* const finder = given_finder.load();
  nvinfer1::ILogger* const found = finder != nullptr ? finder->findLogger() : nullptr;
  return found != nullptr ? found : host_logger();
}

}  // namespace

void set_logger(nvinfer1::ILogger* logger) noexcept { given_logger = logger; }

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { given_finder = finder; }

void log_error(std::string_view op, std::string_view message) noexcept {
  try {
    std::string text = "turbotrt " TURBOTRT_VERSION ", ";
    text.append(op).append(": ").append(message);
    if (nvinfer1::ILogger* const found = logger()) {
      found->log(nvinfer1::ILogger::Severity::kERROR, text.c_str());
    } else {
      std::fprintf(stderr, "%s\n", text.c_str());
    }
  } catch (...) {  // no memory for the message
    std::fputs("turbotrt " TURBOTRT_VERSION ": a failure, and no memory to say which\n", stderr);
  }
}

}  // namespace turbotrt
