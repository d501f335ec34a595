// Matrix products.
#include "gemm.h"

namespace softnpu {

namespace {
Matrix matrix(const Tensor &t) {
  return {t.data + t.offset * (int64_t)item_bytes(t.dtype), t.dtype, t.strides[0], t.strides[1]};
}
// The matrix at a place of the first dimension.
Tensor slice(const Tensor &t, int64_t i) {
  Tensor r = take(t, 0, i, 1);
  r.dims.erase(r.dims.begin());
  r.strides.erase(r.strides.begin());
  return r;
}
// Writes pieces of a product into a tensor.
Finish into(const Tensor &out) {
  return [&out](int64_t i, int64_t j, int64_t rows, int64_t cols, double *piece, int64_t stride) {
    int64_t bytes = (int64_t)item_bytes(out.dtype);
    for (int64_t r = 0; r < rows; r++)
      store_run(out.data + (out.offset + (i + r) * out.strides[0] + j * out.strides[1]) * bytes, out.dtype, out.strides[1], cols, piece + r * stride);
  };
}
// a [..., m, k] · b [..., k, n] or [k, n], the same for every matrix of a.
void multiply_batches(const Tensor &a, const Tensor &b, const Tensor &out) {
  if (a.dims.size() > 2) {
    bool shared = b.dims.size() == 2;
    need(out.dims.size() == a.dims.size() && out.dims[0] == a.dims[0] && (shared || b.dims[0] == a.dims[0]),
         "shapes " + show(a.dims) + " and " + show(b.dims) + " do not give " + show(out.dims));
    for (int64_t i = 0; i < a.dims[0]; i++) multiply_batches(slice(a, i), shared ? b : slice(b, i), slice(out, i));
    return;
  }
  need_rank(a, 2, 2), need_rank(b, 2, 2);
  need(a.dims[1] == b.dims[0], "shapes " + show(a.dims) + " and " + show(b.dims) + " cannot be multiplied");
  need_shape(out, {a.dims[0], b.dims[1]});
  multiply(matrix(a), matrix(b), a.dims[0], a.dims[1], b.dims[1], into(out));
}
// Which rows belong to each group: the ends in `ends` are cumulative.
std::vector<std::pair<int64_t, int64_t>> find_groups(const std::vector<double> &ends, int64_t count) {
  std::vector<std::pair<int64_t, int64_t>> groups;
  int64_t start = 0;
  for (double end : ends) {
    need((int64_t)end >= start && (int64_t)end <= count, "group list " + std::to_string((int64_t)end) + " after " + std::to_string(start) + " of " + std::to_string(count) + " rows");
    groups.push_back({start, (int64_t)end});
    start = (int64_t)end;
  }
  need(start == count, "the groups have " + std::to_string(start) + " of " + std::to_string(count) + " rows");
  return groups;
}
// Type 0: rows of x [m, k] times the group's matrix of w [e, k, n]. Type 2: columns of x [k, m] times rows of w [m, n],
// one product for each group, out [e, k, n].
void multiply_groups(const Tensor &x, const Tensor &w, const std::vector<double> &ends, int64_t type, const Tensor &out) {
  for (auto t : {&x, &w, &out}) need_float(*t);
  need(x.dtype == w.dtype, "operands of different dtypes");
  need(type == 0 || type == 2, "group type " + std::to_string(type) + " is not supported");
  need_rank(x, 2, 2), need_rank(w, type ? 2 : 3, type ? 2 : 3), need_rank(out, type ? 3 : 2, type ? 3 : 2);
  need(!overlaps(out, x) && !overlaps(out, w), "the output overlaps an operand");
  need((int64_t)ends.size() == (type ? out : w).dims[0], std::to_string(ends.size()) + " groups for shape " + show((type ? out : w).dims));
  auto groups = find_groups(ends, x.dims[type ? 1 : 0]);
  for (size_t e = 0; e < groups.size(); e++) {
    auto [start, end] = groups[e];
    if (type) multiply_batches(take(x, 1, start, end - start), take(w, 0, start, end - start), slice(out, (int64_t)e));
    else if (end > start) multiply_batches(take(x, 0, start, end - start), slice(w, (int64_t)e), take(out, 0, start, end - start));
  }
}
// The only tensor of a list; a list that is missing has none.
const Tensor &only(Call &call, size_t i, const char *what) {
  need(call.has(i) && call.list(i).size() == 1, std::string("one tensor is supported as ") + what);
  return *call.list(i)[0];
}
void need_absent(Call &call, size_t first, size_t last) {
  for (size_t i = first; i <= last; i++) need(!call.has(i) || call.list(i).empty(), "argument " + std::to_string(i) + " is not supported");
}
}  // namespace

// a, b, result, precision (ignored).
OP(Matmul, "tttc") {
  const Tensor &a = call.tensor(0), &b = call.tensor(1), &out = call.tensor(2);
  for (auto t : {&a, &b, &out}) need_float(*t);
  need(a.dtype == b.dtype, "operands of different dtypes");
  need(!overlaps(out, a) && !overlaps(out, b), "the output overlaps an operand");
  multiply_batches(a, b, out);
}
// x, weight, bias, scale, offset, two for quantization, ends of the groups, split, type, result.
OP(GroupedMatmulV3, "LLLLLLLtiiL") {
  need_absent(call, 2, 6);
  need(call.integer(8) == 3, "split item " + std::to_string(call.integer(8)) + " is not supported");
  multiply_groups(only(call, 0, "x"), only(call, 1, "weight"), load_all(call.tensor(7)), call.integer(9), only(call, 10, "the result"));
}
// The same, with eight optional lists, three for activations, the kind of the group list (1: counts), the activation,
// and two more results.
OP(GroupedMatmulV4, "LLLLLLLLtLLLiiiiLLL") {
  need_absent(call, 2, 7), need_absent(call, 9, 11), need_absent(call, 17, 18);
  need(call.integer(12) == 3, "split item " + std::to_string(call.integer(12)) + " is not supported");
  need(call.integer(15) == 0, "activation " + std::to_string(call.integer(15)) + " is not supported");
  std::vector<double> ends = load_all(call.tensor(8));
  if (call.integer(14) == 1) for (size_t e = 1; e < ends.size(); e++) ends[e] += ends[e - 1];
  multiply_groups(only(call, 0, "x"), only(call, 1, "weight"), ends, call.integer(13), only(call, 16, "the result"));
}

// a [m, k], b [k, n], result [m, n], precision (ignored).
OP(Mm, "tttc") {
  const Tensor &a = call.tensor(0), &b = call.tensor(1), &out = call.tensor(2);
  for (auto t : {&a, &b, &out}) need_rank(*t, 2, 2), need_float(*t);
  need(a.dtype == b.dtype, "operands of different dtypes");
  need(a.dims[1] == b.dims[0], "shapes " + show(a.dims) + " and " + show(b.dims) + " cannot be multiplied");
  need_shape(out, {a.dims[0], b.dims[1]});
  need(!overlaps(out, a) && !overlaps(out, b), "the output overlaps an operand");
  multiply(matrix(a), matrix(b), a.dims[0], a.dims[1], b.dims[1], into(out));
}

}  // namespace softnpu
