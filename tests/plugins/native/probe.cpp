// Leads plugins' lives for tests that speak with it: ``probe LIBRARY VERSION``, VERSION being that of the TensorRT that
// it stands for (0: none). Commands on stdin, a line each; answers are lines "log …", then one line that is the answer.
#include <dlfcn.h>
#include <pthread.h>

#include <cstring>
#include <iostream>
#include <sstream>

#include "host.h"
#include "life.h"
#include "stand_in_cuda.h"

#if defined(__SANITIZE_ADDRESS__)
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*)(void const volatile*, size_t),
                                                         void (*)(void const volatile*));
#endif

namespace {

thread_local bool counting = false;
thread_local life::Counts counts = {0, 0};

#if defined(__SANITIZE_ADDRESS__)
void on_malloc(void const volatile*, size_t) { counts.allocations += counting ? 1 : 0; }
void on_free(void const volatile*) { counts.allocations += counting ? 1 : 0; }
#endif

nvinfer1::Dims dims_of(std::string const& text) {
  nvinfer1::Dims dims{};
  std::istringstream in(text);
  for (std::string number; std::getline(in, number, ',') && dims.nbDims < nvinfer1::Dims::MAX_DIMS;) {
    dims.d[dims.nbDims++] = std::stoll(number);
  }
  return dims;
}

// "200,256;256": two inputs.
life::Shapes shapes_of(std::string const& text) {
  life::Shapes shapes;
  std::istringstream in(text);
  for (std::string each; std::getline(in, each, ';');) {
    shapes.push_back(dims_of(each));
  }
  return shapes;
}

std::string joined(std::vector<std::string> const& words) {
  std::string text;
  for (std::string const& word : words) {
    text += " " + word;
  }
  return text;
}

class Probe {
 public:
  explicit Probe(life::Library const& library) : library_(library) {}

  std::string answer(std::string const& command, std::istringstream& words) {
    if (command == "create") {
      return create(words);
    }
    std::string rest;
    words >> rest;
    if (command == "life") {
      return life_->answers(shapes_of(rest));
    }
    if (command == "threads") {
      return threads(rest);
    }
    if (command == "drop") {
      life_.reset();
      return std::to_string(stand_in_loaded()) + " " + std::to_string(stand_in_loads());
    }
    if (command == "fail") {
      static std::string name;
      name = rest;
      stand_in_fail(rest.empty() ? nullptr : name.c_str());
      return "done";
    }
    if (command == "context") {
      stand_in_context(std::stoull(rest));
      return "done";
    }
    if (command == "init") {
      return library_.init(host::logger(), rest.c_str()) ? "taken" : "refused";
    }
    return command == "registered" ? "registered" + joined(host::registered()) : "an unknown command";
  }

 private:
  // "create OP FIELD BYTES", then the bytes.
  std::string create(std::istringstream& words) {
    std::string op, field;
    size_t size = 0;
    words >> op >> field >> size;
    std::string data(size, '\0');
    std::cin.read(data.data(), static_cast<std::streamsize>(size));
    life_.reset();
    if (field != "plan") {
      return library_.create(op, data, nvinfer1::TensorRTPhase::kBUILD, field.c_str()) ? "made" : "refused";
    }
    try {
      life_ = std::make_unique<life::Life>(library_, op, data);
    } catch (std::runtime_error const& error) {
      return error.what();
    }
    return "made";
  }

  std::string threads(std::string const& text) {
    std::vector<life::Shapes> cases;
    std::istringstream in(text);
    for (std::string each; std::getline(in, each, '|');) {
      cases.push_back(shapes_of(each));
    }
    return life_->threads(cases, 2, 20);
  }

  life::Library const& library_;
  std::unique_ptr<life::Life> life_;
};

}  // namespace

namespace life {

void count(bool on) {
  if (on) {
    counts = {0, 0};
  }
  counting = on;
}

Counts counted() { return counts; }

}  // namespace life

#if !defined(__SANITIZE_THREAD__)
// In place of the C library's, for the library as well.
extern "C" int pthread_mutex_lock(pthread_mutex_t* mutex) noexcept {
  static auto* const real = reinterpret_cast<int (*)(pthread_mutex_t*)>(dlsym(RTLD_NEXT, "pthread_mutex_lock"));
  counts.locks += counting ? 1 : 0;
  return real(mutex);
}
#endif

int main(int count, char** arguments) {
  if (count != 3) {
    std::cerr << "usage: probe LIBRARY VERSION\n";
    return 2;
  }
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);
#endif
  host::be(std::atoi(arguments[2]));
  life::Library const library(arguments[1]);
  library.set_logger_finder(host::logger_finder());
  Probe probe(library);
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string command;
    words >> command;
    std::string const answer = probe.answer(command, words);
    for (std::string const& said : host::take_log()) {
      std::cout << "log " << said << "\n";
    }
    std::cout << answer << std::endl;
  }
}
