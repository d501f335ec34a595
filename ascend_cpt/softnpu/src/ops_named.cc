// Reference operators that MindSpore still calls by name.
#include "arrays.h"

using namespace softnpu;

static Arr in(NamedCall &call, size_t i) { return load(&call.inputs[i]); }
static void out(NamedCall &call, size_t i, const Arr &a) { store(&call.outputs[i], a); }

NAMED_OP(AssignAdd) {
  Arr r = zip(in(call, 0), in(call, 1), [](double x, double y) { return x + y; });
  store(&call.inputs[0], r);
  out(call, 0, r);
}
NAMED_OP(Assign) {
  Arr r = in(call, 1);
  store(&call.inputs[0], r);
  if (!call.outputs.empty()) out(call, 0, r);
}
NAMED_OP(OneHot) {
  Arr index = in(call, 0), r(call.outputs[0].dims, in(call, 3).v[0]);
  double on = in(call, 2).v[0];
  int64_t depth = (int64_t)in(call, 1).v[0];
  for (int64_t i = 0; i < index.count(); i++) {
    int64_t k = (int64_t)index.v[i];
    if (k >= 0 && k < depth) r.v[i * depth + k] = on;
  }
  out(call, 0, r);
}
NAMED_OP(SoftmaxCrossEntropyWithLogits) {
  Arr x = in(call, 0), y = in(call, 1), loss;
  int64_t n = x.shape.back();
  for (int64_t i = 0; i < x.count(); i += n) {
    double top = -INFINITY, total = 0, l = 0;
    for (int64_t j = 0; j < n; j++) top = std::max(top, x.v[i + j]);
    for (int64_t j = 0; j < n; j++) total += std::exp(x.v[i + j] - top);
    for (int64_t j = 0; j < n; j++) {
      double log_p = x.v[i + j] - top - std::log(total);
      l -= y.v[i + j] * log_p;
      x.v[i + j] = std::exp(log_p) - y.v[i + j];
    }
    loss.v.push_back(l);
  }
  out(call, 0, loss);
  out(call, 1, x);
}
static void mean_or_sum(NamedCall &call, bool mean) {
  Arr a = in(call, 0);
  auto given = call.inputs.size() > 1 ? in(call, 1).v : call.attributes["axes"].values;
  Dims axes(given.begin(), given.end());
  Arr r = sum(a, axes);
  double n = mean ? (double)a.count() / r.count() : 1;
  out(call, 0, map(r, [n](double x) { return x / n; }));
}
NAMED_OP(ReduceMean) { mean_or_sum(call, true); }
NAMED_OP(ReduceSum) { mean_or_sum(call, false); }
// Inputs: gradient, v, m, parameter, rate, beta1, 1 - beta1, beta2, 1 - beta2, decay, epsilon.
NAMED_OP(AdamApplyOneWithDecayAssign) {
  Arr g = in(call, 0), v = in(call, 1), m = in(call, 2), w = in(call, 3);
  double k[7];
  for (int i = 0; i < 7; i++) k[i] = in(call, 4 + i).v[0];
  for (int64_t i = 0; i < g.count(); i++) {
    m.v[i] = k[1] * m.v[i] + k[2] * g.v[i];
    v.v[i] = k[3] * v.v[i] + k[4] * g.v[i] * g.v[i];
    w.v[i] -= k[0] * (m.v[i] / (std::sqrt(v.v[i]) + k[6]) + k[5] * w.v[i]);
  }
  store(&call.inputs[1], v); store(&call.inputs[2], m); store(&call.inputs[3], w);
  out(call, 0, v); out(call, 1, m); out(call, 2, w);
}
// The part of a tensor that a strided slice names.
static Tensor part(Tensor piece, const Arr &begin, const Arr &end, const Arr &step, NamedCall &call) {
  int64_t masks[3] = {(int64_t)call.attribute("begin_mask", 0), (int64_t)call.attribute("end_mask", 0), (int64_t)call.attribute("shrink_axis_mask", 0)};
  Dims dims, strides;
  for (size_t d = 0; d < piece.dims.size(); d++) {
    int64_t n = piece.dims[d], s = 1, b = 0, e = n;
    if (d < begin.v.size()) {
      s = (int64_t)step.v[d];
      b = (masks[0] >> d & 1) ? (s > 0 ? 0 : n - 1) : wrap((int64_t)begin.v[d], n);
      e = (masks[1] >> d & 1) ? (s > 0 ? n : -1) : (end.v[d] < 0 ? (int64_t)end.v[d] + n : (int64_t)end.v[d]);
      if (s > 0) b = std::max<int64_t>(0, b), e = std::min(e, n);
      else b = std::min(b, n - 1), e = std::max<int64_t>(-1, e);
    }
    piece.offset += b * piece.strides[d];
    if (d < begin.v.size() && (masks[2] >> d & 1)) continue;
    dims.push_back(std::max<int64_t>(0, s > 0 ? (e - b + s - 1) / s : (b - e - s - 1) / -s));
    strides.push_back(piece.strides[d] * s);
  }
  piece.dims = dims;
  piece.strides = strides;
  return piece;
}
NAMED_OP(StridedSlice) {
  Tensor piece = part(call.inputs[0], in(call, 1), in(call, 2), in(call, 3), call);
  out(call, 0, load(&piece));
}
NAMED_OP(StridedSliceGrad) {
  out(call, 0, Arr(call.outputs[0].dims));
  Tensor piece = part(call.outputs[0], in(call, 1), in(call, 2), in(call, 3), call);
  store(&piece, in(call, 4));
}
NAMED_OP(InitData) {}
NAMED_OP(Split) {
  int64_t axis = wrap((int64_t)in(call, 0).v[0], (int64_t)call.inputs[1].dims.size());
  Tensor piece = call.inputs[1];
  for (auto &t : call.outputs) {
    piece.dims[axis] = t.dims[axis];
    store(&t, load(&piece));
    piece.offset += t.dims[axis] * piece.strides[axis];
  }
}
NAMED_OP(AddN) {
  Arr r = in(call, 0);
  for (size_t i = 1; i < call.inputs.size(); i++) r = zip(r, in(call, i), [](double x, double y) { return x + y; });
  out(call, 0, r);
}
NAMED_OP(Addcmul) {
  double k = in(call, 3).v[0];
  out(call, 0, zip(in(call, 0), zip(in(call, 1), in(call, 2), [k](double x, double y) { return k * x * y; }), [](double x, double y) { return x + y; }));
}
NAMED_OP(TensorMove) { out(call, 0, in(call, 0)); }
NAMED_OP(GatherV2) {
  Arr a = in(call, 0), index = in(call, 1), r;
  int64_t axis = wrap((int64_t)in(call, 2).v[0], a.rank()), outer = 1, inner = 1, n = a.shape[axis];
  for (int64_t d = 0; d < a.rank(); d++) (d < axis ? outer : inner) *= d == axis ? 1 : a.shape[d];
  for (int64_t o = 0; o < outer; o++)
    for (double at : index.v) {
      int64_t row = wrap((int64_t)at, n);
      for (int64_t i = 0; i < inner; i++) r.v.push_back(row < 0 || row >= n ? 0 : a.v[(o * n + row) * inner + i]);
    }
  out(call, 0, r);
}
#define NAMED_BINARY(name, expr) NAMED_OP(name) { out(call, 0, zip(in(call, 0), in(call, 1), [](double x, double y) -> double { return expr; })); }
#define NAMED_UNARY(name, expr) NAMED_OP(name) { out(call, 0, map(in(call, 0), [](double x) -> double { return expr; })); }
NAMED_BINARY(Add, x + y)
NAMED_BINARY(Sub, x - y)
NAMED_BINARY(Mul, x * y)
NAMED_BINARY(RealDiv, x / y)
NAMED_BINARY(Maximum, x > y ? x : y)
NAMED_BINARY(Minimum, x < y ? x : y)
NAMED_BINARY(FloorMod, x - y * std::floor(x / y))
NAMED_BINARY(FloorDiv, std::floor(x / y))
NAMED_BINARY(Greater, x > y)
NAMED_BINARY(GreaterEqual, x >= y)
NAMED_BINARY(Less, x < y)
NAMED_BINARY(LessEqual, x <= y)
NAMED_BINARY(Equal, x == y)
NAMED_BINARY(NotEqual, x != y)
NAMED_BINARY(LogicalAnd, x != 0 && y != 0)
NAMED_BINARY(LogicalOr, x != 0 || y != 0)
NAMED_UNARY(Cast, x)
NAMED_UNARY(Neg, -x)
NAMED_UNARY(Square, x * x)
NAMED_UNARY(Sqrt, std::sqrt(x))
NAMED_UNARY(Rsqrt, 1 / std::sqrt(x))
NAMED_UNARY(Reciprocal, 1 / x)
NAMED_UNARY(Exp, std::exp(x))
NAMED_UNARY(Log, std::log(x))
NAMED_UNARY(LogicalNot, x == 0)
NAMED_UNARY(Identity, x)
NAMED_OP(Tile) {
  Arr a = in(call, 0), r(call.outputs[0].dims);
  while (a.rank() < r.rank()) a.shape.insert(a.shape.begin(), 1);
  Dims own = row_strides(a.shape), to = row_strides(r.shape);
  for (int64_t k = 0; k < r.count(); k++) {
    int64_t place = 0;
    for (int64_t d = 0; d < r.rank(); d++) place += k / to[d] % r.shape[d] % a.shape[d] * own[d];
    r.v[k] = a.v[place];
  }
  out(call, 0, r);
}
NAMED_OP(ConcatD) {
  int64_t axis = wrap((int64_t)call.attribute("concat_dim", 0), (int64_t)call.outputs[0].dims.size());
  Tensor piece = call.outputs[0];
  for (auto &t : call.inputs) {
    piece.dims[axis] = t.dims[axis];
    store(&piece, load(&t));
    piece.offset += t.dims[axis] * call.outputs[0].strides[axis];
  }
}
