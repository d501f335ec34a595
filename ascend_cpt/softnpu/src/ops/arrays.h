// Reading and writing tensors of any dtype, strides and offset as runs of double, and loops over them.
//
// An operator reads its inputs block by block into double, computes, and rounds once when a block is written. No
// operator needs a copy of a whole tensor unless it says so (`load_all`).
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>
#include "../softnpu.h"

namespace softnpu {

constexpr int64_t kBlock = 512;  // elements; a few blocks of doubles fit the first-level cache

// Throws with the operator's name added by the caller.
inline void need(bool condition, const std::string &message) {
  if (!condition) throw Error(message);
}
void need_dtype(const Tensor &t, std::initializer_list<int> allowed);
void need_float(const Tensor &t);
void need_whole(const Tensor &t);  // integers; not bool
void need_rank(const Tensor &t, int64_t low, int64_t high);
// Returns a dimension or axis counted from the front; throws when there is no such axis.
int64_t find_axis(int64_t axis, int64_t rank);
std::string show(const Dims &dims);
Dims broadcast(const Dims &a, const Dims &b);
// The same memory seen as `dims`, with stride 0 where it is repeated.
Tensor expand(const Tensor &t, const Dims &dims);
Tensor permute(const Tensor &t, const Dims &order);
Tensor take(Tensor t, int64_t axis, int64_t start, int64_t length, int64_t step = 1);  // step may be negative
bool same_place(const Tensor &a, const Tensor &b);
bool overlaps(const Tensor &a, const Tensor &b);

// Walks a tensor in row-major order of its dimensions, any number of elements at a time.
class Cursor {
 public:
  explicit Cursor(const Tensor &t);
  template <class F> void runs(int64_t n, F f) {  // f(pointer, stride, length) for the next n elements
    while (n > 0) {
      int64_t length = std::min(n, inner_ - at_);
      f(place_ + at_ * stride_ * bytes_, stride_, length);
      at_ += length;
      n -= length;
      if (at_ == inner_) at_ = 0, advance();
    }
  }
  void read(int64_t n, double *to) {
    runs(n, [&](char *p, int64_t stride, int64_t k) { load_run(p, dtype_, stride, k, to); to += k; });
  }
  void write(int64_t n, const double *from) {
    runs(n, [&](char *p, int64_t stride, int64_t k) { store_run(p, dtype_, stride, k, from); from += k; });
  }
  int dtype() const { return dtype_; }

 private:
  void advance();
  Dims dims_, strides_, index_;  // without the innermost
  int64_t inner_ = 1, stride_ = 1, at_ = 0, bytes_;
  int dtype_;
  char *place_;
};

// A dense copy in double.
std::vector<double> load_all(const Tensor &t);
void store_all(const Tensor &t, const std::vector<double> &values);
// Scratch memory that a thread keeps, so that large operators do not map and zero pages at every call.
constexpr int kScratchSlots = 12;
double *scratch(int slot, int64_t n);

// An operand of an element-wise operator: a tensor, or one number.
struct Operand {
  const Tensor *tensor = nullptr;
  double number = 0;
  Operand(const Tensor *t) : tensor(t) {}
  Operand(const Tensor &t) : tensor(&t) {}
  Operand(double x) : number(x) {}
};
// A tensor, or a copy of it where writing `out` would change elements that are still to be read.
class Source {
 public:
  Source(const Operand &operand, const Tensor &out);
  Source(const Source &) = delete;
  void read(int64_t n, double *to) { cursor_.read(n, to); }

 private:
  std::vector<double> copy_;  // before the view, which may point to it
  double number_ = 0;
  Tensor view_;
  Cursor cursor_;
  static Tensor place(const Operand &operand, const Tensor &out, std::vector<double> &copy, double &number);
};

// out = f(a, …) element by element; operands are broadcast to the output's shape.
template <class F> void each(const Tensor &out, F f, const Operand &a) {
  Source sa(a, out);
  Cursor to(out);
  double x[kBlock];
  for (int64_t left = out.count(), n; left > 0; left -= n) {
    n = std::min(left, kBlock);
    sa.read(n, x);
    for (int64_t i = 0; i < n; i++) x[i] = f(x[i]);
    to.write(n, x);
  }
}
template <class F> void each(const Tensor &out, F f, const Operand &a, const Operand &b) {
  Source sa(a, out), sb(b, out);
  Cursor to(out);
  double x[kBlock], y[kBlock];
  for (int64_t left = out.count(), n; left > 0; left -= n) {
    n = std::min(left, kBlock);
    sa.read(n, x);
    sb.read(n, y);
    for (int64_t i = 0; i < n; i++) x[i] = f(x[i], y[i]);
    to.write(n, x);
  }
}
template <class F> void each(const Tensor &out, F f, const Operand &a, const Operand &b, const Operand &c) {
  Source sa(a, out), sb(b, out), sc(c, out);
  Cursor to(out);
  double x[kBlock], y[kBlock], z[kBlock];
  for (int64_t left = out.count(), n; left > 0; left -= n) {
    n = std::min(left, kBlock);
    sa.read(n, x);
    sb.read(n, y);
    sc.read(n, z);
    for (int64_t i = 0; i < n; i++) x[i] = f(x[i], y[i], z[i]);
    to.write(n, x);
  }
}
// exp within 2 units in the last place of a double, without branches, so that loops of it become vector code.
// Results below 1e-307 are 0. Range reduction by ln 2 in two parts, then the Taylor polynomial of degree 13.
inline double exp_fast(double x) {
  double clamped = x < -707.0 ? -707.0 : x > 709.5 ? 709.5 : x;
  double shifted = clamped * 1.4426950408889634 + 6755399441055744.0;  // 1.5 · 2^52: the low bits are round(x / ln 2)
  double n = shifted - 6755399441055744.0;
  double r = (clamped - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  int64_t bits;
  memcpy(&bits, &shifted, 8);
  bits = (bits + 1023) << 52;
  double scale;
  memcpy(&scale, &bits, 8);
  double y = p * scale;
  y = x < -707.0 ? 0.0 : y;
  return x > 709.5 ? std::numeric_limits<double>::infinity() : y;
}
inline double sigmoid(double x) { return 1.0 / (1.0 + exp_fast(-x)); }
// Copies, converting where the dtypes differ; whole numbers stay exact.
void copy(const Tensor &from, const Tensor &to);
void fill(const Tensor &to, double value);
// Throws unless the output has the shape that the inputs give.
void need_shape(const Tensor &out, const Dims &dims);

// The axes of a reduction: all when none is given.
std::vector<bool> mark_axes(int64_t rank, const Dims &axes);
// The shape of a reduction's result, with 1 where it was reduced.
Dims reduced_dims(const Dims &dims, const std::vector<bool> &reduced);

// The one element of a tensor, as a number.
double number(const Tensor &t, const char *what);

}  // namespace softnpu
