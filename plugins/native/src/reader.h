// Reads msgpack as plugins/plan.py writes it: bounded views of the bytes, no recursion, no copies.
#pragma once

#include <cstdint>
#include <string_view>

namespace turbotrt {

// Walks over one body. Every method throws Refusal where the next value is not of its kind, or is cut short.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : left_(bytes) {}

  // Kinds that a value may be one of.
  bool at_text() const;
  bool at_array() const;

  // Number of pairs or elements, which follow; refused outside [least, most].
  int64_t map(int64_t least, int64_t most);
  int64_t array(int64_t least, int64_t most);

  // Exactly this text: a struct's fields come in the order of its declaration.
  void key(std::string_view wanted);

  // A name: printable ASCII, of 1 to kMaxName characters.
  std::string_view name();
  // Any text.
  std::string_view text();
  // Bytes.
  std::string_view binary();

  // An integer in [least, most].
  int64_t integer(int64_t least, int64_t most);
  // An integer of any size, which nobody looks at.
  void skip_integer();

  // Refuses bytes after the value.
  void end() const;

 private:
  struct Integer {
    uint64_t bits;
    bool negative;
  };

  uint8_t peek() const;
  uint8_t byte();
  std::string_view take(uint64_t count);
  uint64_t big_endian(int bytes);
  int64_t count(uint8_t fixed, uint8_t fixed_mask, uint8_t wide, char const* kind, int64_t least, int64_t most);
  Integer any_integer();

  std::string_view left_;
};

}  // namespace turbotrt
