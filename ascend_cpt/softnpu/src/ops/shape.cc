// Permutation, concatenation, splitting, repetition, sorting, selection by indices.
#include "arrays.h"

namespace softnpu {

namespace {
// The tensor with `axis` last, so that a cursor reads one line along it after the other.
Tensor with_last(const Tensor &t, int64_t axis) {
  Dims order;
  for (int64_t d = 0; d < t.rank(); d++) if (d != axis) order.push_back(d);
  order.push_back(axis);
  return permute(t, order);
}
// Writes the first elements of each sorted line along an axis, and their places. Equal elements keep their order.
void sort_lines(const Tensor &in, int64_t axis, bool descending, const Tensor &values, const Tensor &places) {
  need_whole(places);
  axis = find_axis(axis, in.rank());
  Dims dims = values.dims;
  need(dims.size() == in.dims.size() && dims[axis] <= in.dims[axis], "shape " + show(dims) + " from " + show(in.dims));
  need_shape(places, dims);
  int64_t length = in.dims[axis], kept = dims[axis];
  Tensor lines = with_last(in, axis), best = with_last(values, axis), at = with_last(places, axis);
  need(Dims(lines.dims.begin(), lines.dims.end() - 1) == Dims(best.dims.begin(), best.dims.end() - 1), "shape " + show(dims) + " from " + show(in.dims));
  Cursor from(lines), to(best), to_places(at);
  std::vector<double> line(length), sorted(kept), index(kept);
  std::vector<int64_t> order(length);
  for (int64_t r = 0, n = length ? in.count() / length : 0; r < n; r++) {
    from.read(length, line.data());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return descending ? line[a] > line[b] : line[a] < line[b]; });
    for (int64_t i = 0; i < kept; i++) sorted[i] = line[order[i]], index[i] = (double)order[i];
    to.write(kept, sorted.data());
    to_places.write(kept, index.data());
  }
}
std::vector<int64_t> load_indices(const Tensor &t, int64_t size) {
  need_whole(t);
  std::vector<int64_t> r;
  for (double x : load_all(t)) {
    int64_t i = (int64_t)x < 0 ? (int64_t)x + size : (int64_t)x;
    need(i >= 0 && i < size, "index " + std::to_string((int64_t)x) + " of " + std::to_string(size));
    r.push_back(i);
  }
  return r;
}
}  // namespace

// Input, how many, axis, whether the largest, whether sorted (always), values, places.
OP(Topk, "tiibbtt") {
  need(call.tensor(5).rank() > 0 && call.tensor(5).dims[find_axis(call.integer(2), call.tensor(5).rank())] == call.integer(1), "the output does not have " + std::to_string(call.integer(1)) + " elements along the axis");
  sort_lines(call.tensor(0), call.integer(2), call.flag(3), call.tensor(5), call.tensor(6));
}
// Input, whether stable (always), axis, whether descending, values, places.
OP(Sort, "tbibtt") {
  need_shape(call.tensor(4), call.tensor(0).dims);
  sort_lines(call.tensor(0), call.integer(2), call.flag(3), call.tensor(4), call.tensor(5));
}
// Input, axis, indices, result.
OP(IndexSelect, "titt") {
  const Tensor &in = call.tensor(0), &out = call.tensor(3);
  int64_t axis = find_axis(call.integer(1), in.rank());
  auto indices = load_indices(call.tensor(2), in.dims[axis]);
  Dims expected = in.dims;
  expected[axis] = (int64_t)indices.size();
  need_shape(out, expected);
  for (size_t i = 0; i < indices.size(); i++) copy(take(in, axis, indices[i], 1), take(out, axis, (int64_t)i, 1));
}
// Input, axis, indices, what is added at them, factor, result.
OP(IndexAdd, "tittst") {
  const Tensor &in = call.tensor(0), &source = call.tensor(3), &out = call.tensor(5);
  int64_t axis = find_axis(call.integer(1), in.rank());
  auto indices = load_indices(call.tensor(2), in.dims[axis]);
  double factor = call.scalar(4);
  need_shape(out, in.dims);
  need(source.rank() == in.rank() && source.dims[axis] == (int64_t)indices.size(), "source " + show(source.dims) + " for " + std::to_string(indices.size()) + " indices");
  // Summed in double, and rounded once.
  std::vector<double> total = load_all(in);
  Tensor sums = out;
  sums.dtype = F64, sums.data = (char *)total.data(), sums.offset = 0, sums.strides = dense_strides(sums.dims);
  for (size_t i = 0; i < indices.size(); i++) {
    Tensor place = take(sums, axis, indices[i], 1);
    each(place, [factor](double x, double y) { return x + factor * y; }, place, take(source, axis, (int64_t)i, 1));
  }
  store_all(out, total);
}
static void scatter(Call &call, const Tensor &in, const Tensor &out) {
  const Tensor &index = call.tensor(2), &source = call.tensor(3);
  int64_t axis = find_axis(call.integer(1), in.rank());
  need(call.integer(4) == 0 || call.integer(4) == 1, "reduction " + std::to_string(call.integer(4)) + " is not supported");
  need_shape(out, in.dims);
  need_shape(index, source.dims);
  auto indices = load_indices(index, in.dims[axis]);
  std::vector<double> total = load_all(in), added = load_all(source);
  Dims strides = dense_strides(in.dims), inner = dense_strides(index.dims);
  for (size_t k = 0; k < indices.size(); k++) {
    int64_t at = 0;
    for (int64_t d = 0; d < in.rank(); d++) at += (d == axis ? indices[k] : (int64_t)k / inner[d] % index.dims[d]) * strides[d];
    total[at] = added[k] + (call.integer(4) ? total[at] : 0.0);
  }
  store_all(out, total);
}
// Input, axis, indices, values, how they are combined (0: replaced, 1: added), result.
OP(Scatter, "tittit") { scatter(call, call.tensor(0), call.tensor(5)); }
OP(InplaceScatter, "titti") { scatter(call, call.tensor(0), call.tensor(0)); }
OP(InplaceZero, "t") { fill(call.tensor(0), 0.0); }

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
