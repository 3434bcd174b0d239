// What the stand-in driver tells the probe, beside CUDA's own functions.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace stand_in {

constexpr int kMaxArguments = 72;

// One launch. ``kernel`` is the number of its cubin's bytes (FNV-1a), ``sizes`` are the kernel's own, of its parameters.
struct Launch {
  char name[257];
  uint64_t cubin, context;
  unsigned grid[3], block[3], shared, opted;
  uint64_t stream;
  int count;
  int sizes[kMaxArguments];
  uint64_t values[kMaxArguments];
};

}  // namespace stand_in

extern "C" {
// The context of this thread: a number, or 0 for none.
void stand_in_context(uint64_t number);
// The launches of this thread since it was last asked; at most 256 are kept. Nothing is allocated or locked for them.
int stand_in_launches(stand_in::Launch const** launches);
// Libraries that are loaded now.
int stand_in_loaded();
// How many libraries were ever loaded.
int stand_in_loads();
// From now on the function of this name fails in all threads, or none does (null).
void stand_in_fail(char const* function);
}
