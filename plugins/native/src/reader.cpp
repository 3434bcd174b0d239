#include "reader.h"

#include <string>

#include "facts.h"
#include "refusal.h"

namespace turbotrt {

namespace {

// msgpack's leading bytes.
constexpr uint8_t kFixMap = 0x80, kFixMapMask = 0xf0, kMap16 = 0xde;
constexpr uint8_t kFixArray = 0x90, kFixArrayMask = 0xf0, kArray16 = 0xdc;
constexpr uint8_t kFixText = 0xa0, kFixTextMask = 0xe0, kText8 = 0xd9;
constexpr uint8_t kBinary8 = 0xc4;
constexpr uint8_t kUnsigned8 = 0xcc, kUnsigned64 = 0xcf, kSigned8 = 0xd0, kSigned64 = 0xd3;
constexpr uint8_t kFirstNegative = 0xe0, kLastPositive = 0x7f;

}  // namespace

uint8_t Reader::peek() const {
  if (left_.empty()) {
    throw Refusal("it is cut short");
  }
  return static_cast<uint8_t>(left_.front());
}

uint8_t Reader::byte() {
  uint8_t const value = peek();
  left_.remove_prefix(1);
  return value;
}

std::string_view Reader::take(uint64_t count) {
  if (count > left_.size()) {
    throw Refusal("it is cut short");
  }
  std::string_view const taken = left_.substr(0, count);
  left_.remove_prefix(count);
  return taken;
}

uint64_t Reader::big_endian(int bytes) {
  uint64_t value = 0;
  for (char const c : take(static_cast<uint64_t>(bytes))) {
    value = value << 8 | static_cast<uint8_t>(c);
  }
  return value;
}

bool Reader::at_text() const {
  uint8_t const first = peek();
  return (first & kFixTextMask) == kFixText || (first >= kText8 && first <= kText8 + 2);
}

bool Reader::at_array() const {
  uint8_t const first = peek();
  return (first & kFixArrayMask) == kFixArray || first == kArray16 || first == kArray16 + 1;
}

int64_t Reader::count(uint8_t fixed, uint8_t fixed_mask, uint8_t wide, char const* kind, int64_t least, int64_t most) {
  uint8_t const first = byte();
  uint64_t number = 0;
  if ((first & fixed_mask) == fixed) {
    number = first & static_cast<uint8_t>(~fixed_mask);
  } else if (first == wide || first == wide + 1) {
    number = big_endian(first == wide ? 2 : 4);
  } else {
    throw Refusal(std::string("no ") + kind + " where one belongs");
  }
  int64_t const found = static_cast<int64_t>(number);
  if (found < least || found > most) {
    throw Refusal(std::string("a ") + kind + " of " + std::to_string(found));
  }
  return found;
}

int64_t Reader::map(int64_t least, int64_t most) { return count(kFixMap, kFixMapMask, kMap16, "map", least, most); }

int64_t Reader::array(int64_t least, int64_t most) {
  return count(kFixArray, kFixArrayMask, kArray16, "list", least, most);
}

void Reader::key(std::string_view wanted) {
  if (text() != wanted) {
    throw Refusal("no " + std::string(wanted) + " where it belongs");
  }
}

std::string_view Reader::text() {
  if (!at_text()) {
    throw Refusal("no text where one belongs");
  }
  uint8_t const first = byte();
  bool const small = (first & kFixTextMask) == kFixText;
  return take(small ? first & static_cast<uint8_t>(~kFixTextMask) : big_endian(1 << (first - kText8)));
}

std::string_view Reader::name() {
  std::string_view const found = text();
  bool good = !found.empty() && found.size() <= static_cast<size_t>(kMaxName);
  for (char const c : found) {
    good = good && c >= ' ' && c <= '~';
  }
  if (!good) {
    throw Refusal("a name that is none");
  }
  return found;
}

std::string_view Reader::binary() {
  uint8_t const first = byte();
  if (first < kBinary8 || first > kBinary8 + 2) {
    throw Refusal("no bytes where they belong");
  }
  return take(big_endian(1 << (first - kBinary8)));
}

Reader::Integer Reader::any_integer() {
  uint8_t const first = byte();
  if (first <= kLastPositive) {
    return {first, false};
  }
  if (first >= kFirstNegative) {
    return {static_cast<uint64_t>(static_cast<int64_t>(static_cast<int8_t>(first))), true};
  }
  if (first >= kUnsigned8 && first <= kUnsigned64) {
    return {big_endian(1 << (first - kUnsigned8)), false};
  }
  if (first >= kSigned8 && first <= kSigned64) {
    int const bytes = 1 << (first - kSigned8);
    uint64_t const raw = big_endian(bytes);
    bool const negative = (raw >> (8 * bytes - 1)) != 0;
    uint64_t const extension = bytes == 8 ? 0 : ~uint64_t{0} << (8 * bytes);
    return {negative ? raw | extension : raw, negative};
  }
  throw Refusal("no integer where one belongs");
}

int64_t Reader::integer(int64_t least, int64_t most) {
  Integer const found = any_integer();
  bool const fits = found.negative || found.bits <= static_cast<uint64_t>(INT64_MAX);
  int64_t const value = static_cast<int64_t>(found.bits);
  if (!fits || value < least || value > most) {
    throw Refusal((fits ? std::to_string(value) : std::to_string(found.bits)) + " is out of bounds");
  }
  return value;
}

void Reader::skip_integer() { any_integer(); }

void Reader::end() const {
  if (!left_.empty()) {
    throw Refusal("bytes after its end");
  }
}

}  // namespace turbotrt
