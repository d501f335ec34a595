// Elements of tensors: loading as double, and storing with one rounding to nearest, ties to even.
#include <cmath>
#include <cstring>
#include "softnpu.h"

namespace softnpu {

namespace {

double half_to_double(uint16_t h) {
  int exponent = (h >> 10) & 31, mantissa = h & 1023;
  double magnitude;
  if (exponent == 31) magnitude = mantissa ? NAN : INFINITY;
  else if (exponent) magnitude = std::ldexp(1024 + mantissa, exponent - 25);
  else magnitude = std::ldexp(mantissa, -24);
  return std::copysign(magnitude, h & 0x8000 ? -1.0 : 1.0);
}

uint16_t double_to_half(double value) {
  uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  double x = std::fabs(value);
  if (std::isnan(x)) return sign | 0x7e00;
  if (x >= 65520.0) return sign | 0x7c00;
  // Below the smallest normal number the spacing is fixed; nearbyint rounds ties to even.
  if (x < 0x1p-14) return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(x, 24)));
  int exponent;
  auto scaled = static_cast<int>(std::nearbyint(std::ldexp(std::frexp(x, &exponent), 11)));  // 1024..2048
  return sign | static_cast<uint16_t>(((exponent + 13) << 10) + scaled);  // 2048 carries into the exponent
}

double bfloat_to_double(uint16_t h) {
  uint32_t bits = static_cast<uint32_t>(h) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

uint16_t double_to_bfloat(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, 8);
  uint16_t sign = static_cast<uint16_t>(bits >> 48) & 0x8000;
  if (std::isnan(value)) return sign | 0x7fc0;
  double x = std::fabs(value);
  if (x < 0x1p-126) return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(x, 133)));
  // 1 + 11 + 52 bits become 1 + 8 + 7: 45 are dropped. From the double at once, as rounding to float first rounds twice.
  bits &= 0x7fffffffffffffffull;
  bits += (1ull << 44) - 1 + ((bits >> 45) & 1);
  int64_t rounded = static_cast<int64_t>(bits >> 45) - ((1023 - 127) << 7);
  return sign | static_cast<uint16_t>(rounded < 0x7f80 ? rounded : 0x7f80);
}

template <class T> T read(const char *place) { T x; std::memcpy(&x, place, sizeof x); return x; }
template <class T> void write(char *place, T x) { std::memcpy(place, &x, sizeof x); }

// Calls f with a value of the C++ type behind an integer, float or double dtype.
template <class F> auto with_type(int dtype, F f) {
  switch (dtype) {
    case F32: return f(float{});
    case F64: return f(double{});
    case I8: return f(int8_t{});
    case U8: case BOOL: return f(uint8_t{});
    case I16: return f(int16_t{});
    case U16: return f(uint16_t{});
    case I32: return f(int32_t{});
    case U32: return f(uint32_t{});
    case I64: return f(int64_t{});
    case U64: return f(uint64_t{});
    default: throw Error("dtype " + std::to_string(dtype) + " is not supported");
  }
}

template <class T> T convert(double value) {
  if constexpr (std::is_floating_point_v<T>) return static_cast<T>(value);
  // Out of range is undefined in C++: wrap through the widest integer instead.
  if (std::isnan(value)) return 0;
  if constexpr (std::is_same_v<T, uint64_t>) {
    if (value >= 0x1p63) return value >= 0x1p64 ? ~uint64_t{0} : static_cast<uint64_t>(value);
  }
  if (value >= 0x1p63) return static_cast<T>(INT64_MAX);
  if (value < -0x1p63) return static_cast<T>(INT64_MIN);
  return static_cast<T>(static_cast<int64_t>(value));
}

}  // namespace

size_t item_bytes(int dtype) {
  if (dtype == F16 || dtype == BF16) return 2;
  return with_type(dtype, [](auto zero) { return sizeof zero; });
}

const char *dtype_name(int dtype) {
  switch (dtype) {
    case F32: return "float32";
    case F16: return "float16";
    case BF16: return "bfloat16";
    case F64: return "float64";
    case I8: return "int8";
    case U8: return "uint8";
    case I16: return "int16";
    case U16: return "uint16";
    case I32: return "int32";
    case U32: return "uint32";
    case I64: return "int64";
    case U64: return "uint64";
    case BOOL: return "bool";
    default: return "unknown dtype";
  }
}

bool is_float(int dtype) { return dtype == F32 || dtype == F16 || dtype == BF16 || dtype == F64; }

void load_items(const char *from, int dtype, double *to, size_t count) {
  if (dtype == F16) {
    for (size_t i = 0; i < count; i++) to[i] = half_to_double(read<uint16_t>(from + 2 * i));
  } else if (dtype == BF16) {
    for (size_t i = 0; i < count; i++) to[i] = bfloat_to_double(read<uint16_t>(from + 2 * i));
  } else {
    with_type(dtype, [&](auto zero) {
      using T = decltype(zero);
      for (size_t i = 0; i < count; i++) to[i] = static_cast<double>(read<T>(from + i * sizeof(T)));
    });
  }
}

void store_items(char *to, int dtype, const double *from, size_t count) {
  if (dtype == F16) {
    for (size_t i = 0; i < count; i++) write(to + 2 * i, double_to_half(from[i]));
  } else if (dtype == BF16) {
    for (size_t i = 0; i < count; i++) write(to + 2 * i, double_to_bfloat(from[i]));
  } else if (dtype == BOOL) {
    for (size_t i = 0; i < count; i++) to[i] = from[i] != 0;
  } else {
    with_type(dtype, [&](auto zero) {
      using T = decltype(zero);
      for (size_t i = 0; i < count; i++) write(to + i * sizeof(T), convert<T>(from[i]));
    });
  }
}

double load_item(const char *place, int dtype) {
  double value;
  load_items(place, dtype, &value, 1);
  return value;
}

void store_item(char *place, int dtype, double value) { store_items(place, dtype, &value, 1); }

int64_t load_integer(const char *place, int dtype) {
  if (is_float(dtype)) return convert<int64_t>(load_item(place, dtype));
  return with_type(dtype, [&](auto zero) { return static_cast<int64_t>(read<decltype(zero)>(place)); });
}

void store_integer(char *place, int dtype, int64_t value) {
  if (is_float(dtype)) return store_item(place, dtype, static_cast<double>(value));
  if (dtype == BOOL) return write<uint8_t>(place, value != 0);
  with_type(dtype, [&](auto zero) { write(place, static_cast<decltype(zero)>(value)); });
}

int64_t count_elements(const Dims &dims) {
  int64_t count = 1;
  for (int64_t size : dims) count *= size;
  return count;
}

Dims dense_strides(const Dims &dims) {
  Dims strides(dims.size(), 1);
  for (size_t i = dims.size(); i-- > 1;) strides[i - 1] = strides[i] * dims[i];
  return strides;
}

}  // namespace softnpu
