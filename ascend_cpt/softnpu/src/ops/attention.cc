// FlashAttentionScore and its gradient, for batches (BNSD, BSND, BSH, SBH) and packed documents (TND).
#include <memory>
#include "gemm.h"

namespace softnpu {

namespace {
constexpr int64_t kTile = 64;             // rows of the query that share one product with the keys
constexpr int64_t kStatistics = 8;        // softmax maximum and sum are stored eight times
constexpr int64_t kCompressedMask = 2048;  // rows and columns of the mask that stands for a causal one
enum Sparse { kGivenInBand = 0, kGiven = 1, kLeftUp = 2, kRightDown = 3, kBand = 4 };

// A tensor as [batch, head, position, channel].
struct Heads {
  const Tensor *t;
  int64_t batch, heads, rows, width, sb, sh, ss, sd;
  Heads(const Tensor &x, const std::string &layout, int64_t num_heads) : t(&x), heads(num_heads), sb(0) {
    auto &d = x.dims;
    auto &s = x.strides;
    need_rank(x, layout == "BNSD" || layout == "BSND" ? 4 : 3, layout == "BNSD" || layout == "BSND" ? 4 : 3);
    need_float(x);
    if (layout == "BNSD") batch = d[0], heads = d[1], rows = d[2], width = d[3], sb = s[0], sh = s[1], ss = s[2], sd = s[3];
    else if (layout == "BSND") batch = d[0], rows = d[1], heads = d[2], width = d[3], sb = s[0], ss = s[1], sh = s[2], sd = s[3];
    else if (layout == "TND") batch = 1, rows = d[0], heads = d[1], width = d[2], ss = s[0], sh = s[1], sd = s[2];
    else if (layout == "BSH") batch = d[0], rows = d[1], width = d[2] / heads, sb = s[0], ss = s[1], sd = s[2], sh = width * sd;
    else if (layout == "SBH") rows = d[0], batch = d[1], width = d[2] / heads, ss = s[0], sb = s[1], sd = s[2], sh = width * sd;
    else throw Error("layout " + layout + " is not emulated");
    need(heads > 0 && (d.size() == 4 || layout == "TND" || heads * width == d[2]), "the width of shape " + show(d) + " is not divisible by " + std::to_string(heads) + " heads");
  }
  char *at(int64_t b, int64_t h, int64_t row) const {
    return t->data + (t->offset + b * sb + h * sh + row * ss) * (int64_t)item_bytes(t->dtype);
  }
  Matrix rows_at(int64_t b, int64_t h, int64_t row) const { return {at(b, h, row), t->dtype, ss, sd}; }
  Matrix columns_at(int64_t b, int64_t h, int64_t row) const { return {at(b, h, row), t->dtype, sd, ss}; }
  void write(int64_t b, int64_t h, int64_t row, int64_t n, const double *from) const {
    for (int64_t i = 0; i < n; i++) store_run(at(b, h, row + i), t->dtype, sd, width, from + i * width);
  }
};
// Rows of the query and of the keys that see each other: a batch entry, or a document.
struct Segment { int64_t batch, q, num_q, k, num_k; };

struct Attention {
  std::string layout;
  Heads q, k, v;
  std::unique_ptr<Tensor> mask;  // [batch, head, query row, key row]
  double scale;
  int64_t before, after, sparse, group;
  std::vector<Segment> segments;

  Attention(Call &call, const std::string &name, int64_t num_heads, const Tensor *given, double scale, int64_t before, int64_t after, int64_t sparse)
      : layout(name), q(call.tensor(0), name, num_heads), k(call.tensor(1), name, key_heads(call, name, num_heads)), v(call.tensor(2), name, k.heads),
        scale(scale), before(before), after(after), sparse(sparse) {
    need(q.t->dtype == k.t->dtype && k.t->dtype == v.t->dtype, "query, key and value have different dtypes");
    need(q.heads == num_heads, "query " + show(q.t->dims) + " does not have " + std::to_string(num_heads) + " heads");
    need(k.batch == q.batch && v.batch == q.batch, "query " + show(q.t->dims) + " and key " + show(k.t->dims) + " have different batches");
    need(v.rows == k.rows && v.heads == k.heads, "key " + show(k.t->dims) + " and value " + show(v.t->dims) + " differ");
    need(k.width == q.width, "query " + show(q.t->dims) + " and key " + show(k.t->dims) + " have different widths");
    need(q.heads % k.heads == 0, std::to_string(q.heads) + " query heads are not divisible by " + std::to_string(k.heads) + " key heads");
    need(sparse >= 0 && sparse <= 4, "sparse mode " + std::to_string(sparse) + " is not emulated");
    group = q.heads / k.heads;
    if (sparse == kGiven || sparse >= kLeftUp) need(given != nullptr, "sparse mode " + std::to_string(sparse) + " needs a mask");
    if (given) take_mask(*given);
    for (int64_t b = 0; layout != "TND" && b < q.batch; b++) segments.push_back({b, 0, q.rows, 0, k.rows});
  }
  // BSH and SBH do not say how many heads the key has.
  static int64_t key_heads(Call &call, const std::string &layout, int64_t num_heads) {
    need(num_heads > 0, "the number of heads is not positive");
    auto &a = call.tensor(0).dims, &b = call.tensor(1).dims;
    need(!a.empty() && !b.empty(), "query or key without dimensions");
    return layout == "BSH" || layout == "SBH" ? std::max<int64_t>(1, b.back() * num_heads / std::max<int64_t>(1, a.back())) : num_heads;
  }
  void take_mask(const Tensor &given) {
    need_dtype(given, {BOOL, U8});
    if (sparse >= kLeftUp) {
      need(given.dims == Dims({kCompressedMask, kCompressedMask}), "sparse mode " + std::to_string(sparse) + " takes a mask of [2048,2048], not " + show(given.dims));
      std::vector<double> line(kCompressedMask);
      Cursor from(given);
      for (int64_t i = 0; i < kCompressedMask; i++) {
        from.read(kCompressedMask, line.data());
        bool is_triangle = true;
        for (int64_t j = 0; j < kCompressedMask; j++) is_triangle &= (line[j] != 0) == (j > i);
        need(is_triangle, "the compressed mask is not the upper triangle");
      }
      return;
    }
    need(layout != "TND", "packed documents with a given mask are not emulated");
    need(given.dims.size() == 2 || given.dims.size() == 4, "a mask needs 2 or 4 dimensions, not shape " + show(given.dims));
    mask.reset(new Tensor(expand(given, {q.batch, q.heads, q.rows, k.rows})));
  }
  // Documents: the ends of their rows, counted from the first row.
  void take_documents(const Dims &q_ends, const Dims &k_ends) {
    need(layout == "TND", "packed documents need layout TND, not " + layout);
    need(!q_ends.empty() && q_ends.size() == k_ends.size(), std::to_string(q_ends.size()) + " documents in the query, but " + std::to_string(k_ends.size()) + " in the key");
    int64_t a = 0, b = 0;
    for (size_t i = 0; i < q_ends.size(); i++) {
      int64_t to_a = q_ends[i], to_b = k_ends[i];
      need(to_a >= a && to_b >= b && to_a <= q.rows && to_b <= k.rows, "document " + std::to_string(i) + " ends at " + std::to_string(to_a) + " and " + std::to_string(to_b) + ", which is out of range or out of order");
      if (to_a > a) segments.push_back({0, a, to_a - a, b, to_b - b});
      a = to_a;
      b = to_b;
    }
    need(a == q.rows, "the documents end at " + std::to_string(a) + " instead of row " + std::to_string(q.rows));
  }
  // The keys [first, last) that row `i` of a segment may see by its position.
  void visible(const Segment &s, int64_t i, int64_t &first, int64_t &last) const {
    int64_t shift = s.num_k - s.num_q;
    first = 0;
    last = s.num_k;
    if (sparse == kLeftUp) last = i + 1;
    if (sparse == kRightDown) last = i + shift + 1;
    if (sparse == kBand) first = i + shift - before, last = i + shift + after + 1;
    if (sparse == kGivenInBand && mask) first = i - before, last = i + after + 1;
    first = std::max<int64_t>(0, std::min(first, s.num_k));
    last = std::max(first, std::min(last, s.num_k));
  }
  // The scaled products of rows [i, i + n) of a segment with its keys [0, columns), hidden ones as -inf; returns columns.
  int64_t scores(const Segment &s, int64_t h, int64_t i, int64_t n, double *to) const {
    int64_t first, last, columns = 0;
    for (int64_t r = 0; r < n; r++) visible(s, i + r, first, last), columns = std::max(columns, last);
    if (columns == 0) return 0;
    multiply(q.rows_at(s.batch, h, s.q + i), k.columns_at(s.batch, h / group, s.k), n, q.width, columns, to, false);
    std::vector<double> hidden(mask ? columns : 0);
    for (int64_t r = 0; r < n; r++) {
      double *x = to + r * columns;
      visible(s, i + r, first, last);
      for (int64_t j = 0; j < columns; j++) x[j] *= scale;
      std::fill(x, x + std::min(first, columns), -INFINITY);
      if (last < columns) std::fill(x + last, x + columns, -INFINITY);
      if (!mask) continue;
      const Tensor &m = *mask;
      load_run(m.data + m.offset + s.batch * m.strides[0] + h * m.strides[1] + (i + r) * m.strides[2], m.dtype, m.strides[3], columns, hidden.data());
      for (int64_t j = 0; j < columns; j++) if (hidden[j] != 0) x[j] = -INFINITY;
    }
    return columns;
  }
  // Maximum and sum of the softmax: [batch, head, row, 8], or [row, head, 8] for documents.
  Dims statistics_dims() const {
    return layout == "TND" ? Dims{q.rows, q.heads, kStatistics} : Dims{q.batch, q.heads, q.rows, kStatistics};
  }
  char *statistic(const Tensor &t, int64_t b, int64_t h, int64_t row) const {
    int64_t at = layout == "TND" ? row * t.strides[0] + h * t.strides[1] : b * t.strides[0] + h * t.strides[1] + row * t.strides[2];
    return t.data + (t.offset + at) * (int64_t)item_bytes(t.dtype);
  }
};

void forward_rows(const Attention &f, const Segment &s, int64_t h, int64_t i, int64_t n, const Heads &out, const Tensor &tops, const Tensor &sums) {
  double *p = scratch(3, kTile * s.num_k), *result = scratch(4, kTile * f.v.width);
  int64_t columns = f.scores(s, h, i, n, p), step = tops.strides.back();
  for (int64_t r = 0; r < n; r++) {
    double top = -INFINITY, sum = 0, *x = p + r * columns;
    for (int64_t j = 0; j < columns; j++) top = x[j] > top ? x[j] : top;
    bool empty = top == -INFINITY;
    if (empty) top = std::numeric_limits<float>::lowest();
    for (int64_t j = 0; j < columns; j++) x[j] = exp_fast(x[j] - top);
    for (int64_t j = 0; j < columns; j++) sum += x[j];
    for (int64_t j = 0; j < columns; j++) x[j] = empty ? 0 : x[j] / sum;
    std::vector<double> copies(kStatistics, top);
    store_run(f.statistic(tops, s.batch, h, s.q + i + r), tops.dtype, step, kStatistics, copies.data());
    copies.assign(kStatistics, sum);
    store_run(f.statistic(sums, s.batch, h, s.q + i + r), sums.dtype, step, kStatistics, copies.data());
  }
  if (columns) multiply(rows_of(p, columns), f.v.rows_at(s.batch, h / f.group, s.k), n, columns, f.v.width, result, false);
  else std::fill_n(result, n * f.v.width, 0.0);
  out.write(s.batch, h, s.q + i, n, result);
}
void forward(const Attention &f, const Tensor &tops, const Tensor &sums, const Tensor &out_tensor) {
  Heads out(out_tensor, f.layout, f.q.heads);
  need(out.batch == f.q.batch && out.rows == f.q.rows && out.width == f.v.width, "the output has shape " + show(out_tensor.dims));
  need_shape(tops, f.statistics_dims());
  need_shape(sums, f.statistics_dims());
  parallel((int64_t)f.segments.size() * f.q.heads, [&](int64_t task) {
    const Segment &s = f.segments[task / f.q.heads];
    for (int64_t i = 0; i < s.num_q; i += kTile) forward_rows(f, s, task % f.q.heads, i, std::min(kTile, s.num_q - i), out, tops, sums);
  });
}

// Gradients of one segment and one head of the keys, which `group` heads of the query share.
struct Gradient {
  const Attention &f;
  Heads up, result;  // gradient of the output, and the output
  const Tensor &tops, &sums;
  Heads dq, dk, dv;
  void run(const Segment &s, int64_t kh) const {
    int64_t n = s.num_k;
    double *to_k = scratch(5, n * f.k.width), *to_v = scratch(6, n * f.v.width);
    std::fill_n(to_k, n * f.k.width, 0.0);
    std::fill_n(to_v, n * f.v.width, 0.0);
    for (int64_t h = kh * f.group; h < (kh + 1) * f.group; h++)
      for (int64_t i = 0; i < s.num_q; i += kTile) rows(s, h, kh, i, std::min(kTile, s.num_q - i), to_k, to_v);
    dk.write(s.batch, kh, s.k, n, to_k);
    dv.write(s.batch, kh, s.k, n, to_v);
  }
  void rows(const Segment &s, int64_t h, int64_t kh, int64_t i, int64_t n, double *to_k, double *to_v) const {
    double *p = scratch(3, kTile * s.num_k), *d = scratch(7, kTile * s.num_k), *to_q = scratch(4, kTile * f.q.width);
    int64_t columns = f.scores(s, h, i, n, p);
    if (columns == 0) {
      std::fill_n(to_q, n * f.q.width, 0.0);
      return dq.write(s.batch, h, s.q + i, n, to_q);
    }
    Matrix gradient = up.rows_at(s.batch, h, s.q + i);
    multiply(gradient, f.v.columns_at(s.batch, kh, s.k), n, f.v.width, columns, d, false);
    std::vector<double> g(f.v.width), o(f.v.width);
    for (int64_t r = 0; r < n; r++) {
      double top, sum, dot = 0, *x = p + r * columns, *y = d + r * columns;
      load_run(f.statistic(tops, s.batch, h, s.q + i + r), tops.dtype, 1, 1, &top);
      load_run(f.statistic(sums, s.batch, h, s.q + i + r), sums.dtype, 1, 1, &sum);
      load_run(up.at(s.batch, h, s.q + i + r), up.t->dtype, up.sd, f.v.width, g.data());
      load_run(result.at(s.batch, h, s.q + i + r), result.t->dtype, result.sd, f.v.width, o.data());
      for (int64_t j = 0; j < f.v.width; j++) dot += g[j] * o[j];
      double inverse = sum > 0 ? 1 / sum : 0;
      for (int64_t j = 0; j < columns; j++) x[j] = exp_fast(x[j] - top) * inverse;
      for (int64_t j = 0; j < columns; j++) y[j] = x[j] * (y[j] - dot) * f.scale;
    }
    multiply(columns_of(p, columns), gradient, columns, n, f.v.width, to_v, true);
    multiply(rows_of(d, columns), f.k.rows_at(s.batch, kh, s.k), n, columns, f.k.width, to_q, false);
    multiply(columns_of(d, columns), f.q.rows_at(s.batch, h, s.q + i), columns, n, f.k.width, to_k, true);
    dq.write(s.batch, h, s.q + i, n, to_q);
  }
};
void backward(const Attention &f, Call &call, size_t out) {
  Gradient g{f, Heads(call.tensor(3), f.layout, f.q.heads), Heads(call.tensor(11), f.layout, f.q.heads), call.tensor(8), call.tensor(9),
             Heads(call.tensor(out), f.layout, f.q.heads), Heads(call.tensor(out + 1), f.layout, f.k.heads), Heads(call.tensor(out + 2), f.layout, f.k.heads)};
  for (int i = 0; i < 3; i++) need_shape(call.tensor(out + i), call.tensor(i).dims);
  need(call.tensor(3).dims == call.tensor(11).dims, "output " + show(call.tensor(11).dims) + " and its gradient " + show(call.tensor(3).dims) + " differ");
  need(g.up.rows == f.q.rows && g.up.batch == f.q.batch && g.up.width == f.v.width, "the gradient has shape " + show(call.tensor(3).dims));
  need_shape(g.tops, f.statistics_dims());
  need_shape(g.sums, f.statistics_dims());
  for (int i = 1; i < 3; i++) fill(call.tensor(out + i), 0);  // of keys that no query sees
  parallel((int64_t)f.segments.size() * f.k.heads, [&](int64_t task) { g.run(f.segments[task / f.k.heads], task % f.k.heads); });
}
void refuse(Call &call, std::initializer_list<size_t> absent, size_t prefix, double keep) {
  for (size_t i : absent) need(!call.has(i), "position bias, dropout and padding masks are not emulated (argument " + std::to_string(i) + ")");
  need(!call.has(prefix) || call.integers(prefix).empty(), "prefixes are not emulated");
  need(keep == 1.0, "attention with dropout is not emulated");
}
Tensor *optional(Call &call, size_t i) { return call.has(i) ? &call.tensor(i) : nullptr; }
void clear(Call &call, size_t i) { if (call.has(i)) fill(call.tensor(i), 0); }
}  // namespace

// Query, key, value, bias, dropout mask, padding mask, mask, prefix, scale, keep probability, tokens before and after,
// heads, layout, precision, sparse mode; maximum, sum, softmax (never filled by the real one either), output.
OP(FlashAttentionScore, "tttttttIddiiipiitttt") {
  refuse(call, {3, 4, 5}, 7, call.real(9));
  Attention f(call, call.text(13), call.integer(12), optional(call, 6), call.real(8), call.integer(10), call.integer(11), call.integer(15));
  need(f.layout != "TND", "layout TND has a separate operator");
  forward(f, call.tensor(16), call.tensor(17), call.tensor(19));
  clear(call, 18);
}
// As above with the ends of the documents, of queries and of keys, after the prefix.
OP(FlashAttentionVarLenScore, "tttttttIIIddiiipiitttt") {
  refuse(call, {3, 4, 5}, 7, call.real(11));
  Attention f(call, call.text(15), call.integer(14), optional(call, 6), call.real(10), call.integer(12), call.integer(13), call.integer(17));
  need(call.has(8) && call.has(9), "the ends of the documents are missing");
  f.take_documents(call.integers(8), call.integers(9));
  forward(f, call.tensor(18), call.tensor(19), call.tensor(21));
  clear(call, 20);
}
// Query, key, value, gradient, bias, dropout mask, padding mask, mask, maximum, sum, softmax, output, prefix, scale, keep
// probability, tokens before and after, heads, layout, precision, sparse mode; gradients of query, key, value and bias.
OP(FlashAttentionScoreGrad, "ttttttttttttIddiiipiitttt") {
  refuse(call, {4, 5, 6}, 12, call.real(14));
  Attention f(call, call.text(18), call.integer(17), optional(call, 7), call.real(13), call.integer(15), call.integer(16), call.integer(20));
  need(f.layout != "TND", "layout TND has a separate operator");
  backward(f, call, 21);
}
OP(FlashAttentionUnpaddingScoreGrad, "ttttttttttttIIIddiiipiitttt") {
  refuse(call, {4, 5, 6}, 12, call.real(16));
  Attention f(call, call.text(20), call.integer(19), optional(call, 7), call.real(15), call.integer(17), call.integer(18), call.integer(22));
  need(call.has(13) && call.has(14), "the ends of the documents are missing");
  f.take_documents(call.integers(13), call.integers(14));
  backward(f, call, 23);
}

}  // namespace softnpu
