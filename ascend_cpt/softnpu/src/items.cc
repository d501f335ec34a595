// Elements of tensors: loading as double, and storing with one rounding to nearest, ties to even.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#ifdef __F16C__
#include <immintrin.h>
#endif
#include "softnpu.h"

namespace softnpu {

namespace {

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

int64_t to_integer(double value) {
  if (std::isnan(value)) return 0;
  // Out of range is undefined in C++.
  if (value >= 0x1p63) return INT64_MAX;
  if (value < -0x1p63) return INT64_MIN;
  return static_cast<int64_t>(value);
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

// The float that keeps every later rounding to a shorter format right: truncated, with the last bit set where inexact.
static inline uint32_t odd_float(double d) {
  float f = (float)d;
  uint32_t u;
  std::memcpy(&u, &f, 4);
  double back = (double)f;
  u -= std::fabs(back) > std::fabs(d);
  return u | (back != d);
}
static inline uint16_t to_bf16(double d) {
  uint32_t u = odd_float(d);
  uint16_t rounded = (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
  return d != d ? 0x7fc0 : rounded;
}
static inline float from_half(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = (h >> 10) & 31, mantissa = h & 1023, u;
  if (exponent == 31) {
    u = sign | 0x7f800000 | (mantissa << 13);
  } else if (exponent) {
    u = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else {
    float f = (float)mantissa * 5.9604644775390625e-08f;  // 2^-24
    std::memcpy(&u, &f, 4);
    u |= sign;
  }
  float f;
  std::memcpy(&f, &u, 4);
  return f;
}
static inline uint16_t to_half(double d) {
  uint16_t sign = std::signbit(d) ? 0x8000 : 0;
  d = std::fabs(d);
  if (d != d) return sign | 0x7e00;
  if (d >= 65520.0) return sign | 0x7c00;
  if (d < 6.103515625e-05) return sign | (uint16_t)std::nearbyint(d * 16777216.0);
  int e;
  double m = std::frexp(d, &e);  // in [0.5, 1)
  int64_t q = (int64_t)std::nearbyint(m * 2048.0);
  if (q == 2048) q = 1024, e++;
  return sign | (uint16_t)(((e + 14) << 10) + (q - 1024));
}

template <class T> static void load_as(const char *p, int64_t stride, int64_t n, double *to) {
  const T *x = (const T *)p;
  if (stride == 1) for (int64_t i = 0; i < n; i++) to[i] = (double)x[i];
  else if (stride == 0) std::fill_n(to, n, (double)x[0]);
  else for (int64_t i = 0; i < n; i++) to[i] = (double)x[i * stride];
}
template <class F> static void load_16(const char *p, int64_t stride, int64_t n, double *to, F convert) {
  const uint16_t *x = (const uint16_t *)p;
  if (stride == 0) std::fill_n(to, n, (double)convert(x[0]));
  else for (int64_t i = 0; i < n; i++) to[i] = convert(x[i * stride]);
}
static void load_halves(const char *p, int64_t stride, int64_t n, double *to) {
#ifdef __F16C__
  const uint16_t *x = (const uint16_t *)p;
  for (; stride == 1 && n >= 8; n -= 8, x += 8, to += 8) {
    __m256 f = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x));
    _mm256_storeu_pd(to, _mm256_cvtps_pd(_mm256_castps256_ps128(f)));
    _mm256_storeu_pd(to + 4, _mm256_cvtps_pd(_mm256_extractf128_ps(f, 1)));
  }
  p = (const char *)x;
#endif
  load_16(p, stride, n, to, from_half);
}
static void store_halves(char *p, int64_t stride, int64_t n, const double *from) {
  uint16_t *x = (uint16_t *)p;
#ifdef __F16C__
  alignas(32) uint32_t odd[8];
  for (; stride == 1 && n >= 8; n -= 8, x += 8, from += 8) {
    for (int i = 0; i < 8; i++) odd[i] = odd_float(from[i]);
    __m128i h = _mm256_cvtps_ph(_mm256_castsi256_ps(_mm256_load_si256((const __m256i *)odd)), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128((__m128i *)x, h);
  }
#endif
  for (int64_t i = 0; i < n; i++) x[i * stride] = to_half(from[i]);
}
template <class T> static void store_float(char *p, int64_t stride, int64_t n, const double *from) {
  T *x = (T *)p;
  if (stride == 1) for (int64_t i = 0; i < n; i++) x[i] = (T)from[i];
  else for (int64_t i = 0; i < n; i++) x[i * stride] = (T)from[i];
}
// Whole numbers: towards zero, held at the type's limits; NaN becomes 0.
template <class T> static void store_whole(char *p, int64_t stride, int64_t n, const double *from) {
  T *x = (T *)p;
  const double low = (double)std::numeric_limits<T>::min(), high = (double)std::numeric_limits<T>::max();
  for (int64_t i = 0; i < n; i++) {
    double d = from[i];
    x[i * stride] = d != d ? 0 : d <= low ? std::numeric_limits<T>::min() : d >= high ? std::numeric_limits<T>::max() : (T)d;
  }
}

void load_run(const char *p, int dtype, int64_t stride, int64_t n, double *to) {
  switch (dtype) {
    case F32: return load_as<float>(p, stride, n, to);
    case F64: return load_as<double>(p, stride, n, to);
    case F16: return load_halves(p, stride, n, to);
    case BF16:
      return load_16(p, stride, n, to, [](uint16_t h) { uint32_t u = (uint32_t)h << 16; float f; std::memcpy(&f, &u, 4); return f; });
    case I8: return load_as<int8_t>(p, stride, n, to);
    case U8: case BOOL: return load_as<uint8_t>(p, stride, n, to);
    case I16: return load_as<int16_t>(p, stride, n, to);
    case U16: return load_as<uint16_t>(p, stride, n, to);
    case I32: return load_as<int32_t>(p, stride, n, to);
    case U32: return load_as<uint32_t>(p, stride, n, to);
    case I64: return load_as<int64_t>(p, stride, n, to);
    case U64: return load_as<uint64_t>(p, stride, n, to);
  }
  throw Error("dtype " + std::to_string(dtype) + " is not supported");
}
void store_run(char *p, int dtype, int64_t stride, int64_t n, const double *from) {
  switch (dtype) {
    case F32: return store_float<float>(p, stride, n, from);
    case F64: return store_float<double>(p, stride, n, from);
    case F16: return store_halves(p, stride, n, from);
    case BF16: {
      uint16_t *x = (uint16_t *)p;
      if (stride == 1) for (int64_t i = 0; i < n; i++) x[i] = to_bf16(from[i]);
      else for (int64_t i = 0; i < n; i++) x[i * stride] = to_bf16(from[i]);
      return;
    }
    case BOOL: for (int64_t i = 0; i < n; i++) p[i * stride] = from[i] != 0; return;
    case I8: return store_whole<int8_t>(p, stride, n, from);
    case U8: return store_whole<uint8_t>(p, stride, n, from);
    case I16: return store_whole<int16_t>(p, stride, n, from);
    case U16: return store_whole<uint16_t>(p, stride, n, from);
    case I32: return store_whole<int32_t>(p, stride, n, from);
    case U32: return store_whole<uint32_t>(p, stride, n, from);
    case I64: return store_whole<int64_t>(p, stride, n, from);
    case U64: return store_whole<uint64_t>(p, stride, n, from);
  }
  throw Error("dtype " + std::to_string(dtype) + " is not supported");
}

void load_items(const char *from, int dtype, double *to, size_t count) {
  load_run(from, dtype, 1, static_cast<int64_t>(count), to);
}

void store_items(char *to, int dtype, const double *from, size_t count) {
  store_run(to, dtype, 1, static_cast<int64_t>(count), from);
}

double load_item(const char *place, int dtype) {
  double value;
  load_items(place, dtype, &value, 1);
  return value;
}

void store_item(char *place, int dtype, double value) { store_items(place, dtype, &value, 1); }

int64_t load_integer(const char *place, int dtype) {
  if (is_float(dtype)) return to_integer(load_item(place, dtype));
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
