// Sums, means, extremes along axes; softmax and cumulative sums.
#include "arrays.h"

namespace softnpu {

namespace {
Dims axes_of(Call &call, size_t i) { return call.has(i) ? call.integers(i) : Dims(); }

// A sum in eight interleaved parts: a fixed order, and vector code.
double add_up(const double *x, int64_t n) {
  double part[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) for (int j = 0; j < 8; j++) part[j] += x[i + j];
  for (int j = 0; i < n; i++, j++) part[j] += x[i];
  return ((part[0] + part[4]) + (part[1] + part[5])) + ((part[2] + part[6]) + (part[3] + part[7]));
}
// The fold of each row of the reduced dimensions with `f`, from `first`. Where the last dimension stays, whole lines of
// it are folded at once, so that memory is read in order.
template <class F, class Row> void fold(const Tensor &in, const std::vector<bool> &reduced, const Tensor &out, double first, F f, Row row, double scale) {
  Dims order, kept_dims;
  int64_t rank = (int64_t)in.dims.size(), inner = 1, length = 1;
  bool lines = rank > 0 && !reduced[rank - 1];
  for (int64_t d = 0; d < rank; d++) if (!reduced[d] && !(lines && d == rank - 1)) order.push_back(d);
  for (int64_t d = 0; d < rank; d++) if (reduced[d]) order.push_back(d), length *= in.dims[d];
  if (lines) order.push_back(rank - 1), inner = in.dims[rank - 1];
  int64_t results = count_elements(reduced_dims(in.dims, reduced));
  need(out.count() == results, "the output has shape " + show(out.dims) + ", but the inputs give " + std::to_string(results) + " elements");
  if (results == 0) return;
  Tensor view = permute(in, order);
  std::vector<double> total(lines ? inner : 1), line(lines ? inner : kBlock);
  if (in.count() == 0) return fill(out, first * scale);
  Cursor from(view), to(out);
  for (int64_t r = 0; r < results / inner; r++) {
    std::fill(total.begin(), total.end(), first);
    for (int64_t left = length; left > 0;) {
      if (lines) {
        from.read(inner, line.data());
        for (int64_t i = 0; i < inner; i++) total[i] = f(total[i], line[i]);
        left--;
      } else {
        int64_t n = std::min(left, kBlock);
        from.read(n, line.data());
        total[0] = f(total[0], row(line.data(), n));
        left -= n;
      }
    }
    for (auto &x : total) x *= scale;
    to.write(inner, total.data());
  }
}
double larger(double x, double y) { return x != x || x > y ? x : y; }
Tensor with_axis_last(const Tensor &t, int64_t axis) {
  Dims order;
  axis = find_axis(axis, t.rank());
  for (int64_t d = 0; d < t.rank(); d++) if (d != axis) order.push_back(d);
  order.push_back(axis);
  return permute(t, order);
}
// Calls f(line, length) for a copy of each line along an axis, and writes the line to the output.
template <class F> void each_line(const Tensor &in, int64_t axis, const Tensor &out, F f) {
  if (in.count() == 0) return;
  Tensor lines = with_axis_last(in, axis), results = with_axis_last(out, axis);
  int64_t n = lines.dims.back();
  std::vector<double> line(n);
  Cursor from(lines), to(results);
  for (int64_t r = 0; r < in.count() / n; r++) {
    from.read(n, line.data());
    f(line.data(), n);
    to.write(n, line.data());
  }
}
void need_kept(Call &call, size_t out, const std::vector<bool> &reduced, bool keep) {
  Dims dims = reduced_dims(call.tensor(0).dims, reduced), squeezed;
  for (size_t d = 0; d < dims.size(); d++) if (!reduced[d]) squeezed.push_back(dims[d]);
  need_shape(call.tensor(out), keep ? dims : squeezed);
}
}  // namespace

// Input, axes (none: all), whether reduced dimensions stay as 1, dtype, output.
OP(ReduceSum, "tIbwt") {
  auto reduced = mark_axes((int64_t)call.tensor(0).dims.size(), axes_of(call, 1));
  need(call.integer(3) == call.tensor(4).dtype, "requested dtype " + std::to_string(call.integer(3)) + ", but the output has " + std::to_string(call.tensor(4).dtype));
  need_kept(call, 4, reduced, call.integer(2) != 0);
  fold(call.tensor(0), reduced, call.tensor(4), 0.0, [](double x, double y) { return x + y; }, add_up, 1.0);
}
// The same, divided by the number of elements.
OP(Mean, "tIbwt") {
  const Tensor &in = call.tensor(0);
  auto reduced = mark_axes(in.rank(), axes_of(call, 1));
  need(call.integer(3) == call.tensor(4).dtype, "requested dtype " + std::to_string(call.integer(3)) + ", but the output has " + std::to_string(call.tensor(4).dtype));
  need_kept(call, 4, reduced, call.integer(2) != 0);
  double count = (double)in.count() / (double)count_elements(reduced_dims(in.dims, reduced));
  fold(in, reduced, call.tensor(4), 0.0, [](double x, double y) { return x + y; }, add_up, 1.0 / count);
}
// Input, axes, whether reduced dimensions stay as 1, largest values.
OP(Amax, "tIbt") {
  auto reduced = mark_axes(call.tensor(0).rank(), axes_of(call, 1));
  need_kept(call, 3, reduced, call.integer(2) != 0);
  auto row = [](const double *x, int64_t n) { double top = x[0]; for (int64_t i = 1; i < n; i++) top = larger(top, x[i]); return top; };
  fold(call.tensor(0), reduced, call.tensor(3), -std::numeric_limits<double>::infinity(), larger, row, 1.0);
}
// Input, axis, dtype, result.
OP(Cumsum, "tiwt") {
  need(call.integer(2) == call.tensor(3).dtype, "requested dtype " + std::to_string(call.integer(2)) + ", but the output has " + std::to_string(call.tensor(3).dtype));
  need_shape(call.tensor(3), call.tensor(0).dims);
  each_line(call.tensor(0), call.integer(1), call.tensor(3), [](double *x, int64_t n) { for (int64_t i = 1; i < n; i++) x[i] += x[i - 1]; });
}
// Input, axis, result.
OP(Softmax, "tit") {
  need_float(call.tensor(2));
  need_shape(call.tensor(2), call.tensor(0).dims);
  each_line(call.tensor(0), call.integer(1), call.tensor(2), [](double *x, int64_t n) {
    double top = x[0], total = 0;
    for (int64_t i = 1; i < n; i++) top = larger(top, x[i]);
    for (int64_t i = 0; i < n; i++) total += x[i] = exp_fast(x[i] - top);
    for (int64_t i = 0; i < n; i++) x[i] /= total;
  });
}
// Gradient, softmax y, axis, result: y · (gradient - Σ gradient · y)
OP(SoftmaxBackward, "ttit") {
  const Tensor &gradient = call.tensor(0), &y = call.tensor(1), &out = call.tensor(3);
  need_float(out);
  need_shape(y, gradient.dims);
  need_shape(out, gradient.dims);
  int64_t n = y.rank() ? y.dims[find_axis(call.integer(2), y.rank())] : 1;
  std::vector<double> line(n);
  Tensor lines = with_axis_last(y, call.integer(2));
  Cursor from(lines);
  each_line(gradient, call.integer(2), out, [&](double *g, int64_t count) {
    from.read(count, line.data());
    double dot = 0;
    for (int64_t i = 0; i < count; i++) dot += g[i] * line[i];
    for (int64_t i = 0; i < count; i++) g[i] = line[i] * (g[i] - dot);
  });
}
// Input, axis, whether it stays as 1, largest values, their places (the first of equal ones).
OP(MaxDim, "tibtt") {
  const Tensor &in = call.tensor(0);
  int64_t rank = (int64_t)in.dims.size(), axis = find_axis(call.integer(1), rank), n = in.dims[axis];
  std::vector<bool> reduced(rank, false);
  reduced[axis] = true;
  need_kept(call, 3, reduced, call.integer(2) != 0);
  need_kept(call, 4, reduced, call.integer(2) != 0);
  need_whole(call.tensor(4));
  need(n > 0 || in.count() == 0, "no element along the axis");
  Dims order;
  for (int64_t d = 0; d < rank; d++) if (d != axis) order.push_back(d);
  order.push_back(axis);
  int64_t rows = n ? in.count() / n : 0;
  std::vector<double> line(n), best(rows), place(rows);
  Tensor view = permute(in, order);
  Cursor from(view);
  for (int64_t r = 0; r < rows; r++) {
    from.read(n, line.data());
    double top = line[0];
    for (int64_t i = 1; i < n; i++) top = larger(top, line[i]);
    int64_t at = 0;
    while (at + 1 < n && line[at] != top && line[at] == line[at]) at++;
    best[r] = top;
    place[r] = (double)at;
  }
  store_all(call.tensor(3), best);
  store_all(call.tensor(4), place);
}

}  // namespace softnpu
