// Element-wise arithmetic, comparisons, logic, casts, selection.
#include "arrays.h"

namespace softnpu {

namespace {
template <class F> void unary(Call &call, F f) {
  need_shape(call.tensor(1), call.tensor(0).dims);
  each(call.tensor(1), f, call.tensor(0));
}
template <class F> void unary_float(Call &call, F f) {
  need_float(call.tensor(1));
  unary(call, f);
}
// Inputs are arguments 0 and 1, the result argument `out`.
template <class F> void binary(Call &call, size_t out, F f) {
  need_shape(call.tensor(out), broadcast(call.tensor(0).dims, call.tensor(1).dims));
  each(call.tensor(out), f, call.tensor(0), call.tensor(1));
}
template <class F> void compare(Call &call, F f) {
  need_dtype(call.tensor(2), {BOOL});
  binary(call, 2, f);
}
template <class F> void with_scalar(Call &call, F f) {
  need(call.has(1), "the scalar is missing");
  need_shape(call.tensor(2), call.tensor(0).dims);
  double k = call.scalar(1);
  each(call.tensor(2), [f, k](double x) { return f(x, k); }, call.tensor(0));
}
double lesser(double x, double y) { return x != x || x < y ? x : y; }
double greater(double x, double y) { return x != x || x > y ? x : y; }
}  // namespace

// x + alpha · y
OP(Add, "ttst") { double k = call.scalar(2); binary(call, 3, [k](double x, double y) { return x + k * y; }); }
OP(Sub, "ttst") { double k = call.scalar(2); binary(call, 3, [k](double x, double y) { return x - k * y; }); }
OP(Mul, "ttt") { binary(call, 2, [](double x, double y) { return x * y; }); }
OP(Div, "ttt") {
  need_float(call.tensor(2));
  binary(call, 2, [](double x, double y) { return x / y; });
}
OP(FloorDivide, "ttt") { binary(call, 2, [](double x, double y) { return std::floor(x / y); }); }
OP(PowTensorTensor, "ttt") { binary(call, 2, [](double x, double y) { return std::pow(x, y); }); }
OP(Minimum, "ttt") { binary(call, 2, [](double x, double y) { return lesser(x, y); }); }
OP(Maximum, "ttt") { binary(call, 2, [](double x, double y) { return greater(x, y); }); }
OP(EqTensor, "ttt") { compare(call, [](double x, double y) { return double(x == y); }); }
OP(NeTensor, "ttt") { compare(call, [](double x, double y) { return double(x != y); }); }
OP(GeTensor, "ttt") { compare(call, [](double x, double y) { return double(x >= y); }); }
OP(LeTensor, "ttt") { compare(call, [](double x, double y) { return double(x <= y); }); }
OP(LtTensor, "ttt") { compare(call, [](double x, double y) { return double(x < y); }); }
OP(GtTensor, "ttt") { compare(call, [](double x, double y) { return double(x > y); }); }
OP(LogicalAnd, "ttt") { compare(call, [](double x, double y) { return double(x != 0 && y != 0); }); }
OP(LogicalOr, "ttt") { compare(call, [](double x, double y) { return double(x != 0 || y != 0); }); }
OP(LogicalXor, "ttt") { compare(call, [](double x, double y) { return double((x != 0) != (y != 0)); }); }
OP(IsFinite, "tt") {
  need_dtype(call.tensor(1), {BOOL});
  unary(call, [](double x) { return double(std::isfinite(x)); });
}
OP(LogicalNot, "tt") {
  need_dtype(call.tensor(1), {BOOL});
  unary(call, [](double x) { return double(x == 0); });
}
OP(Muls, "tst") { with_scalar(call, [](double x, double k) { return x * k; }); }
OP(Divs, "tst") {
  need_float(call.tensor(2));
  with_scalar(call, [](double x, double k) { return x / k; });
}
OP(FmodScalar, "tst") { with_scalar(call, [](double x, double k) { return std::fmod(x, k); }); }
OP(Neg, "tt") { unary(call, [](double x) { return -x; }); }
OP(Abs, "tt") { unary(call, [](double x) { return std::fabs(x); }); }
OP(Relu, "tt") { unary(call, [](double x) { return x > 0 || x != x ? x : 0.0; }); }
OP(Exp, "tt") { unary_float(call, [](double x) { return exp_fast(x); }); }
OP(Log, "tt") { unary_float(call, [](double x) { return std::log(x); }); }
OP(Sqrt, "tt") { unary_float(call, [](double x) { return std::sqrt(x); }); }
OP(Rsqrt, "tt") { unary_float(call, [](double x) { return 1.0 / std::sqrt(x); }); }
OP(Reciprocal, "tt") { unary_float(call, [](double x) { return 1.0 / x; }); }
OP(Sin, "tt") { unary_float(call, [](double x) { return std::sin(x); }); }
OP(Cos, "tt") { unary_float(call, [](double x) { return std::cos(x); }); }
OP(Silu, "tt") { unary_float(call, [](double x) { return x * sigmoid(x); }); }
// Gradient, x: gradient · sigmoid(x) · (1 + x · (1 - sigmoid(x)))
OP(SiluBackward, "ttt") {
  need_float(call.tensor(2));
  need_shape(call.tensor(2), call.tensor(1).dims);
  binary(call, 2, [](double g, double x) { double s = sigmoid(x); return g * s * (1.0 + x * (1.0 - s)); });
}
// The dtype asked for (argument 1) has to be the output's.
OP(Cast, "twt") {
  need(call.integer(1) == call.tensor(2).dtype, "requested dtype " + std::to_string(call.integer(1)) + ", but the output has " + std::to_string(call.tensor(2).dtype));
  need_shape(call.tensor(2), call.tensor(0).dims);
  copy(call.tensor(0), call.tensor(2));
}
// Into argument 0, which may have another dtype and a larger shape.
OP(InplaceCopy, "tt") {
  need_shape(call.tensor(0), broadcast(call.tensor(0).dims, call.tensor(1).dims));
  each(call.tensor(0), [](double x) { return x; }, call.tensor(1));
}
// Condition, value where it is true, value where not.
OP(SWhere, "tttt") {
  need_dtype(call.tensor(0), {BOOL, U8});
  need_shape(call.tensor(3), broadcast(call.tensor(0).dims, broadcast(call.tensor(1).dims, call.tensor(2).dims)));
  each(call.tensor(3), [](double m, double x, double y) { return m != 0 ? x : y; }, call.tensor(0), call.tensor(1), call.tensor(2));
}

}  // namespace softnpu
