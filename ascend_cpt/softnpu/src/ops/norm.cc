// RMSNorm, rotary positions, SwiGLU, and their gradients.
#include "gemm.h"

namespace softnpu {

namespace {
void need_norm(const Tensor &x, const Tensor &weight, const Tensor &scale) {
  need_float(x);
  need_float(weight);
  need(weight.dims.size() <= x.dims.size() && weight.count() > 0 &&
           std::equal(weight.dims.rbegin(), weight.dims.rend(), x.dims.rbegin()),
       "a weight of shape " + show(weight.dims) + " for an input of shape " + show(x.dims));
  need(scale.count() == x.count() / weight.count(), "rstd has shape " + show(scale.dims) + " for an input of shape " + show(x.dims));
}
// Reads the rows of several tensors side by side.
struct Rows {
  Source source;
  std::vector<double> line;
  Rows(const Tensor &t, const Tensor &out, int64_t n) : source(t, out), line(n) {}
  double *next() { source.read((int64_t)line.size(), line.data()); return line.data(); }
};
}  // namespace

// x, weight, epsilon; y = x · rstd · weight, rstd = 1 / sqrt(mean(x²) + epsilon) over the weight's dimensions.
OP(RmsNorm, "ttdtt") {
  const Tensor &x = call.tensor(0), &weight = call.tensor(1), &y = call.tensor(3), &rstd = call.tensor(4);
  need_norm(x, weight, rstd);
  need_shape(y, x.dims);
  int64_t n = weight.count(), rows = x.count() / n;
  std::vector<double> w = load_all(weight), scales(rows);
  Rows from(x, y, n);
  Cursor to(y);
  for (int64_t r = 0; r < rows; r++) {
    double *a = from.next(), part[8] = {}, total = 0;
    for (int64_t i = 0; i < n; i++) part[i % 8] += a[i] * a[i];
    for (double p : part) total += p;
    double k = scales[r] = 1.0 / std::sqrt(total / (double)n + call.real(2));
    for (int64_t i = 0; i < n; i++) a[i] *= k * w[i];
    to.write(n, a);
  }
  store_all(rstd, scales);
}
// Gradient, x, rstd, weight; gradients of x and of the weight.
OP(RmsNormGrad, "tttttt") {
  const Tensor &up = call.tensor(0), &x = call.tensor(1), &rstd = call.tensor(2), &weight = call.tensor(3), &dx = call.tensor(4), &dw = call.tensor(5);
  need_norm(x, weight, rstd);
  need_shape(up, x.dims);
  need_shape(dx, x.dims);
  need_shape(dw, weight.dims);
  int64_t n = weight.count(), rows = x.count() / n;
  std::vector<double> w = load_all(weight), scales = load_all(rstd), sum(n);
  Rows ups(up, dx, n), xs(x, dx, n);
  Cursor to(dx);
  for (int64_t r = 0; r < rows; r++) {
    double *g = ups.next(), *a = xs.next(), k = scales[r], dot = 0;
    for (int64_t i = 0; i < n; i++) sum[i] += g[i] * a[i] * k;
    for (int64_t i = 0; i < n; i++) g[i] *= w[i];
    for (int64_t i = 0; i < n; i++) dot += g[i] * a[i];
    double pull = dot * k * k / (double)n;
    for (int64_t i = 0; i < n; i++) a[i] = k * (g[i] - a[i] * pull);
    to.write(n, a);
  }
  store_all(dw, sum);
}

namespace {
enum Rotary { kHalves = 0, kPairs = 1 };  // the channel j turns with: n/2 further, or its neighbour
// Where channel j's partner stands; `first` says whether j is the first of the two.
int64_t partner(int64_t j, int64_t n, int64_t mode, bool &first) {
  first = mode == kHalves ? j < n / 2 : j % 2 == 0;
  return mode == kHalves ? (first ? j + n / 2 : j - n / 2) : (first ? j + 1 : j - 1);
}
void need_rotary(const Tensor &x, const Tensor &cosine, const Tensor &sine, int64_t mode, const Tensor &out) {
  need_float(x);
  need_rank(x, 1, 4);
  need(mode == kHalves || mode == kPairs, "rotary mode " + std::to_string(mode) + " is not emulated");
  need(x.dims.back() % 2 == 0, "an odd width in shape " + show(x.dims));
  need(cosine.dims == sine.dims && broadcast(cosine.dims, x.dims) == x.dims && cosine.dims.back() == x.dims.back(),
       "cosines of shape " + show(cosine.dims) + " and sines of shape " + show(sine.dims) + " for shape " + show(x.dims));
  need_shape(out, x.dims);
}
}  // namespace

// x, cosines, sines, mode; y = x · cos + rotated(x) · sin.
OP(RotaryPositionEmbedding, "tttit") {
  const Tensor &x = call.tensor(0), &y = call.tensor(4);
  int64_t mode = call.integer(3), n = x.dims.empty() ? 1 : x.dims.back();
  need_rotary(x, call.tensor(1), call.tensor(2), mode, y);
  Rows xs(x, y, n), cosines(call.tensor(1), y, n), sines(call.tensor(2), y, n);
  Cursor to(y);
  std::vector<double> line(n);
  for (int64_t r = 0; r < x.count() / std::max<int64_t>(1, n); r++) {
    double *a = xs.next(), *co = cosines.next(), *si = sines.next();
    bool first;
    for (int64_t j = 0; j < n; j++) {
      int64_t other = partner(j, n, mode, first);
      line[j] = a[j] * co[j] + (first ? -a[other] : a[other]) * si[j];
    }
    to.write(n, line.data());
  }
}
// Gradient, cosines, sines, x (only the gradients of cosines and sines need it), mode; gradients of x, cosines, sines.
// Without x the last two are left alone.
OP(RotaryPositionEmbeddingGrad, "ttttittt") {
  const Tensor &up = call.tensor(0), &dx = call.tensor(5);
  int64_t mode = call.integer(4), n = up.dims.empty() ? 1 : up.dims.back();
  need_rotary(up, call.tensor(1), call.tensor(2), mode, dx);
  need(!call.has(3), "gradients of cosines and sines are not emulated");
  Rows ups(up, dx, n), cosines(call.tensor(1), dx, n), sines(call.tensor(2), dx, n);
  Cursor to(dx);
  std::vector<double> line(n);
  for (int64_t r = 0; r < up.count() / std::max<int64_t>(1, n); r++) {
    double *g = ups.next(), *co = cosines.next(), *si = sines.next();
    bool first;
    for (int64_t j = 0; j < n; j++) {
      int64_t other = partner(j, n, mode, first);
      line[j] = g[j] * co[j] + (first ? g[other] : -g[other]) * si[other];
    }
    to.write(n, line.data());
  }
}

namespace {
// The two halves of a tensor along an axis.
Tensor half(const Tensor &t, int64_t axis, int64_t which) {
  int64_t n = t.dims[axis];
  need(n % 2 == 0, "axis " + std::to_string(axis) + " of shape " + show(t.dims) + " has no halves");
  return take(t, axis, which * n / 2, n / 2);
}
}  // namespace

// x, axis; y = silu(first half) · second half.
OP(SwiGlu, "tit") {
  const Tensor &x = call.tensor(0), &y = call.tensor(2);
  need_float(x);
  int64_t axis = find_axis(call.integer(1), (int64_t)x.dims.size());
  Tensor gate = half(x, axis, 0), value = half(x, axis, 1);
  need_shape(y, gate.dims);
  each(y, [](double a, double b) { return a * sigmoid(a) * b; }, gate, value);
}
// Gradient, x, axis; gradient of x.
OP(SwiGluGrad, "ttit") {
  const Tensor &up = call.tensor(0), &x = call.tensor(1), &dx = call.tensor(3);
  need_float(x);
  int64_t axis = find_axis(call.integer(2), (int64_t)x.dims.size());
  Tensor gate = half(x, axis, 0), value = half(x, axis, 1);
  need_shape(up, gate.dims);
  need_shape(dx, x.dims);
  need(!overlaps(x, dx) && !overlaps(up, dx), "the output overlaps an input");
  each(half(dx, axis, 0), [](double g, double a, double b) { double s = sigmoid(a); return g * b * s * (1.0 + a * (1.0 - s)); }, up, gate, value);
  each(half(dx, axis, 1), [](double g, double a) { return g * a * sigmoid(a); }, up, gate);
}

}  // namespace softnpu
