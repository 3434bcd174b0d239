// What the library exports, and what it does where it is loaded. All else is hidden (exports.map).
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "creator.h"
#include "facts.h"
#include "hosts.h"
#include "log.h"
#include "refusal.h"

#define TURBOTRT_EXPORT extern "C" __attribute__((visibility("default")))

namespace turbotrt {

namespace {

#define TURBOTRT_TEXT_OF(x) #x
#define TURBOTRT_TEXT(x) TURBOTRT_TEXT_OF(x)
// What plugins/library.py reads off the file, without loading it.
constexpr char kSaid[] = TURBOTRT_SAID "tensorrt " TURBOTRT_TEXT(NV_TENSORRT_MAJOR) "." TURBOTRT_TEXT(
    NV_TENSORRT_MINOR) "." TURBOTRT_TEXT(NV_TENSORRT_PATCH) "\n";
constexpr char const* kOps[] = {
#define TURBOTRT_ITEM(op) op,
    TURBOTRT_OPS(TURBOTRT_ITEM)
#undef TURBOTRT_ITEM
};

// The creators of all ops in one namespace. They stay as long as the process: registries keep their addresses.
class Creators {
 public:
  explicit Creators(std::string const& name_space) : name_space_(name_space) {
    for (char const* op : kOps) {
      made_.push_back(std::make_unique<PlanCreator>(op, name_space));
      given_.push_back(made_.back().get());
    }
  }

  std::string const& name_space() const { return name_space_; }
  std::vector<nvinfer1::IPluginCreatorInterface*> const& given() const { return given_; }

  static Creators& in(std::string const& name_space) {
    static std::mutex* const mutex = new std::mutex;
    static auto* const all = new std::vector<std::unique_ptr<Creators>>;
    std::lock_guard<std::mutex> const held(*mutex);
    for (auto const& creators : *all) {
      if (creators->name_space() == name_space) {
        return *creators;
      }
    }
    all->push_back(std::make_unique<Creators>(name_space));
    return *all->back();
  }

 private:
  std::string name_space_;
  std::vector<std::unique_ptr<PlanCreator>> made_;
  std::vector<nvinfer1::IPluginCreatorInterface*> given_;
};

// Whether the registry has the first of our ops in this namespace; asking it for one by name would log an error.
bool has_ours(Registry const& registry, std::string const& name_space) {
  int32_t count = 0;
  abi::Creator* const* const creators = registry.all(&count);
  for (int32_t i = 0; i < count; ++i) {
    if (std::strcmp(creators[i]->getInterfaceInfo().kind, "PLUGIN CREATOR_V3ONE") == 0) {
      auto const& creator = static_cast<nvinfer1::IPluginCreatorV3One const&>(*creators[i]);
      if (std::strcmp(creator.getPluginName(), kOps[0]) == 0 && name_space == creator.getPluginNamespace()) {
        return true;
      }
    }
  }
  return false;
}

// Registers all creators with a registry that has none of them; false where it does not take one.
bool register_with(Registry const& registry, std::string const& name_space) {
  if (has_ours(registry, name_space)) {
    return true;
  }
  bool taken = true;
  for (abi::Creator* creator : Creators::in(name_space).given()) {
    taken = registry.add(*creator, name_space.c_str()) && taken;
  }
  return taken;
}

// Keeps the library where it is when the host closes it: registries have addresses in it.
void stay() {
  Dl_info info{};
  if (dladdr(kSaid, &info) != 0) {
    dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
  }
}

// False where there is no TensorRT, or one does not take them.
bool register_with_all(std::vector<Host> const& found, std::string const& name_space) {
  bool any = false, taken = true;
  for (Host const& host : found) {
    if (host.registry) {
      any = true;
      taken = register_with(*host.registry, name_space) && taken;
    }
  }
  if (any) {
    stay();
  }
  return any && taken;
}

// LD_PRELOAD, trtexec --staticPlugins, Triton's plugins=: whoever opens the library has the plugins. Where TensorRT
// itself opens it, TensorRT holds its registry meanwhile, and asks for the creators afterwards.
__attribute__((constructor)) void register_at_load() {
  guarded("loading", false, [] { return calling_host() || register_with_all(hosts(), ""); });
}

}  // namespace

}  // namespace turbotrt

// trtexec and tensorrt_rtx --dynamicPlugins, IPluginRegistry::loadLibrary, engines that hold the library.
TURBOTRT_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  return turbotrt::guarded<nvinfer1::IPluginCreatorInterface* const*>("getCreators", nullptr, [&] {
    auto const& creators = turbotrt::Creators::in("").given();
    count = static_cast<int32_t>(creators.size());
    return creators.data();
  });
}

TURBOTRT_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  using turbotrt::Host;
  turbotrt::guarded("setLoggerFinder", false, [&] {
    std::optional<Host> const host = turbotrt::calling_host();
    std::vector<Host> const others = host ? std::vector<Host>() : turbotrt::hosts();
    if (finder != nullptr && (host || !others.empty())) {
      turbotrt::set_logger_finder({host ? host->form : others.front().form, finder});
    }
    return true;
  });
}

// For C++ programs: registers all plugins with the program's TensorRT, in a namespace ("" is the ONNX parser's).
// ``logger`` is that TensorRT's nvinfer1::ILogger*, or null. False, and the reason is logged, where that did not work.
TURBOTRT_EXPORT bool initTurbotrtPlugins(void* logger, char const* name_space) {
  return turbotrt::guarded("initTurbotrtPlugins", false, [&] {
    std::vector<turbotrt::Host> const found = turbotrt::hosts();
    if (logger != nullptr && !found.empty()) {
      turbotrt::set_logger({found.front().form, logger});
    }
    bool const taken = turbotrt::register_with_all(found, name_space != nullptr ? name_space : "");
    if (!taken) {
      throw turbotrt::Refusal(found.empty() ? "there is no TensorRT in this process that is known"
                                            : "TensorRT did not take the plugins");
    }
    return taken;
  });
}

// Lines "name value": turbotrt's version, the plan format and plugin version, the ops, TensorRT's headers.
TURBOTRT_EXPORT char const* turbotrtPluginsVersion() { return turbotrt::kSaid; }
