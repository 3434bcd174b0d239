// Reads a plan's msgpack body, field by field.
#pragma once

#include <string_view>

#include "plan.h"

namespace turbotrt {

// Fills the plan from the body, into which its views then point. Throws Refusal on what plugins/plan.py refuses, and on
// what its ``encode`` does not write: fields in another order, unknown ones, floating-point numbers.
void read_plan(std::string_view body, Plan& plan);

}  // namespace turbotrt
