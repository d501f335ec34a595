// Embedding and the pieces of the cross entropy that are not element-wise.
#include "arrays.h"

namespace softnpu {

namespace {
std::vector<int64_t> load_whole(const Tensor &t) {
  need_whole(t);
  std::vector<double> values = load_all(t);
  return {values.begin(), values.end()};
}
}  // namespace

// Table [rows, width], indices; the rows named by the indices. An index outside of the table is an error: on a device it
// reads foreign memory.
OP(Embedding, "ttt") {
  const Tensor &table = call.tensor(0), &out = call.tensor(2);
  need_rank(table, 2, 2);
  Dims expected = call.tensor(1).dims;
  expected.push_back(table.dims[1]);
  need_shape(out, expected);
  need_dtype(out, {table.dtype});
  std::vector<double> line(table.dims[1]);
  Cursor to(out);
  for (int64_t row : load_whole(call.tensor(1))) {
    need(row >= 0 && row < table.dims[0], "index " + std::to_string(row) + " for a table of " + std::to_string(table.dims[0]) + " rows");
    Tensor from = take(table, 0, row, 1);
    if (!line.empty()) Cursor(from).read((int64_t)line.size(), line.data());
    to.write((int64_t)line.size(), line.data());
  }
}
// Gradient, indices, rows of the table, index that gets no gradient (-1: none), whether to divide by frequency; gradient of
// the table.
OP(EmbeddingDenseBackward, "ttiibt") {
  const Tensor &up = call.tensor(0), &out = call.tensor(5);
  need_float(up);
  need_rank(out, 2, 2);
  need(call.integer(4) == 0, "gradients divided by frequency are not emulated");
  need(out.dims[0] == call.integer(2), "requested " + std::to_string(call.integer(2)) + " rows, but the output has shape " + show(out.dims));
  int64_t width = out.dims[1];
  Dims expected = call.tensor(1).dims;
  expected.push_back(width);
  need(up.dims == expected, "a gradient of shape " + show(up.dims) + " for indices of shape " + show(call.tensor(1).dims));
  std::vector<double> sum(out.count()), line(width);
  Cursor from(up);
  for (int64_t row : load_whole(call.tensor(1))) {
    from.read(width, line.data());
    if (row == call.integer(3)) continue;
    need(row >= 0 && row < out.dims[0], "index " + std::to_string(row) + " for a table of " + std::to_string(out.dims[0]) + " rows");
    for (int64_t i = 0; i < width; i++) sum[row * width + i] += line[i];
  }
  store_all(out, sum);
}
// Indices, classes, value on, value off, axis, output. An index that is no class gives a row of `off`: the piece of the
// vocabulary of another device.
OP(OneHot, "tittit") {
  const Tensor &out = call.tensor(5);
  std::vector<int64_t> places = load_whole(call.tensor(0));
  int64_t rank = (int64_t)out.dims.size(), axis = find_axis(call.integer(4), rank), depth = call.integer(1);
  Dims expected = call.tensor(0).dims;
  need(axis <= (int64_t)expected.size(), "axis " + std::to_string(call.integer(4)) + " for indices of shape " + show(expected));
  expected.insert(expected.begin() + axis, depth);
  need_shape(out, expected);
  fill(out, number(call.tensor(3), "the value off"));
  Dims order;
  for (int64_t d = 0; d < rank; d++) if (d != axis) order.push_back(d);
  order.push_back(axis);
  Tensor view = permute(out, order);
  double on = number(call.tensor(2), "the value on");
  Tensor first = take(view, rank - 1, 0, 1);
  if (depth == 0) return;
  Cursor rows(first);
  int64_t bytes = (int64_t)item_bytes(out.dtype), step = view.strides.back();
  for (int64_t place : places)
    rows.runs(1, [&](char *p, int64_t, int64_t) { if (place >= 0 && place < depth) store_run(p + place * step * bytes, out.dtype, 1, 1, &on); });
}

}  // namespace softnpu
