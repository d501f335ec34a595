// Arithmetic on dense arrays: broadcast, reduce, permute, multiply.
#pragma once
#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include "softnpu.h"

namespace softnpu {

// A dense array in double: operators read their inputs into these and round once, when they store the result.
struct Arr {
  Dims shape;
  std::vector<double> v;
  Arr() {}
  explicit Arr(Dims s, double fill = 0) : shape(std::move(s)) { v.assign(count(), fill); }
  int64_t count() const { return count_elements(shape); }
  int64_t rank() const { return (int64_t)shape.size(); }
};
template <class F> void each(const Dims &shape, const Dims &strides, F f);
inline Arr load(const Tensor *t) {
  Arr a;
  a.shape = t->dims;
  a.v.resize(t->count());
  if (t->is_dense()) { load_items(t->first(), t->dtype, a.v.data(), a.v.size()); return a; }
  int64_t bytes = item_bytes(t->dtype);
  each(t->dims, t->strides, [&](int64_t k, int64_t place) { a.v[k] = load_item(t->first() + place * bytes, t->dtype); });
  return a;
}
inline void store(const Tensor *t, const Arr &a) {
  if ((int64_t)a.v.size() != t->count())
    throw Error("a result of " + std::to_string(a.v.size()) + " elements for " + describe(t));
  if (t->is_dense()) return store_items(t->first(), t->dtype, a.v.data(), a.v.size());
  int64_t bytes = item_bytes(t->dtype);
  each(t->dims, t->strides, [&](int64_t k, int64_t place) { store_item(t->first() + place * bytes, t->dtype, a.v[k]); });
}
inline Arr Call::in(size_t i) const { return load(&tensor(i)); }
inline void Call::out(size_t i, const Arr &a) const { if (has(i)) store(&tensor(i), a); }
inline Arr NamedCall::in(size_t i) const { return load(&inputs.at(i)); }
inline void NamedCall::out(size_t i, const Arr &a) const { store(&outputs.at(i), a); }

inline int64_t wrap(int64_t d, int64_t rank) { return d < 0 ? d + rank : d; }
inline Dims row_strides(const Dims &s) {
  Dims r(s.size(), 1);
  for (int i = (int)s.size() - 2; i >= 0; i--) r[i] = r[i + 1] * s[i + 1];
  return r;
}
// Calls f(k, place) for every element of `shape` in order, with the place of the element by `strides`.
template <class F> void each(const Dims &shape, const Dims &strides, F f) {
  int64_t n = 1, rank = (int64_t)shape.size(), place = 0;
  for (auto d : shape) n *= d;
  Dims at(rank, 0);
  for (int64_t k = 0; k < n; k++) {
    f(k, place);
    for (int64_t d = rank - 1; d >= 0; d--) {
      place += strides[d];
      if (++at[d] < shape[d]) break;
      place -= strides[d] * shape[d];
      at[d] = 0;
    }
  }
}
inline Arr expand(const Arr &a, const Dims &shape) {
  if (a.shape == shape) return a;
  Dims own = row_strides(a.shape), strides(shape.size(), 0);
  int64_t lead = (int64_t)shape.size() - a.rank();
  if (lead < 0) throw Error("cannot be broadcast");
  for (int64_t i = 0; i < a.rank(); i++) {
    if (a.shape[i] != 1 && a.shape[i] != shape[lead + i]) throw Error("cannot be broadcast");
    if (a.shape[i] != 1) strides[lead + i] = own[i];
  }
  Arr r(shape);
  each(shape, strides, [&](int64_t k, int64_t place) { r.v[k] = a.v[place]; });
  return r;
}
inline Dims common(const Dims &a, const Dims &b) {
  Dims r(std::max(a.size(), b.size()), 1);
  for (size_t i = 0; i < r.size(); i++) {
    int64_t x = i < a.size() ? a[a.size() - 1 - i] : 1, y = i < b.size() ? b[b.size() - 1 - i] : 1;
    r[r.size() - 1 - i] = x == 1 ? y : x;
  }
  return r;
}
template <class F> Arr zip(const Arr &a, const Arr &b, F f) {
  Dims shape = common(a.shape, b.shape);
  if (b.v.size() == 1 && a.shape == shape) { Arr r = a; for (auto &x : r.v) x = f(x, b.v[0]); return r; }
  Arr x = expand(a, shape), y = expand(b, shape);
  for (size_t i = 0; i < x.v.size(); i++) x.v[i] = f(x.v[i], y.v[i]);
  return x;
}
template <class F> Arr map(Arr a, F f) { for (auto &x : a.v) x = f(x); return a; }
inline Arr one(double v) { Arr a; a.v = {v}; return a; }
inline Arr permute(const Arr &a, const Dims &order) {
  Dims own = row_strides(a.shape), shape, strides;
  for (int64_t p : order) { int64_t d = wrap(p, a.rank()); shape.push_back(a.shape[d]); strides.push_back(own[d]); }
  Arr r(shape);
  each(shape, strides, [&](int64_t k, int64_t place) { r.v[k] = a.v[place]; });
  return r;
}
// Folds f over the axes (all when there are none); the result's shape keeps 1 where it was reduced: store() counts elements only.
template <class F> Arr fold(const Arr &a, const Dims &axes, double first, F f) {
  Dims shape = a.shape, strides;
  std::vector<bool> reduced(a.rank(), axes.empty());
  for (int64_t x : axes) reduced[wrap(x, a.rank())] = true;
  for (int64_t d = 0; d < a.rank(); d++) if (reduced[d]) shape[d] = 1;
  strides = row_strides(shape);
  for (int64_t d = 0; d < a.rank(); d++) if (reduced[d]) strides[d] = 0;
  Arr r(shape, first);
  each(a.shape, strides, [&](int64_t k, int64_t place) { r.v[place] = f(r.v[place], a.v[k]); });
  return r;
}
inline Arr sum(const Arr &a, const Dims &axes) { return fold(a, axes, 0, [](double x, double y) { return x + y; }); }
// Calls f(base, stride, n) for every line along an axis.
template <class F> void lines(const Dims &shape, int64_t axis, F f) {
  axis = wrap(axis, (int64_t)shape.size());
  int64_t outer = 1, inner = 1, n = shape.empty() ? 1 : shape[axis];
  for (int64_t d = 0; d < (int64_t)shape.size(); d++) (d < axis ? outer : inner) *= d == axis ? 1 : shape[d];
  for (int64_t o = 0; o < outer; o++) for (int64_t i = 0; i < inner; i++) f(o * n * inner + i, inner, n);
}
inline void multiply(const double *a, const double *b, double *c, int64_t m, int64_t k, int64_t n) {
  for (int64_t i = 0; i < m; i++)
    for (int64_t p = 0; p < k; p++) {
      double x = a[i * k + p];
      if (x == 0) continue;
      const double *row = b + p * n;
      double *to = c + i * n;
      for (int64_t j = 0; j < n; j++) to[j] += x * row[j];
    }
}
inline Arr matmul(Arr a, Arr b) {
  if (a.rank() == 1) a.shape.insert(a.shape.begin(), 1);
  if (b.rank() == 1) b.shape.push_back(1);
  int64_t m = a.shape[a.rank() - 2], k = a.shape[a.rank() - 1], n = b.shape[b.rank() - 1];
  Dims la(a.shape.begin(), a.shape.end() - 2), lb(b.shape.begin(), b.shape.end() - 2), lead = common(la, lb);
  Dims fa = lead, fb = lead;
  fa.push_back(m); fa.push_back(k); fb.push_back(k); fb.push_back(n);
  a = expand(a, fa); b = expand(b, fb);
  Dims shape = lead;
  shape.push_back(m); shape.push_back(n);
  Arr r(shape);
  int64_t batches = 1;
  for (auto d : lead) batches *= d;
  for (int64_t i = 0; i < batches; i++) multiply(&a.v[i * m * k], &b.v[i * k * n], &r.v[i * m * n], m, k, n);
  return r;
}

}  // namespace softnpu
