// Runs of elements to and from double; views of tensors; copies.
#include "arrays.h"
#include <memory>
#ifdef __F16C__
#include <immintrin.h>
#endif

namespace softnpu {

// The float that keeps every later rounding to a shorter format right: truncated, with the last bit set where inexact.
static inline uint32_t odd_float(double d) {
  float f = (float)d;
  uint32_t u;
  memcpy(&u, &f, 4);
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
    memcpy(&u, &f, 4);
    u |= sign;
  }
  float f;
  memcpy(&f, &u, 4);
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
      return load_16(p, stride, n, to, [](uint16_t h) { uint32_t u = (uint32_t)h << 16; float f; memcpy(&f, &u, 4); return f; });
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

std::string show(const Dims &dims) {
  std::string s = "[";
  for (size_t i = 0; i < dims.size(); i++) s += (i ? "," : "") + std::to_string(dims[i]);
  return s + "]";
}
static std::string show(const Tensor &t) { return "tensor " + show(t.dims) + " of " + dtype_name(t.dtype); }
void need_dtype(const Tensor &t, std::initializer_list<int> allowed) {
  for (int a : allowed) if (t.dtype == a) return;
  throw Error(show(t) + ": this operator does not take the dtype");
}
void need_float(const Tensor &t) { need_dtype(t, {F32, F16, BF16, F64}); }
void need_whole(const Tensor &t) { need_dtype(t, {I8, U8, I16, U16, I32, U32, I64, U64}); }
void need_rank(const Tensor &t, int64_t low, int64_t high) {
  int64_t rank = (int64_t)t.dims.size();
  need(rank >= low && rank <= high, show(t) + " has " + std::to_string(rank) + " dimensions, not " + std::to_string(low) +
       (high == low ? "" : " to " + std::to_string(high)));
}
void need_shape(const Tensor &out, const Dims &dims) {
  need(out.dims == dims, "the output has shape " + show(out.dims) + ", the inputs give " + show(dims));
}
double number(const Tensor &t, const char *what) {
  need(t.count() == 1, std::string(what) + " has shape " + show(t.dims) + ", one element is needed");
  return load_all(t)[0];
}
int64_t find_axis(int64_t axis, int64_t rank) {
  int64_t a = axis < 0 ? axis + rank : axis;
  need(a >= 0 && a < rank, "there is no axis " + std::to_string(axis) + " of " + std::to_string(rank));
  return a;
}
Dims broadcast(const Dims &a, const Dims &b) {
  Dims r(std::max(a.size(), b.size()), 1);
  for (size_t i = 0; i < r.size(); i++) {
    int64_t x = i < a.size() ? a[a.size() - 1 - i] : 1, y = i < b.size() ? b[b.size() - 1 - i] : 1;
    need(x == y || x == 1 || y == 1, "shapes " + show(a) + " and " + show(b) + " do not broadcast");
    r[r.size() - 1 - i] = x == 1 ? y : x;
  }
  return r;
}
Tensor expand(const Tensor &t, const Dims &dims) {
  if (t.dims == dims) return t;
  Tensor r = t;
  int64_t lead = (int64_t)dims.size() - (int64_t)t.dims.size();
  need(lead >= 0, "shape " + show(t.dims) + " does not broadcast to " + show(dims));
  r.strides.assign(dims.size(), 0);
  for (size_t i = 0; i < t.dims.size(); i++) {
    need(t.dims[i] == dims[lead + i] || t.dims[i] == 1, "shape " + show(t.dims) + " does not broadcast to " + show(dims));
    if (t.dims[i] != 1) r.strides[lead + i] = t.strides[i];
  }
  r.dims = dims;
  return r;
}
Tensor permute(const Tensor &t, const Dims &order) {
  Tensor r = t;
  need(order.size() == t.dims.size(), "an order of " + std::to_string(order.size()) + " axes for shape " + show(t.dims));
  std::vector<bool> seen(order.size(), false);
  for (size_t i = 0; i < order.size(); i++) {
    int64_t d = find_axis(order[i], (int64_t)t.dims.size());
    need(!seen[d], "axis " + std::to_string(d) + " stands twice in the order");
    seen[d] = true;
    r.dims[i] = t.dims[d];
    r.strides[i] = t.strides[d];
  }
  return r;
}
Tensor take(Tensor t, int64_t axis, int64_t start, int64_t length, int64_t step) {
  int64_t last = start + (length - 1) * step, n = t.dims.at(axis);
  need(length <= 0 || (start >= 0 && start < n && last >= 0 && last < n),
       "elements " + std::to_string(start) + " to " + std::to_string(last) + " of axis " + std::to_string(axis) + " of shape " + show(t.dims));
  t.offset += length > 0 ? start * t.strides[axis] : 0;
  t.dims[axis] = std::max<int64_t>(length, 0);
  t.strides[axis] *= step;
  return t;
}
bool same_place(const Tensor &a, const Tensor &b) {
  return a.data == b.data && a.offset == b.offset && a.dims == b.dims && a.strides == b.strides && a.dtype == b.dtype;
}
static std::pair<const char *, const char *> extent(const Tensor &t) {
  int64_t low = t.offset, high = t.offset, bytes = (int64_t)item_bytes(t.dtype);
  for (size_t d = 0; d < t.dims.size(); d++) (t.strides[d] < 0 ? low : high) += (t.dims[d] - 1) * t.strides[d];
  return {t.data + low * bytes, t.data + (high + 1) * bytes};
}
bool overlaps(const Tensor &a, const Tensor &b) {
  if (a.count() == 0 || b.count() == 0) return false;
  auto x = extent(a), y = extent(b);
  return x.first < y.second && y.first < x.second;
}

Cursor::Cursor(const Tensor &t) : bytes_((int64_t)item_bytes(t.dtype)), dtype_(t.dtype), place_(t.data + t.offset * bytes_) {
  // Dimensions that follow each other in memory become one; those of one element go.
  for (size_t d = 0; d < t.dims.size(); d++) {
    if (t.dims[d] == 1) continue;
    if (!dims_.empty() && strides_.back() == t.strides[d] * t.dims[d]) {
      dims_.back() *= t.dims[d];
      strides_.back() = t.strides[d];
    } else {
      dims_.push_back(t.dims[d]);
      strides_.push_back(t.strides[d]);
    }
  }
  if (!dims_.empty()) {
    inner_ = dims_.back();
    stride_ = strides_.back();
    dims_.pop_back();
    strides_.pop_back();
  }
  index_.assign(dims_.size(), 0);
}
void Cursor::advance() {
  for (int d = (int)dims_.size() - 1; d >= 0; d--) {
    place_ += strides_[d] * bytes_;
    if (++index_[d] < dims_[d]) return;
    place_ -= strides_[d] * dims_[d] * bytes_;
    index_[d] = 0;
  }
}

std::vector<double> load_all(const Tensor &t) {
  std::vector<double> r(t.count());
  if (!r.empty()) Cursor(t).read((int64_t)r.size(), r.data());
  return r;
}
void store_all(const Tensor &t, const std::vector<double> &values) {
  need((int64_t)values.size() == t.count(), std::to_string(values.size()) + " values for shape " + show(t.dims));
  if (!values.empty()) Cursor(t).write((int64_t)values.size(), values.data());
}
double *scratch(int slot, int64_t n) {
  static thread_local struct { std::unique_ptr<double[]> memory; int64_t size = 0; } slots[kScratchSlots];
  auto &s = slots[slot];
  if (s.size < n) s.memory.reset(), s.memory.reset(new double[n]), s.size = n;
  return s.memory.get();
}

Source::Source(const Operand &operand, const Tensor &out)
    : view_(place(operand, out, copy_, number_)), cursor_(view_) {}
Tensor Source::place(const Operand &operand, const Tensor &out, std::vector<double> &copy, double &number) {
  if (!operand.tensor) {
    Tensor t;
    number = operand.number;
    t.dtype = F64;
    t.data = (char *)&number;
    return expand(t, out.dims);
  }
  Tensor view = expand(*operand.tensor, out.dims);
  if (same_place(view, out) || !overlaps(view, out)) return view;
  copy = load_all(*operand.tensor);
  Tensor t = *operand.tensor;
  t.dtype = F64;
  t.data = (char *)copy.data();
  t.offset = 0;
  t.strides = dense_strides(t.dims);
  return expand(t, out.dims);
}

template <class T> static void move_run(char *to, int64_t ts, const char *from, int64_t fs, int64_t n) {
  T *y = (T *)to;
  const T *x = (const T *)from;
  for (int64_t i = 0; i < n; i++) y[i * ts] = x[i * fs];
}
static void move_items(int64_t bytes, char *to, int64_t ts, const char *from, int64_t fs, int64_t n) {
  if (ts == 1 && fs == 1) memmove(to, from, n * bytes);
  else if (bytes == 1) move_run<uint8_t>(to, ts, from, fs, n);
  else if (bytes == 2) move_run<uint16_t>(to, ts, from, fs, n);
  else if (bytes == 4) move_run<uint32_t>(to, ts, from, fs, n);
  else move_run<uint64_t>(to, ts, from, fs, n);
}
// Whole numbers that double does not hold exactly: wrapped as by a C++ conversion.
static void copy_wide(const Tensor &from, const Tensor &to) {
  Cursor a(from), b(to);
  for (int64_t k = 0, n = to.count(); k < n; k++) {
    uint64_t x = 0;
    a.runs(1, [&](char *p, int64_t, int64_t) { memcpy(&x, p, 8); });
    b.runs(1, [&](char *p, int64_t, int64_t) { memcpy(p, &x, item_bytes(to.dtype)); });
  }
}
void copy(const Tensor &from, const Tensor &to) {
  Tensor view = expand(from, to.dims);
  if (to.count() == 0 || same_place(view, to)) return;
  bool wide = (from.dtype == I64 || from.dtype == U64) && !is_float(to.dtype) && to.dtype != BOOL;
  if (overlaps(view, to) || (from.dtype != to.dtype && !wide)) return each(to, [](double x) { return x; }, view);
  if (from.dtype != to.dtype) return copy_wide(view, to);
  int64_t bytes = (int64_t)item_bytes(to.dtype);
  Cursor a(view), b(to);
  // The target's runs are cut where the source's end.
  b.runs(to.count(), [&](char *q, int64_t ts, int64_t n) {
    a.runs(n, [&](char *p, int64_t fs, int64_t k) { move_items(bytes, q, ts, p, fs, k); q += k * ts * bytes; });
  });
}
void fill(const Tensor &to, double value) { each(to, [](double x) { return x; }, value); }

std::vector<bool> mark_axes(int64_t rank, const Dims &axes) {
  std::vector<bool> reduced(rank, axes.empty());
  for (int64_t a : axes) reduced[find_axis(a, rank)] = true;
  return reduced;
}
Dims reduced_dims(const Dims &dims, const std::vector<bool> &reduced) {
  Dims r = dims;
  for (size_t d = 0; d < dims.size(); d++) if (reduced[d]) r[d] = 1;
  return r;
}

}  // namespace softnpu
