#include "plan_reader.h"

#include <algorithm>
#include <string>

#include "facts.h"
#include "reader.h"
#include "refusal.h"

namespace turbotrt {

namespace {

using Names = std::vector<std::string_view>;

int64_t read_count(Reader& reader, std::string_view key) {
  reader.key(key);
  return reader.integer(0, kMaxCount);
}

// Throws Refusal for a text that names no dtype.
DType read_dtype(Reader& reader) {
  std::string_view const text = reader.text();
#define TURBOTRT_NAMED(name, bytes, type)          \
  if (text == name) {                              \
    return {bytes, nvinfer1::DataType::type};      \
  }
  TURBOTRT_DTYPES(TURBOTRT_NAMED)
#undef TURBOTRT_NAMED
  throw Refusal("a dtype that there is not");
}

void read_attributes(Reader& reader) {
  reader.key("attributes");
  Names seen;
  for (int64_t left = reader.map(0, kMaxList); left > 0; --left) {
    seen.push_back(reader.name());
    if (std::count(seen.begin(), seen.end(), seen.back()) > 1) {
      throw Refusal("two attributes of one name");
    }
    if (reader.at_text()) {
      reader.name();
    } else {
      reader.skip_integer();
    }
  }
}

void read_symbols(Reader& reader, Plan& plan) {
  reader.key("symbols");
  for (int64_t left = reader.map(0, kMaxSymbols); left > 0; --left) {
    std::string_view const name = reader.name();
    if (std::count(plan.symbols.begin(), plan.symbols.end(), name) != 0) {
      throw Refusal("two symbols of one name");
    }
    reader.array(2, 2);
    size_t const input = static_cast<size_t>(reader.integer(0, kMaxCount));
    size_t const axis = static_cast<size_t>(reader.integer(0, kMaxCount));
    plan.symbols.push_back(name);
    plan.sources.push_back({input, axis});
  }
}

std::vector<TensorSpec> read_tensors(Reader& reader, std::string_view key, Names const& symbols) {
  reader.key(key);
  std::vector<TensorSpec> found;
  for (int64_t left = reader.array(0, kMaxList); left > 0; --left) {
    reader.map(3, 3);
    TensorSpec spec{};
    reader.key("name");
    spec.name = reader.name();
    reader.key("dtype");
    spec.dtype = read_dtype(reader);
    reader.key("shape");
    for (int64_t dims = reader.array(0, kMaxDims); dims > 0; --dims) {
      spec.shape.push_back(Expr::read(reader, symbols));
    }
    found.push_back(std::move(spec));
  }
  return found;
}

std::vector<KernelImage> read_kernels(Reader& reader) {
  reader.key("kernels");
  std::vector<KernelImage> found;
  for (int64_t left = reader.array(0, kMaxList); left > 0; --left) {
    reader.map(8, 8);
    KernelImage image{};
    reader.key("name");
    image.name = reader.name();
    reader.key("cubin");
    image.cubin = reader.binary();
    reader.key("num_warps");
    image.num_warps = reader.integer(1, kMaxWarps);
    reader.key("shared");
    image.shared = reader.integer(0, kMaxShared);
    image.global_scratch = read_count(reader, "global_scratch");
    for (char const* key : {"global_scratch_align", "registers", "spills"}) {
      read_count(reader, key);
    }
    found.push_back(std::move(image));
  }
  return found;
}

Argument read_argument(Reader& reader, Names const& tensors, Names const& symbols) {
  reader.array(2, 2);
  std::string_view const kind = reader.text();
  if (kind == "i32") {
    return {false, 0, Expr::read(reader, symbols)};
  }
  if (kind != "tensor") {
    throw Refusal("an argument of a kind that there is not");
  }
  auto const found = std::find(tensors.begin(), tensors.end(), reader.text());
  if (found == tensors.end()) {
    throw Refusal("an argument that is no tensor");
  }
  return {true, static_cast<size_t>(found - tensors.begin()), {}};
}

std::vector<LaunchSpec> read_launches(Reader& reader, Plan const& plan, Names const& tensors) {
  reader.key("launches");
  std::vector<LaunchSpec> found;
  for (int64_t left = reader.array(0, kMaxList); left > 0; --left) {
    reader.map(3, 3);
    LaunchSpec launch{};
    launch.kernel = static_cast<size_t>(read_count(reader, "kernel"));
    if (launch.kernel >= plan.kernels.size()) {
      throw Refusal("a launch of a kernel that is not there");
    }
    reader.key("grid");
    reader.array(3, 3);
    for (Expr& dim : launch.grid) {
      dim = Expr::read(reader, plan.symbols);
    }
    reader.key("args");
    for (int64_t args = reader.array(0, kMaxList); args > 0; --args) {
      launch.args.push_back(read_argument(reader, tensors, plan.symbols));
    }
    found.push_back(std::move(launch));
  }
  return found;
}

// The names of all tensors, in the order of their slots. Throws Refusal where one comes twice.
Names tensor_names(Plan const& plan) {
  Names names;
  for (auto const* specs : {&plan.inputs, &plan.outputs, &plan.buffers}) {
    for (TensorSpec const& spec : *specs) {
      names.push_back(spec.name);
    }
  }
  Names sorted = names;
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) {
    throw Refusal("two tensors of one name");
  }
  return names;
}

void check_sources(Plan const& plan) {
  for (SymbolSource const& source : plan.sources) {
    if (source.input >= plan.inputs.size() || source.axis >= plan.inputs[source.input].shape.size()) {
      throw Refusal("a symbol read from an axis that there is not");
    }
  }
}

}  // namespace

void read_plan(std::string_view body, Plan& plan) {
  Reader reader(body);
  reader.map(9, 9);
  reader.key("op");
  plan.op = reader.name();
  read_count(reader, "sm");
  read_attributes(reader);
  read_symbols(reader, plan);
  plan.inputs = read_tensors(reader, "inputs", plan.symbols);
  plan.outputs = read_tensors(reader, "outputs", plan.symbols);
  plan.buffers = read_tensors(reader, "buffers", plan.symbols);
  check_sources(plan);
  plan.kernels = read_kernels(reader);
  plan.launches = read_launches(reader, plan, tensor_names(plan));
  plan.has_scratch = std::any_of(plan.kernels.begin(), plan.kernels.end(),
                                 [](KernelImage const& kernel) { return kernel.global_scratch != 0; });
  reader.end();
}

}  // namespace turbotrt
