// Permutation, concatenation, splitting, repetition.
#include "arrays.h"

namespace softnpu {

OP(Permute, "tIt") {
  need(call.has(1), "the order is missing");
  Tensor view = permute(call.tensor(0), call.integers(1));
  need_shape(call.tensor(2), view.dims);
  copy(view, call.tensor(2));
}
// Parts, axis, result.
OP(Cat, "Lit") {
  const Tensor &out = call.tensor(2);
  int64_t axis = find_axis(call.integer(1), (int64_t)out.dims.size()), at = 0;
  need(call.has(0), "the parts are missing");
  for (auto part : call.list(0)) {
    if (part->dims == Dims{0}) continue;  // as in PyTorch: of any shape
    Dims expected = out.dims;
    need(part->dims.size() == expected.size(), "parts of shape " + show(part->dims) + " for " + show(out.dims));
    expected[axis] = part->dims[axis];
    need(part->dims == expected, "parts of shape " + show(part->dims) + " for " + show(out.dims));
    copy(*part, take(out, axis, at, part->dims[axis]));
    at += part->dims[axis];
  }
  need(at == out.dims[axis], "the parts have " + std::to_string(at) + " of " + std::to_string(out.dims[axis]) + " elements along the axis");
}
// Input, sizes, axis, parts.
OP(SplitWithSize, "tIiL") {
  const Tensor &in = call.tensor(0);
  int64_t axis = find_axis(call.integer(2), (int64_t)in.dims.size()), at = 0;
  need(call.has(1) && call.has(3) && call.integers(1).size() == call.list(3).size(), "the numbers of sizes and parts differ");
  for (size_t i = 0; i < call.list(3).size(); i++) {
    Tensor view = take(in, axis, at, (int64_t)call.integers(1)[i]);
    need_shape(*call.list(3)[i], view.dims);
    copy(view, *call.list(3)[i]);
    at += view.dims[axis];
  }
  need(at == in.dims[axis], "the sizes add up to " + std::to_string(at) + " of " + std::to_string(in.dims[axis]));
}
// Input, how often each dimension is repeated, result.
OP(Repeat, "tIt") {
  need(call.has(1), "the numbers of repetitions are missing");
  Dims times = call.integers(1), split_in, split_out;
  Tensor in = call.tensor(0), out = call.tensor(2);
  need(times.size() >= in.dims.size(), std::to_string(times.size()) + " repetitions for shape " + show(in.dims));
  in.dims.insert(in.dims.begin(), times.size() - in.dims.size(), 1);
  in.strides.insert(in.strides.begin(), times.size() - in.strides.size(), 0);
  Dims expected;
  for (size_t d = 0; d < times.size(); d++) expected.push_back(times[d] * in.dims[d]);
  need_shape(out, expected);
  // Each dimension is seen as (repetition, element): stride 0 in the input, adjacent pieces in the output.
  Tensor from = in, to = out;
  from.dims.clear(), from.strides.clear(), to.strides.clear();
  for (size_t d = 0; d < times.size(); d++) {
    from.dims.push_back(times[d]), from.dims.push_back(in.dims[d]);
    from.strides.push_back(0), from.strides.push_back(in.strides[d]);
    to.strides.push_back(out.strides[d] * in.dims[d]), to.strides.push_back(out.strides[d]);
  }
  to.dims = from.dims;
  copy(from, to);
}

}  // namespace softnpu
