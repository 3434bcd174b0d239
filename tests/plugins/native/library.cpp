#include "library.h"

#include <dlfcn.h>

#include <stdexcept>

namespace life {

namespace {

using nvinfer1::IPluginV3;
using nvinfer1::PluginCapabilityType;

template <typename Function>
void find(void* library, char const* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  if (function == nullptr) {
    throw std::runtime_error(std::string("the library does not export ") + name);
  }
}

}  // namespace

Library::Library(char const* path) {
  void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    throw std::runtime_error(dlerror());
  }
  find(library, "getCreators", get_creators);
  find(library, "setLoggerFinder", set_logger_finder);
  find(library, "initTurbotrtPlugins", init);
  find(library, "turbotrtPluginsVersion", version);
}

nvinfer1::IPluginCreatorV3One& Library::creator(std::string const& op) const {
  int32_t number = 0;
  nvinfer1::IPluginCreatorInterface* const* const creators = get_creators(number);
  for (int32_t i = 0; i < number; ++i) {
    auto& found = static_cast<nvinfer1::IPluginCreatorV3One&>(*creators[i]);
    if (op == found.getPluginName()) {
      return found;
    }
  }
  throw std::runtime_error("no creator of " + op);
}

std::unique_ptr<IPluginV3> Library::create(std::string const& op, std::string const& data,
                                           nvinfer1::TensorRTPhase phase, char const* field,
                                           nvinfer1::PluginFieldType type) const {
  nvinfer1::PluginField const given(field, data.data(), type, static_cast<int32_t>(data.size()));
  nvinfer1::PluginFieldCollection const fields{1, &given};
  return std::unique_ptr<IPluginV3>(creator(op).createPlugin("a node", &fields, phase));
}

nvinfer1::IPluginV3OneBuild& build(IPluginV3& plugin) {
  return *static_cast<nvinfer1::IPluginV3OneBuild*>(plugin.getCapabilityInterface(PluginCapabilityType::kBUILD));
}

nvinfer1::IPluginV3OneRuntime& runtime(IPluginV3& plugin) {
  return *static_cast<nvinfer1::IPluginV3OneRuntime*>(plugin.getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

std::string serialized(IPluginV3& plugin) {
  nvinfer1::PluginFieldCollection const& fields = *runtime(plugin).getFieldsToSerialize();
  nvinfer1::PluginField const& field = fields.fields[0];
  if (fields.nbFields != 1 || std::string(field.name) != "plan") {
    throw std::runtime_error("another field than the plan");
  }
  return std::string(static_cast<char const*>(field.data), static_cast<size_t>(field.length));
}

std::unique_ptr<IPluginV3> attached(Library const& library, std::string const& op, IPluginV3& plugin) {
  std::unique_ptr<IPluginV3> const rebuilt =
      library.create(op, serialized(plugin) + '\0', nvinfer1::TensorRTPhase::kRUNTIME);
  if (rebuilt == nullptr) {
    throw std::runtime_error("not rebuilt from what it serializes");
  }
  return std::unique_ptr<IPluginV3>(runtime(*rebuilt).attachToContext(nullptr));
}

}  // namespace life
