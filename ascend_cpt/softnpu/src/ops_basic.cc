// Reference operators: arithmetic, reductions, shapes, indexing.
#include "arrays.h"

using namespace softnpu;

#define UNARY(name, expr) OP(name, "tt") { call.out(1, map(call.in(0), [](double x) -> double { return expr; })); }
#define BINARY(name, expr) OP(name, "ttt") { call.out(2, zip(call.in(0), call.in(1), [](double x, double y) -> double { return expr; })); }
#define WITH_SCALAR(name, expr) OP(name, "tst") { call.out(2, zip(call.in(0), one(call.scalar(1)), [](double x, double y) -> double { return expr; })); }
#define INPLACE(name, expr) OP(name, "tt") { auto a = call.in(0); call.out(0, expand(zip(a, call.in(1), [](double x, double y) -> double { return expr; }), a.shape)); }
#define INPLACE_SCALAR(name, expr) OP(name, "ts") { call.out(0, zip(call.in(0), one(call.scalar(1)), [](double x, double y) -> double { return expr; })); }

OP(Add, "ttst") { double k = call.scalar(2); call.out(3, zip(call.in(0), call.in(1), [k](double x, double y) { return x + k * y; })); }
OP(Sub, "ttst") { double k = call.scalar(2); call.out(3, zip(call.in(0), call.in(1), [k](double x, double y) { return x - k * y; })); }
OP(Adds, "tsst") { call.out(3, zip(call.in(0), one(call.scalar(1) * call.scalar(2)), [](double x, double y) { return x + y; })); }
OP(Subs, "tsst") { call.out(3, zip(call.in(0), one(call.scalar(1) * call.scalar(2)), [](double x, double y) { return x - y; })); }
OP(InplaceAdd, "tts") { double k = call.scalar(2); auto a = call.in(0); call.out(0, zip(a, call.in(1), [k](double x, double y) { return x + k * y; })); }
OP(InplaceSub, "tts") { double k = call.scalar(2); auto a = call.in(0); call.out(0, zip(a, call.in(1), [k](double x, double y) { return x - k * y; })); }
OP(InplaceAdds, "tss") { call.out(0, zip(call.in(0), one(call.scalar(1) * call.scalar(2)), [](double x, double y) { return x + y; })); }
OP(InplaceSubs, "tss") { call.out(0, zip(call.in(0), one(call.scalar(1) * call.scalar(2)), [](double x, double y) { return x - y; })); }
BINARY(Mul, x * y)
BINARY(Div, x / y)
BINARY(Maximum, std::isnan(x) || x > y ? x : y)
BINARY(Minimum, std::isnan(x) || x < y ? x : y)
BINARY(PowTensorTensor, std::pow(x, y))
BINARY(EqTensor, x == y)
BINARY(NeTensor, x != y)
BINARY(GtTensor, x > y)
BINARY(GeTensor, x >= y)
BINARY(LtTensor, x < y)
BINARY(LeTensor, x <= y)
BINARY(LogicalAnd, x != 0 && y != 0)
BINARY(LogicalOr, x != 0 || y != 0)
BINARY(LogicalXor, (x != 0) != (y != 0))
BINARY(FloorDivide, std::floor(x / y))
BINARY(RemainderTensorTensor, x - y * std::floor(x / y))
BINARY(FmodTensor, std::fmod(x, y))
BINARY(BitwiseAndTensor, (double)((int64_t)x & (int64_t)y))
BINARY(BitwiseOrTensor, (double)((int64_t)x | (int64_t)y))
BINARY(SigmoidBackward, x * y * (1 - y))
BINARY(TanhBackward, x * (1 - y * y))
BINARY(SiluBackward, x * (1 / (1 + std::exp(-y))) * (1 + y * (1 - 1 / (1 + std::exp(-y)))))
WITH_SCALAR(Muls, x * y)
WITH_SCALAR(Divs, x / y)
WITH_SCALAR(PowTensorScalar, std::pow(x, y))
WITH_SCALAR(EqScalar, x == y)
WITH_SCALAR(NeScalar, x != y)
WITH_SCALAR(GtScalar, x > y)
WITH_SCALAR(GeScalar, x >= y)
WITH_SCALAR(LtScalar, x < y)
WITH_SCALAR(LeScalar, x <= y)
WITH_SCALAR(FloorDivides, std::floor(x / y))
WITH_SCALAR(RemainderTensorScalar, x - y * std::floor(x / y))
OP(PowScalarTensor, "stt") { call.out(2, zip(one(call.scalar(0)), call.in(1), [](double x, double y) { return std::pow(x, y); })); }
INPLACE(InplaceMul, x * y)
INPLACE(InplaceDiv, x / y)
INPLACE(InplaceCopy, y)
INPLACE_SCALAR(InplaceMuls, x * y)
INPLACE_SCALAR(InplaceDivs, x / y)
INPLACE_SCALAR(InplaceFillScalar, y)
OP(InplaceFillTensor, "tt") { auto a = call.in(0); call.out(0, expand(call.in(1), a.shape)); }
OP(InplaceZero, "t") { call.out(0, Arr(call.tensor(0).dims)); }
OP(InplaceOne, "t") { call.out(0, Arr(call.tensor(0).dims, 1)); }
OP(DivMod, "ttwt") { int m = (int)call.integer(2); call.out(3, zip(call.in(0), call.in(1), [m](double x, double y) { return m == 1 ? std::trunc(x / y) : m == 2 ? std::floor(x / y) : x / y; })); }
OP(DivMods, "tswt") { int m = (int)call.integer(2); call.out(3, zip(call.in(0), one(call.scalar(1)), [m](double x, double y) { return m == 1 ? std::trunc(x / y) : m == 2 ? std::floor(x / y) : x / y; })); }
UNARY(Neg, -x)
UNARY(Exp, std::exp(x))
UNARY(Log, std::log(x))
UNARY(Sqrt, std::sqrt(x))
UNARY(Rsqrt, 1 / std::sqrt(x))
UNARY(Reciprocal, 1 / x)
UNARY(Abs, std::fabs(x))
UNARY(Sin, std::sin(x))
UNARY(Cos, std::cos(x))
UNARY(Tanh, std::tanh(x))
UNARY(Erf, std::erf(x))
UNARY(Floor, std::floor(x))
UNARY(Ceil, std::ceil(x))
UNARY(Sign, (x > 0) - (x < 0))
UNARY(Sigmoid, 1 / (1 + std::exp(-x)))
UNARY(Silu, x / (1 + std::exp(-x)))
UNARY(Relu, x > 0 ? x : 0)
UNARY(LogicalNot, x == 0)
UNARY(BitwiseNot, (double)~(int64_t)x)
UNARY(IsFinite, std::isfinite(x))
UNARY(IsInf, std::isinf(x))
OP(ThresholdBackward, "ttst") { double k = call.scalar(2); call.out(3, zip(call.in(0), call.in(1), [k](double g, double x) { return x > k ? g : 0; })); }
OP(Cast, "twt") { call.out(2, call.in(0)); }
OP(Matmul, "tttc") { call.out(2, matmul(call.in(0), call.in(1))); }
OP(Mm, "tttc") { call.out(2, matmul(call.in(0), call.in(1))); }
OP(BatchMatMul, "tttc") { call.out(2, matmul(call.in(0), call.in(1))); }
OP(Addmm, "tttsstc") {
  double beta = call.scalar(3), alpha = call.scalar(4);
  call.out(5, zip(call.in(0), matmul(call.in(1), call.in(2)), [=](double x, double y) { return beta * x + alpha * y; }));
}
static Dims axes_of(Call &call, size_t i) { return call.has(i) ? call.integers(i) : Dims(); }
OP(ReduceSum, "tIbwt") { call.out(4, sum(call.in(0), axes_of(call, 1))); }
OP(Mean, "tIbwt") {
  Arr a = call.in(0), r = sum(a, axes_of(call, 1));
  double n = (double)a.count() / r.count();
  call.out(4, map(r, [n](double x) { return x / n; }));
}
OP(Amax, "tIbt") { call.out(3, fold(call.in(0), axes_of(call, 1), -INFINITY, [](double x, double y) { return y > x || std::isnan(y) ? y : x; })); }
OP(Amin, "tIbt") { call.out(3, fold(call.in(0), axes_of(call, 1), INFINITY, [](double x, double y) { return y < x || std::isnan(y) ? y : x; })); }
OP(Max, "tt") { call.out(1, fold(call.in(0), {}, -INFINITY, [](double x, double y) { return std::max(x, y); })); }
OP(Min, "tt") { call.out(1, fold(call.in(0), {}, INFINITY, [](double x, double y) { return std::min(x, y); })); }
OP(All, "tIbt") { call.out(3, fold(call.in(0), axes_of(call, 1), 1, [](double x, double y) { return x != 0 && y != 0; })); }
OP(Any, "tIbt") { call.out(3, fold(call.in(0), axes_of(call, 1), 0, [](double x, double y) { return x != 0 || y != 0; })); }
OP(LinalgVectorNorm, "tsIbwt") {
  double p = call.scalar(1);
  Arr r = fold(call.in(0), axes_of(call, 2), 0, [p](double x, double y) { return p == 2 ? x + y * y : std::isinf(p) ? std::max(x, std::fabs(y)) : x + std::pow(std::fabs(y), p); });
  call.out(5, std::isinf(p) ? r : map(r, [p](double x) { return std::pow(x, 1 / p); }));
}
static void arg_extreme(Call &call, bool largest) {
  Arr a = call.in(0), r;
  lines(a.shape, call.integer(1), [&](int64_t base, int64_t step, int64_t n) {
    int64_t best = 0;
    for (int64_t j = 1; j < n; j++) {
      double x = a.v[base + j * step], y = a.v[base + best * step];
      if (largest ? x > y : x < y) best = j;
    }
    r.v.push_back((double)best);
  });
  call.out(3, r);
}
OP(ArgMax, "tibt") { arg_extreme(call, true); }
OP(ArgMin, "tibt") { arg_extreme(call, false); }
OP(Cumsum, "tiwt") {
  Arr a = call.in(0);
  lines(a.shape, call.integer(1), [&](int64_t b, int64_t s, int64_t n) { for (int64_t j = 1; j < n; j++) a.v[b + j * s] += a.v[b + (j - 1) * s]; });
  call.out(3, a);
}
// Shapes.
OP(Permute, "tIt") { call.out(2, permute(call.in(0), call.integers(1))); }
OP(Expand, "tIt") { call.out(2, expand(call.in(0), call.tensor(2).dims)); }
OP(Repeat, "tIt") {
  Arr a = call.in(0), r(call.tensor(2).dims);
  while (a.rank() < r.rank()) a.shape.insert(a.shape.begin(), 1);
  Dims own = row_strides(a.shape), to = row_strides(r.shape);
  for (int64_t k = 0; k < r.count(); k++) {
    int64_t place = 0;
    for (int64_t d = 0; d < r.rank(); d++) place += k / to[d] % r.shape[d] % a.shape[d] * own[d];
    r.v[k] = a.v[place];
  }
  call.out(2, r);
}
static void join(Tensor *out, const std::vector<Tensor *> &parts, int64_t axis) {
  axis = wrap(axis, (int64_t)out->dims.size());
  Tensor piece = *out;
  for (auto t : parts) {
    if (t->count() == 0) continue;
    piece.dims = out->dims;
    piece.dims[axis] = t->dims[axis];
    store(&piece, load(t));
    piece.offset += t->dims[axis] * out->strides[axis];
  }
}
static void split(const Tensor *in, const std::vector<Tensor *> &parts, int64_t axis) {
  axis = wrap(axis, (int64_t)in->dims.size());
  Tensor piece = *in;
  for (auto t : parts) {
    piece.dims[axis] = t->dims[axis];
    store(t, load(&piece));
    piece.offset += t->dims[axis] * in->strides[axis];
  }
}
OP(Cat, "Lit") { join(&call.tensor(2), call.list(0), call.integer(1)); }
OP(Stack, "Lit") {
  Tensor *out = &call.tensor(2), piece = *out;
  int64_t axis = wrap(call.integer(1), (int64_t)out->dims.size());
  piece.dims.erase(piece.dims.begin() + axis);
  piece.strides.erase(piece.strides.begin() + axis);
  for (auto t : call.list(0)) { store(&piece, load(t)); piece.offset += out->strides[axis]; }
}
OP(SplitWithSize, "tIiL") { split(&call.tensor(0), call.list(3), call.integer(2)); }
OP(SplitTensor, "tiiL") { split(&call.tensor(0), call.list(3), call.integer(2)); }
OP(Slice, "tiiiit") {
  Tensor piece = *&call.tensor(0);
  int64_t axis = wrap(call.integer(1), (int64_t)piece.dims.size());
  int64_t start = std::max<int64_t>(0, wrap(call.integer(2), piece.dims[axis]));
  piece.offset += start * piece.strides[axis];
  piece.strides[axis] *= call.integer(4);
  piece.dims = call.tensor(5).dims;
  call.out(5, load(&piece));
}
OP(ConstantPadNd, "tIst") {
  Arr r(call.tensor(3).dims, call.scalar(2));
  store(&call.tensor(3), r);
  Tensor piece = *&call.tensor(3), source = *&call.tensor(0);
  auto &pad = call.integers(1);
  for (size_t i = 0; i < pad.size() / 2; i++) {
    size_t d = piece.dims.size() - 1 - i;
    int64_t before = (int64_t)pad[2 * i];
    if (before >= 0) piece.offset += before * piece.strides[d];
    else source.offset -= before * source.strides[d];
    piece.dims[d] = source.dims[d] = std::min(piece.dims[d], source.dims[d] - (before < 0 ? -before : 0));
  }
  store(&piece, load(&source));
}
static void triangle(Call &call, bool lower) {
  Arr a = call.in(0);
  int64_t rows = a.shape[a.rank() - 2], cols = a.shape[a.rank() - 1], k = call.integer(1);
  for (int64_t i = 0; i < a.count(); i++) {
    int64_t row = i / cols % rows, col = i % cols;
    if (lower ? col > row + k : col < row + k) a.v[i] = 0;
  }
  call.out(2, a);
}
OP(Tril, "tit") { triangle(call, true); }
OP(Triu, "tit") { triangle(call, false); }
OP(Arange, "ssst") { Arr a(call.tensor(3).dims); for (int64_t i = 0; i < a.count(); i++) a.v[i] = call.scalar(0) + i * call.scalar(2); call.out(3, a); }
OP(SWhere, "tttt") {
  Arr m = expand(call.in(0), call.tensor(3).dims), a = expand(call.in(1), m.shape), b = expand(call.in(2), m.shape);
  for (int64_t i = 0; i < m.count(); i++) m.v[i] = m.v[i] != 0 ? a.v[i] : b.v[i];
  call.out(3, m);
}
static void fill_masked(Call &call, const Arr &value) {
  Arr a = call.in(0), m = expand(call.in(1), a.shape), v = expand(value, a.shape);
  for (int64_t i = 0; i < a.count(); i++) if (m.v[i] != 0) a.v[i] = v.v[i];
  call.out(0, a);
}
OP(InplaceMaskedFillScalar, "tts") { fill_masked(call, one(call.scalar(2))); }
OP(InplaceMaskedFillTensor, "ttt") { fill_masked(call, call.in(2)); }
// Indexing.
static void select(const Arr &a, int64_t axis, const Arr &index, Tensor *out) {
  axis = wrap(axis, a.rank());
  int64_t outer = 1, inner = 1, n = a.shape[axis], m = index.count();
  for (int64_t d = 0; d < a.rank(); d++) (d < axis ? outer : inner) *= d == axis ? 1 : a.shape[d];
  Arr r(Dims{outer, m, inner});
  for (int64_t o = 0; o < outer; o++) for (int64_t j = 0; j < m; j++) {
    int64_t row = wrap((int64_t)index.v[j], n);
    if (row < 0 || row >= n) continue;
    std::copy_n(&a.v[(o * n + row) * inner], inner, &r.v[(o * m + j) * inner]);
  }
  store(out, r);
}
OP(IndexSelect, "titt") { select(call.in(0), call.integer(1), call.in(2), &call.tensor(3)); }
OP(Embedding, "ttt") { select(call.in(0), 0, call.in(1), &call.tensor(2)); }
OP(EmbeddingDenseBackward, "ttiibt") {
  Arr g = call.in(0), index = call.in(1), r(call.tensor(5).dims);
  int64_t width = r.shape[1];
  for (int64_t j = 0; j < index.count(); j++) {
    if ((int64_t)index.v[j] == call.integer(3)) continue;
    for (int64_t k = 0; k < width; k++) r.v[(int64_t)index.v[j] * width + k] += g.v[j * width + k];
  }
  call.out(5, r);
}
OP(Gather, "titt") {
  Arr a = call.in(0), index = call.in(2), r(index.shape);
  int64_t axis = wrap(call.integer(1), a.rank());
  Dims own = row_strides(a.shape), by = own;
  by[axis] = 0;
  each(index.shape, by, [&](int64_t k, int64_t place) { r.v[k] = a.v[place + wrap((int64_t)index.v[k], a.shape[axis]) * own[axis]]; });
  call.out(3, r);
}
OP(ScatterAdd, "tittt") {
  Arr a = call.in(0), index = call.in(2), s = call.in(3);
  int64_t axis = wrap(call.integer(1), a.rank());
  Dims own = row_strides(a.shape), by = own, from = row_strides(s.shape);
  by[axis] = 0;
  std::vector<double> values;
  each(index.shape, from, [&](int64_t, int64_t place) { values.push_back(s.v[place]); });
  each(index.shape, by, [&](int64_t k, int64_t place) { a.v[place + wrap((int64_t)index.v[k], a.shape[axis]) * own[axis]] += values[k]; });
  call.out(4, a);
}
static void extreme_along(Call &call, bool largest) {
  Arr a = call.in(0), values, places;
  lines(a.shape, call.integer(1), [&](int64_t base, int64_t step, int64_t n) {
    int64_t best = 0;
    for (int64_t j = 1; j < n; j++) {
      double x = a.v[base + j * step], y = a.v[base + best * step];
      if (largest ? x > y : x < y) best = j;
    }
    values.v.push_back(a.v[base + best * step]);
    places.v.push_back((double)best);
  });
  call.out(3, values);
  call.out(4, places);
}
OP(MaxDim, "tibtt") { extreme_along(call, true); }
OP(MinDim, "tibtt") { extreme_along(call, false); }
OP(OneHot, "tittit") {
  Arr index = call.in(0), r(call.tensor(5).dims, call.in(3).v[0]);
  double on = call.in(2).v[0];
  int64_t axis = wrap(call.integer(4), r.rank()), depth = r.shape[axis], at = 0;
  lines(r.shape, axis, [&](int64_t base, int64_t step, int64_t) {
    int64_t k = (int64_t)index.v[at++];
    if (k >= 0 && k < depth) r.v[base + k * step] = on;
  });
  call.out(5, r);
}
