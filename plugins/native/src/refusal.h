// The one exception inside the library; none leaves it.
#pragma once

#include <stdexcept>

namespace turbotrt {

// What was given cannot be used; the message says why.
class Refusal : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace turbotrt
