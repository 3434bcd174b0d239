// The interfaces of TensorRT that the library itself calls, in the two forms that there are. Those that TensorRT calls
// (plugins, creators, shape expressions) are the same from TensorRT 10.0 to 11.1, and are its headers'.
//
// TensorRT 11 has dropped IPluginV2 from the registry and made loggers versioned interfaces, which moves every entry of
// their tables. TensorRT for RTX has the newer form too (seen in 1.7.1), whatever its headers' version. One library
// serves both, so the form is a matter of the program that has it loaded.
#pragma once

#include <NvInferRuntime.h>

#include <cstdint>
#include <optional>

namespace turbotrt {

enum class Form { TensorRT10, TensorRT11 };

// The form that a TensorRT of this version has, by its getInferLibVersion; none for those that were never seen.
inline std::optional<Form> form_of(int32_t version) {
  constexpr int32_t kMajor = 10000, kFirstRtx = 10700, kTensorRT10 = 10;
  if (version < kFirstRtx) {
    return std::nullopt;
  }
  return version / kMajor == kTensorRT10 ? Form::TensorRT10 : Form::TensorRT11;
}

namespace abi {

// Tables of functions, entry by entry; what the library does not call has a name and no types.
struct Versioned {
  virtual nvinfer1::APILanguage language() const noexcept = 0;
  virtual nvinfer1::InterfaceInfo info() const noexcept = 0;
  virtual ~Versioned() = default;
};

struct Logger10 {
  virtual void log(int32_t severity, char const* message) noexcept = 0;
  virtual ~Logger10() = default;
};

struct Logger11 : Versioned {
  virtual void log(int32_t severity, char const* message) noexcept = 0;
};

struct Finder10 {
  virtual void* find_logger() = 0;
  virtual ~Finder10() = default;
};

struct Finder11 : Versioned {
  virtual void* find_logger() = 0;
};

using Creator = nvinfer1::IPluginCreatorInterface;

struct Registry10 {
  virtual void register_v2() = 0;
  virtual void list_v2() = 0;
  virtual void get_v2() = 0;
  virtual ~Registry10() = default;
  virtual void set_error_recorder() = 0;
  virtual void get_error_recorder() = 0;
  virtual void deregister_v2() = 0;
  virtual void is_parent_search_enabled() = 0;
  virtual void set_parent_search_enabled() = 0;
  virtual void load_library() = 0;
  virtual void deregister_library() = 0;
  virtual bool register_creator(Creator& creator, char const* name_space) noexcept = 0;
  virtual Creator* const* all_creators(int32_t* count) const noexcept = 0;
};

struct Registry11 {
  virtual ~Registry11() = default;
  virtual void set_error_recorder() = 0;
  virtual void get_error_recorder() = 0;
  virtual void is_parent_search_enabled() = 0;
  virtual void set_parent_search_enabled() = 0;
  virtual void load_library() = 0;
  virtual void deregister_library() = 0;
  virtual bool register_creator(Creator& creator, char const* name_space) noexcept = 0;
  virtual Creator* const* all_creators(int32_t* count) const noexcept = 0;
};

}  // namespace abi

// A logger of either form.
struct Logger {
  Form form;
  void* object;  // never null

  void error(char const* message) const {
    constexpr int32_t kError = 1;  // ILogger::Severity::kERROR
    if (form == Form::TensorRT10) {
      static_cast<abi::Logger10*>(object)->log(kError, message);
    } else {
      static_cast<abi::Logger11*>(object)->log(kError, message);
    }
  }
};

// What finds TensorRT's logger, of either form.
struct LoggerFinder {
  Form form;
  void* object;  // never null

  std::optional<Logger> find() const {
    void* const found = form == Form::TensorRT10 ? static_cast<abi::Finder10*>(object)->find_logger()
                                                 : static_cast<abi::Finder11*>(object)->find_logger();
    return found != nullptr ? std::optional<Logger>({form, found}) : std::nullopt;
  }
};

// A plugin registry of either form.
struct Registry {
  Form form;
  void* object;  // never null

  bool add(abi::Creator& creator, char const* name_space) const {
    return form == Form::TensorRT10 ? static_cast<abi::Registry10*>(object)->register_creator(creator, name_space)
                                    : static_cast<abi::Registry11*>(object)->register_creator(creator, name_space);
  }

  abi::Creator* const* all(int32_t* count) const {
    return form == Form::TensorRT10 ? static_cast<abi::Registry10*>(object)->all_creators(count)
                                    : static_cast<abi::Registry11*>(object)->all_creators(count);
  }
};

}  // namespace turbotrt
