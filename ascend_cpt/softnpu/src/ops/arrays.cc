// Views of tensors; copies.
#include "arrays.h"
#include <memory>

namespace softnpu {

std::string show(const Dims &dims) {
  std::string s = "[";
  for (size_t i = 0; i < dims.size(); i++) s += (i ? "," : "") + std::to_string(dims[i]);
  return s + "]";
}
static std::string show(const Tensor &t) { return "tensor " + show(t.dims) + " of " + dtype_name(t.dtype); }
void need_dtype(const Tensor &t, std::initializer_list<int> allowed) {
  for (int a : allowed) if (t.dtype == a) return;
  throw Error(show(t) + ": unsupported dtype for this operator");
}
void need_float(const Tensor &t) { need_dtype(t, {F32, F16, BF16, F64}); }
void need_whole(const Tensor &t) { need_dtype(t, {I8, U8, I16, U16, I32, U32, I64, U64}); }
void need_rank(const Tensor &t, int64_t low, int64_t high) {
  int64_t rank = (int64_t)t.dims.size();
  need(rank >= low && rank <= high, show(t) + " has " + std::to_string(rank) + " dimensions, not " + std::to_string(low) +
       (high == low ? "" : " to " + std::to_string(high)));
}
void need_shape(const Tensor &out, const Dims &dims) {
  need(out.dims == dims, "the output has shape " + show(out.dims) + ", but the inputs give " + show(dims));
}
double number(const Tensor &t, const char *what) {
  need(t.count() == 1, std::string(what) + " has shape " + show(t.dims) + ", but one element is needed");
  return load_all(t)[0];
}
int64_t find_axis(int64_t axis, int64_t rank) {
  int64_t a = axis < 0 ? axis + rank : axis;
  need(a >= 0 && a < rank, "axis " + std::to_string(axis) + " is out of range for " + std::to_string(rank) + " dimensions");
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
  need(order.size() == t.dims.size(), "a permutation of " + std::to_string(order.size()) + " axes does not fit shape " + show(t.dims));
  std::vector<bool> seen(order.size(), false);
  for (size_t i = 0; i < order.size(); i++) {
    int64_t d = find_axis(order[i], (int64_t)t.dims.size());
    need(!seen[d], "axis " + std::to_string(d) + " is repeated in the order");
    seen[d] = true;
    r.dims[i] = t.dims[d];
    r.strides[i] = t.strides[d];
  }
  return r;
}
Tensor take(Tensor t, int64_t axis, int64_t start, int64_t length, int64_t step) {
  int64_t last = start + (length - 1) * step, n = t.dims.at(axis);
  need(length <= 0 || (start >= 0 && start < n && last >= 0 && last < n),
       "elements " + std::to_string(start) + " to " + std::to_string(last) + " are outside axis " + std::to_string(axis) + " of shape " + show(t.dims));
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
  need((int64_t)values.size() == t.count(), std::to_string(values.size()) + " values do not fill shape " + show(t.dims));
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
