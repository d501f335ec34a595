// Matrix products.
#include "gemm.h"

namespace softnpu {

namespace {
Matrix matrix(const Tensor &t) {
  return {t.data + t.offset * (int64_t)item_bytes(t.dtype), t.dtype, t.strides[0], t.strides[1]};
}
// Writes pieces of a product into a tensor.
Finish into(const Tensor &out) {
  return [&out](int64_t i, int64_t j, int64_t rows, int64_t cols, double *piece, int64_t stride) {
    int64_t bytes = (int64_t)item_bytes(out.dtype);
    for (int64_t r = 0; r < rows; r++)
      store_run(out.data + (out.offset + (i + r) * out.strides[0] + j * out.strides[1]) * bytes, out.dtype, out.strides[1], cols, piece + r * stride);
  };
}
}  // namespace

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
