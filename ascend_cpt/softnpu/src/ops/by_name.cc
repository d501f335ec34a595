// Operators that MindSpore calls by name (aclop), with described, dense buffers.
#include "arrays.h"

namespace softnpu {

namespace {
Tensor &input(NamedCall &call, size_t i) {
  need(i < call.inputs.size(), "input " + std::to_string(i) + " is missing");
  return call.inputs[i];
}
Tensor &output(NamedCall &call, size_t i) {
  need(i < call.outputs.size(), "output " + std::to_string(i) + " is missing");
  return call.outputs[i];
}
void need_equal_shape(const Tensor &a, const Tensor &b) {
  need(a.dims == b.dims, "shapes " + show(a.dims) + " and " + show(b.dims) + " differ");
}
Dims whole(const Tensor &t) {
  need_whole(t);
  std::vector<double> values = load_all(t);
  return {values.begin(), values.end()};
}
}  // namespace

// Announces the queue of sink mode by its name. The queue itself is made through acl_tdt_channel.
NAMED_OP(InitData) {}
NAMED_OP(TensorMove) {
  need_equal_shape(input(call, 0), output(call, 0));
  copy(input(call, 0), output(call, 0));
}
// Variable, value; the variable changes in place, and is the output where there is one.
NAMED_OP(Assign) {
  need_equal_shape(input(call, 0), input(call, 1));
  copy(input(call, 1), input(call, 0));
  if (!call.outputs.empty()) copy(input(call, 0), output(call, 0));
}
// A value of one element is added to a variable of one element whatever the ranks.
NAMED_OP(AssignAdd) {
  Tensor &variable = input(call, 0);
  need(broadcast(variable.dims, input(call, 1).dims) == variable.dims, "a value of shape " + show(input(call, 1).dims) + " does not broadcast to " + show(variable.dims));
  each(variable, [](double x, double y) { return x + y; }, variable, input(call, 1));
  if (!call.outputs.empty()) copy(variable, output(call, 0));
}
// x + value · a · b
NAMED_OP(Addcmul) {
  double k = number(input(call, 3), "the value");
  Tensor &out = output(call, 0);
  need_float(out);
  need_shape(out, broadcast(input(call, 0).dims, broadcast(input(call, 1).dims, input(call, 2).dims)));
  each(out, [k](double x, double a, double b) { return x + k * a * b; }, input(call, 0), input(call, 1), input(call, 2));
}
NAMED_OP(AddN) {
  Tensor &out = output(call, 0);
  std::vector<double> sum(out.count()), one(out.count());
  for (size_t i = 0; i < call.inputs.size(); i++) {
    need_shape(out, input(call, i).dims);
    Cursor(input(call, i)).read((int64_t)one.size(), one.data());
    for (size_t k = 0; k < sum.size(); k++) sum[k] += one[k];
  }
  store_all(out, sum);
}
// The sums over input 1's axes, or their means; reduced dimensions stay as 1 with keep_dims.
static void reduce(NamedCall &call, bool is_mean) {
  const Tensor &in = input(call, 0);
  Dims kept = in.dims, squeezed, axes = whole(input(call, 1));
  std::vector<bool> reduced(in.dims.size());
  for (int64_t axis : axes) reduced[find_axis(axis, in.rank())] = true;
  for (size_t d = 0; d < kept.size(); d++) {
    if (reduced[d]) kept[d] = 1;
    else squeezed.push_back(kept[d]);
  }
  Dims strides = dense_strides(kept), inner = dense_strides(in.dims);
  need_shape(output(call, 0), call.attribute("keep_dims", 0) ? kept : squeezed);
  std::vector<double> values = load_all(in), sums(count_elements(kept), 0.0);
  for (size_t k = 0; k < values.size(); k++) {
    int64_t at = 0;
    for (int64_t d = 0; d < in.rank(); d++) if (kept[d] > 1) at += (int64_t)k / inner[d] % in.dims[d] * strides[d];
    sums[at] += values[k];
  }
  if (is_mean) for (double &sum : sums) sum /= (double)values.size() / (double)sums.size();
  store_all(output(call, 0), sums);
}
NAMED_OP(ReduceSum) { reduce(call, false); }
NAMED_OP(ReduceMean) { reduce(call, true); }
NAMED_OP(ZerosLike) {
  need_equal_shape(input(call, 0), output(call, 0));
  fill(output(call, 0), 0.0);
}
NAMED_OP(RealDiv) {
  need_float(output(call, 0));
  need_shape(output(call, 0), broadcast(input(call, 0).dims, input(call, 1).dims));
  each(output(call, 0), [](double x, double y) { return x / y; }, input(call, 0), input(call, 1));
}
// x, lowest, highest.
NAMED_OP(ClipByValue) {
  need_shape(output(call, 0), input(call, 0).dims);
  double low = number(input(call, 1), "the lowest value"), high = number(input(call, 2), "the highest value");
  each(output(call, 0), [low, high](double x) { return std::min(std::max(x, low), high); }, input(call, 0));
}
// Variable, indices [..., depth], updates: the slices of the variable that the indices name are replaced, in their order.
NAMED_OP(ScatterNdUpdate) {
  Tensor &variable = input(call, 0), &indices = input(call, 1), &updates = input(call, 2);
  need_rank(indices, 1, 8);
  int64_t depth = indices.dims.back(), num = depth ? indices.count() / depth : 0, width = num ? updates.count() / num : 0;
  need(depth >= 1 && depth <= variable.rank(), "indices of shape " + show(indices.dims) + " cannot index shape " + show(variable.dims));
  Dims expected(indices.dims.begin(), indices.dims.end() - 1), places = whole(indices);
  expected.insert(expected.end(), variable.dims.begin() + depth, variable.dims.end());
  need(updates.dims == expected, "updates of shape " + show(updates.dims) + ", but the indices give " + show(expected));
  for (int64_t i = 0; i < num; i++) {
    Tensor to = variable, from = updates;
    for (int64_t d = 0; d < depth; d++) {
      int64_t at = places[i * depth + d];
      need(at >= 0 && at < variable.dims[d], "index " + std::to_string(at) + " is out of range for shape " + show(variable.dims));
      to.offset += at * variable.strides[d];
    }
    to.dims.assign(variable.dims.begin() + depth, variable.dims.end());
    to.strides.assign(variable.strides.begin() + depth, variable.strides.end());
    from.offset += i * width;
    from.dims = to.dims;
    from.strides = dense_strides(from.dims);
    copy(from, to);
  }
  if (!call.outputs.empty()) copy(variable, output(call, 0));
}
// Axis, input; equal parts.
NAMED_OP(Split) {
  const Tensor &in = input(call, 1);
  int64_t axis = find_axis((int64_t)number(input(call, 0), "the axis"), in.rank()), num = (int64_t)call.outputs.size();
  need(num > 0 && in.dims[axis] % num == 0, "cannot split axis " + std::to_string(axis) + " of shape " + show(in.dims) + " into " + std::to_string(num) + " equal parts");
  for (int64_t i = 0; i < num; i++) {
    Tensor view = take(in, axis, i * in.dims[axis] / num, in.dims[axis] / num);
    need_shape(call.outputs[i], view.dims);
    copy(view, call.outputs[i]);
  }
}
// Table, indices, axis: the slices of the table that the indices name, in place of the axis.
NAMED_OP(GatherV2) {
  const Tensor &table = input(call, 0), &out = output(call, 0);
  int64_t axis = find_axis((int64_t)number(input(call, 2), "the axis"), table.rank()), n = table.dims[axis];
  need(call.attribute("batch_dims", 0) == 0, "batch dimensions are not supported");
  Dims expected = table.dims, indices = whole(input(call, 1));
  expected.erase(expected.begin() + axis);
  expected.insert(expected.begin() + axis, input(call, 1).dims.begin(), input(call, 1).dims.end());
  need_shape(out, expected);
  Tensor flat = out;  // the indices' dimensions as one
  flat.dims = table.dims;
  flat.dims[axis] = (int64_t)indices.size();
  flat.strides = dense_strides(flat.dims);
  for (size_t i = 0; i < indices.size(); i++) {
    int64_t row = indices[i] < 0 ? indices[i] + n : indices[i];
    need(row >= 0 && row < n, "index " + std::to_string(indices[i]) + " is out of range for an axis of " + std::to_string(n));
    copy(take(table, axis, row, 1), take(flat, axis, (int64_t)i, 1));
  }
}
// The part of `view` given by inputs 1 to 3 (begin, end, strides); bits of begin_mask and end_mask take a dimension from
// its start or to its end, those of shrink_axis_mask take one element and drop the dimension.
static Tensor slice(NamedCall &call, Tensor view) {
  Dims begin = whole(input(call, 1)), end = whole(input(call, 2)), step = whole(input(call, 3)), kept, strides;
  auto bit = [&](const char *mask, size_t d) { return ((int64_t)call.attribute(mask, 0) >> d & 1) != 0; };
  need(begin.size() <= view.dims.size() && end.size() == begin.size() && step.size() == begin.size(), "begin, end and strides have different lengths, or more entries than shape " + show(view.dims));
  need(call.attribute("ellipsis_mask", 0) == 0 && call.attribute("new_axis_mask", 0) == 0, "ellipsis and new axes are not supported");
  for (size_t d = 0; d < view.dims.size(); d++) {
    if (d < begin.size()) {
      int64_t n = view.dims[d], s = step[d], low = s > 0 ? 0 : -1, high = s > 0 ? n : n - 1;
      need(s != 0, "stride 0 is not allowed");
      auto clip = [&](int64_t x) { return std::max(low, std::min(high, x < 0 ? x + n : x)); };
      int64_t from = bit("begin_mask", d) ? (s > 0 ? 0 : n - 1) : clip(begin[d]), to = bit("end_mask", d) ? (s > 0 ? n : -1) : clip(end[d]);
      if (bit("shrink_axis_mask", d)) to = from + (s > 0 ? 1 : -1);
      int64_t length = std::max<int64_t>(0, (to - from + s + (s > 0 ? -1 : 1)) / s);
      view = take(view, (int64_t)d, from, length, s);
      if (bit("shrink_axis_mask", d)) continue;
    }
    kept.push_back(view.dims[d]);
    strides.push_back(view.strides[d]);
  }
  view.dims = kept;
  view.strides = strides;
  return view;
}
NAMED_OP(StridedSlice) {
  Tensor part = slice(call, input(call, 0));
  need_shape(output(call, 0), part.dims);
  copy(part, output(call, 0));
}
// The shape of StridedSlice's input, begin, end, strides, gradient of its output.
NAMED_OP(StridedSliceGrad) {
  need_shape(output(call, 0), whole(input(call, 0)));
  fill(output(call, 0), 0);
  Tensor part = slice(call, output(call, 0));
  need(input(call, 4).dims == part.dims, "the gradient has shape " + show(input(call, 4).dims) + ", but the slice has " + show(part.dims));
  copy(input(call, 4), part);
}

}  // namespace softnpu
