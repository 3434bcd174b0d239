#include "host.h"

#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "abi.h"

namespace host {

namespace {

using Creator = nvinfer1::IPluginCreatorInterface;

int version = 0;
std::mutex log_mutex;
std::vector<std::string> log_lines;
std::vector<std::string> names;
std::vector<Creator*> creators;

void write(char const* message) {
  std::lock_guard<std::mutex> const held(log_mutex);
  log_lines.emplace_back(message);
}

bool add(Creator& creator, char const* name_space) {
  auto const& known = static_cast<nvinfer1::IPluginCreatorV3One const&>(creator);
  names.push_back(std::string(name_space) + "::" + known.getPluginName());
  creators.push_back(&creator);
  return true;
}

Creator* const* all(int32_t* count) {
  *count = static_cast<int32_t>(creators.size());
  return creators.data();
}

struct Logger10 final : nvinfer1::ILogger {
  void log(Severity severity, char const* message) noexcept override {
    if (severity == Severity::kERROR) {
      write(message);
    }
  }
} logger10;

struct Finder10 final : nvinfer1::ILoggerFinder {
  nvinfer1::ILogger* findLogger() override { return &logger10; }
} finder10;

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
// As TensorRT 10's headers have it.
struct Registry10 final : nvinfer1::IPluginRegistry {
  bool registerCreator(nvinfer1::IPluginCreator&, char const*) noexcept override { return false; }
  nvinfer1::IPluginCreator* const* getPluginCreatorList(int32_t*) const noexcept override { return nullptr; }
  nvinfer1::IPluginCreator* getPluginCreator(char const*, char const*, char const*) noexcept override {
    return nullptr;
  }
  void setErrorRecorder(nvinfer1::IErrorRecorder*) noexcept override {}
  nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
  bool deregisterCreator(nvinfer1::IPluginCreator const&) noexcept override { return false; }
  bool isParentSearchEnabled() const override { return false; }
  void setParentSearchEnabled(bool) override {}
  void* loadLibrary(char const*) noexcept override { return nullptr; }
  void deregisterLibrary(void*) noexcept override {}
  bool registerCreator(Creator& creator, char const* name_space) noexcept override { return add(creator, name_space); }
  Creator* const* getAllCreators(int32_t* count) const noexcept override { return all(count); }
  Creator* getCreator(char const*, char const*, char const*) noexcept override { return nullptr; }
  bool deregisterCreator(Creator const&) noexcept override { return false; }
  nvinfer1::IPluginResource* acquirePluginResource(char const*, nvinfer1::IPluginResource*) noexcept override {
    return nullptr;
  }
  int32_t releasePluginResource(char const*) noexcept override { return 0; }
  Creator* const* getAllCreatorsRecursive(int32_t* count) noexcept override { return all(count); }
} registry10;
#pragma GCC diagnostic pop

// As the real TensorRT for RTX has them; other tests have the library meet that.
struct Logger11 final : turbotrt::abi::Logger11 {
  nvinfer1::APILanguage language() const noexcept override { return nvinfer1::APILanguage::kCPP; }
  nvinfer1::InterfaceInfo info() const noexcept override { return {"ILogger", 1, 0}; }
  void log(int32_t severity, char const* message) noexcept override {
    if (severity == 1) {
      write(message);
    }
  }
} logger11;

struct Finder11 final : turbotrt::abi::Finder11 {
  nvinfer1::APILanguage language() const noexcept override { return nvinfer1::APILanguage::kCPP; }
  nvinfer1::InterfaceInfo info() const noexcept override { return {"ILoggerFinder", 1, 0}; }
  void* find_logger() override { return static_cast<turbotrt::abi::Logger11*>(&logger11); }
} finder11;

struct Registry11 final : turbotrt::abi::Registry11 {
  void set_error_recorder() override {}
  void get_error_recorder() override {}
  void is_parent_search_enabled() override {}
  void set_parent_search_enabled() override {}
  void load_library() override {}
  void deregister_library() override {}
  bool register_creator(Creator& creator, char const* name_space) noexcept override { return add(creator, name_space); }
  Creator* const* all_creators(int32_t* count) const noexcept override { return all(count); }
} registry11;

bool newer() { return version >= 110000; }

// Overflows wrap around: it is not this program that is tested.
int64_t computed(nvinfer1::DimensionOperation op, int64_t a, int64_t b) {
  using nvinfer1::DimensionOperation;
  uint64_t const x = static_cast<uint64_t>(a), y = static_cast<uint64_t>(b);
  switch (op) {
    case DimensionOperation::kSUM:
      return static_cast<int64_t>(x + y);
    case DimensionOperation::kSUB:
      return static_cast<int64_t>(x - y);
    case DimensionOperation::kPROD:
      return static_cast<int64_t>(x * y);
    case DimensionOperation::kMAX:
      return std::max(a, b);
    case DimensionOperation::kMIN:
      return std::min(a, b);
    case DimensionOperation::kFLOOR_DIV:
      return a / b - (a % b < 0 ? 1 : 0);
    case DimensionOperation::kCEIL_DIV:
      return a / b + (a % b > 0 ? 1 : 0);
    default:
      throw std::runtime_error("an operation that plans do not have");
  }
}

}  // namespace

void be(int given) { version = given; }

std::vector<std::string> take_log() {
  std::lock_guard<std::mutex> const held(log_mutex);
  return std::exchange(log_lines, {});
}

void* logger_finder() { return newer() ? static_cast<void*>(&finder11) : &finder10; }
void* logger() { return newer() ? static_cast<void*>(&logger11) : &logger10; }
std::vector<std::string> registered() { return names; }

Dimension const* Builder::make(int64_t value) {
  made_.emplace_back(value);
  return &made_.back();
}

nvinfer1::IDimensionExpr const* Builder::Calls::operation(nvinfer1::DimensionOperation op,
                                                          nvinfer1::IDimensionExpr const& a,
                                                          nvinfer1::IDimensionExpr const& b) {
  builder.operations.push_back(static_cast<int32_t>(op));
  return builder.make(computed(op, a.getConstantValue(), b.getConstantValue()));
}

}  // namespace host

// What the library looks up in the program that loads it.
int32_t getInferLibVersion() noexcept { return host::version; }

nvinfer1::IPluginRegistry* getPluginRegistry() noexcept {
  void* const found = host::newer() ? static_cast<void*>(&host::registry11) : &host::registry10;
  return static_cast<nvinfer1::IPluginRegistry*>(found);
}

nvinfer1::ILogger* getLogger() noexcept { return static_cast<nvinfer1::ILogger*>(host::logger()); }
