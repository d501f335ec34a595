// Reference operators: softmax, norms, rotary embedding, flash attention.
#include "arrays.h"

using namespace softnpu;


static Arr softmax(Arr a, int64_t axis, bool logarithm) {
  lines(a.shape, axis, [&](int64_t b, int64_t s, int64_t n) {
    double top = -INFINITY, total = 0;
    for (int64_t j = 0; j < n; j++) top = std::max(top, a.v[b + j * s]);
    for (int64_t j = 0; j < n; j++) total += std::exp(a.v[b + j * s] - top);
    for (int64_t j = 0; j < n; j++) {
      double x = a.v[b + j * s] - top;
      a.v[b + j * s] = logarithm ? x - std::log(total) : std::exp(x) / total;
    }
  });
  return a;
}
OP(Softmax, "tit") { call.out(2, softmax(call.in(0), call.integer(1), false)); }
OP(LogSoftmax, "tit") { call.out(2, softmax(call.in(0), call.integer(1), true)); }
OP(SoftmaxBackward, "ttit") {
  Arr g = call.in(0), y = call.in(1);
  lines(g.shape, call.integer(2), [&](int64_t b, int64_t s, int64_t n) {
    double dot = 0;
    for (int64_t j = 0; j < n; j++) dot += g.v[b + j * s] * y.v[b + j * s];
    for (int64_t j = 0; j < n; j++) g.v[b + j * s] = (g.v[b + j * s] - dot) * y.v[b + j * s];
  });
  call.out(3, g);
}
OP(LogSoftmaxBackward, "ttit") {
  Arr g = call.in(0), y = call.in(1);
  lines(g.shape, call.integer(2), [&](int64_t b, int64_t s, int64_t n) {
    double total = 0;
    for (int64_t j = 0; j < n; j++) total += g.v[b + j * s];
    for (int64_t j = 0; j < n; j++) g.v[b + j * s] -= std::exp(y.v[b + j * s]) * total;
  });
  call.out(3, g);
}
OP(RmsNorm, "ttdtt") {
  Arr x = call.in(0), w = call.in(1), r;
  int64_t n = w.count();
  for (int64_t i = 0; i < x.count(); i += n) {
    double total = 0;
    for (int64_t j = 0; j < n; j++) total += x.v[i + j] * x.v[i + j];
    double k = 1 / std::sqrt(total / n + call.real(2));
    r.v.push_back(k);
    for (int64_t j = 0; j < n; j++) x.v[i + j] *= k * w.v[j];
  }
  call.out(3, x);
  call.out(4, r);
}
OP(RmsNormGrad, "tttttt") {
  Arr g = call.in(0), x = call.in(1), r = call.in(2), w = call.in(3), dx = x, dw(w.shape);
  int64_t n = w.count();
  for (int64_t i = 0, row = 0; i < x.count(); i += n, row++) {
    double k = r.v[row], dot = 0;
    for (int64_t j = 0; j < n; j++) dot += g.v[i + j] * w.v[j] * x.v[i + j];
    for (int64_t j = 0; j < n; j++) {
      dx.v[i + j] = k * (g.v[i + j] * w.v[j] - x.v[i + j] * k * k * dot / n);
      dw.v[j] += g.v[i + j] * x.v[i + j] * k;
    }
  }
  call.out(4, dx);
  call.out(5, dw);
}
OP(SwiGlu, "tit") {
  Arr x = call.in(0);
  Arr r(call.tensor(2).dims);
  int64_t axis = wrap(call.integer(1), x.rank()), half = x.shape[axis] / 2, at = 0;
  std::vector<int64_t> bases;
  lines(r.shape, axis, [&](int64_t b, int64_t s, int64_t n) { bases.push_back(b); });
  lines(x.shape, axis, [&](int64_t b, int64_t s, int64_t n) {
    for (int64_t j = 0; j < half; j++) {
      double a = x.v[b + j * s], u = x.v[b + (half + j) * s];
      r.v[bases[at] + j * s] = a / (1 + std::exp(-a)) * u;
    }
    at++;
  });
  call.out(2, r);
}
OP(SwiGluGrad, "ttit") {
  Arr g = call.in(0), x = call.in(1), dx = x;
  int64_t axis = wrap(call.integer(2), x.rank()), half = x.shape[axis] / 2, at = 0;
  std::vector<int64_t> bases;
  lines(g.shape, axis, [&](int64_t b, int64_t s, int64_t n) { bases.push_back(b); });
  lines(x.shape, axis, [&](int64_t b, int64_t s, int64_t n) {
    for (int64_t j = 0; j < half; j++) {
      double a = x.v[b + j * s], u = x.v[b + (half + j) * s], d = g.v[bases[at] + j * s], e = 1 / (1 + std::exp(-a));
      dx.v[b + j * s] = d * u * e * (1 + a * (1 - e));
      dx.v[b + (half + j) * s] = d * a * e;
    }
    at++;
  });
  call.out(3, dx);
}
// Rotary embedding. Mode 0: halves; mode 1: pairs. `back` turns the other way.
static Arr rotate(const Arr &x, const Arr &cosine, const Arr &sine, int64_t mode, bool back) {
  Arr co = expand(cosine, x.shape), si = expand(sine, x.shape), r(x.shape);
  int64_t n = x.shape.back(), h = n / 2;
  for (int64_t i = 0; i < x.count(); i += n)
    for (int64_t j = 0; j < n; j++) {
      int64_t mate = mode == 0 ? (j < h ? j + h : j - h) : (j % 2 ? j - 1 : j + 1);
      bool first = mode == 0 ? j < h : j % 2 == 0;
      if (back) r.v[i + j] = x.v[i + j] * co.v[i + j] + (first ? 1 : -1) * x.v[i + mate] * si.v[i + mate];
      else r.v[i + j] = x.v[i + j] * co.v[i + j] + (first ? -1 : 1) * x.v[i + mate] * si.v[i + j];
    }
  return r;
}
OP(RotaryPositionEmbedding, "tttit") { call.out(4, rotate(call.in(0), call.in(1), call.in(2), call.integer(3), false)); }
OP(RotaryPositionEmbeddingGrad, "ttttittt") { call.out(5, rotate(call.in(0), call.in(1), call.in(2), call.integer(4), true)); }

// Flash attention, by the book. Every layout is seen as [batch, heads, rows, width].
struct Heads {
  Arr a;
  int64_t batch, heads, rows, width, sb, sh, ss;
  Heads(Arr x, const std::string &layout, int64_t n) : a(std::move(x)) {
    auto &d = a.shape;
    if (layout == "BNSD") batch = d[0], heads = d[1], rows = d[2], width = d[3], ss = width, sh = rows * width, sb = heads * sh;
    else if (layout == "BSND") batch = d[0], rows = d[1], heads = d[2], width = d[3], sh = width, ss = heads * width, sb = rows * ss;
    else if (layout == "BSH") batch = d[0], rows = d[1], heads = n, width = d[2] / n, sh = width, ss = d[2], sb = rows * ss;
    else if (layout == "SBH") rows = d[0], batch = d[1], heads = n, width = d[2] / n, sh = width, sb = d[2], ss = batch * d[2];
    else throw Error("attention layout " + layout);
  }
  double *at(int64_t b, int64_t h, int64_t s) { return &a.v[b * sb + h * sh + s * ss]; }
};
struct Attention {
  Heads q, k, v;
  Arr mask;
  bool masked;
  double scale;
  int64_t before, after, sparse;
  bool hidden(int64_t b, int64_t h, int64_t i, int64_t j) const {
    int64_t shift = k.rows - q.rows;
    if (sparse == 2) return j > i;
    if (sparse == 3) return j > i + shift;
    if (sparse == 4) return j > i + shift + after || j < i + shift - before;
    if (!masked) return false;
    int64_t r = mask.rank(), cols = mask.shape[r - 1], rows = mask.shape[r - 2], lead = 0;
    if (r == 4) lead = (mask.shape[0] > 1 ? b * mask.shape[1] : 0) + (mask.shape[1] > 1 ? h : 0);
    if (r == 3) lead = mask.shape[0] > 1 ? b : 0;
    return mask.v[(lead * rows + i) * cols + j] != 0;
  }
  // The weights of one row.
  void row(int64_t b, int64_t h, int64_t i, std::vector<double> &p, double &top, double &total) {
    int64_t group = q.heads / k.heads;
    p.assign(k.rows, -INFINITY);
    top = -INFINITY;
    total = 0;
    const double *x = q.at(b, h, i);
    for (int64_t j = 0; j < k.rows; j++) {
      if (hidden(b, h, i, j)) continue;
      const double *y = k.at(b, h / group, j);
      double dot = 0;
      for (int64_t d = 0; d < q.width; d++) dot += x[d] * y[d];
      p[j] = dot * scale;
      top = std::max(top, p[j]);
    }
    for (auto &w : p) { w = std::isinf(w) ? 0 : std::exp(w - top); total += w; }
    if (total > 0) for (auto &w : p) w /= total;
  }
};
static int64_t heads_of_keys(const Tensor *q, const Tensor *k, int64_t n) {
  return n * k->dims.back() / q->dims.back();  // only BSH and SBH ask
}
OP(FlashAttentionScore, "tttttttIddiiipiitttt") {
  std::string layout = call.text(13);
  int64_t n = call.integer(12), kn = layout[1] == 'N' ? call.tensor(1).dims[1] : layout == "BSND" ? call.tensor(1).dims[2] : heads_of_keys(&call.tensor(0), &call.tensor(1), n);
  Attention f{Heads(call.in(0), layout, n), Heads(call.in(1), layout, kn), Heads(call.in(2), layout, kn), {}, call.has(6), call.real(8), call.integer(10), call.integer(11), call.integer(15)};
  if (f.masked) f.mask = call.in(6);
  if (call.has(3) || call.has(4)) throw Error("attention with a bias or dropout");
  Heads out(Arr(call.tensor(19).dims), layout, n);
  Arr tops(Dims{f.q.batch, n, f.q.rows, 8}), totals(tops.shape);
  std::vector<double> p;
  for (int64_t b = 0; b < f.q.batch; b++) for (int64_t h = 0; h < n; h++) for (int64_t i = 0; i < f.q.rows; i++) {
    double top, total;
    f.row(b, h, i, p, top, total);
    double *to = out.at(b, h, i);
    for (int64_t j = 0; j < f.k.rows; j++) if (p[j] != 0) {
      const double *y = f.v.at(b, h / (n / kn), j);
      for (int64_t d = 0; d < out.width; d++) to[d] += p[j] * y[d];
    }
    for (int64_t e = 0; e < 8; e++) tops.v[((b * n + h) * f.q.rows + i) * 8 + e] = top, totals.v[((b * n + h) * f.q.rows + i) * 8 + e] = total;
  }
  call.out(16, tops);
  call.out(17, totals);
  call.out(19, out.a);
}
OP(FlashAttentionScoreGrad, "ttttttttttttIddiiipiitttt") {
  std::string layout = call.text(18);
  int64_t n = call.integer(17), kn = layout[1] == 'N' ? call.tensor(1).dims[1] : layout == "BSND" ? call.tensor(1).dims[2] : heads_of_keys(&call.tensor(0), &call.tensor(1), n);
  Attention f{Heads(call.in(0), layout, n), Heads(call.in(1), layout, kn), Heads(call.in(2), layout, kn), {}, call.has(7), call.real(13), call.integer(15), call.integer(16), call.integer(20)};
  if (f.masked) f.mask = call.in(7);
  Heads g(call.in(3), layout, n), dq(Arr(f.q.a.shape), layout, n), dk(Arr(f.k.a.shape), layout, kn), dv(Arr(f.v.a.shape), layout, kn);
  std::vector<double> p, dp(f.k.rows);
  for (int64_t b = 0; b < f.q.batch; b++) for (int64_t h = 0; h < n; h++) for (int64_t i = 0; i < f.q.rows; i++) {
    double top, total, dot = 0;
    f.row(b, h, i, p, top, total);
    int64_t kh = h / (n / kn);
    const double *up = g.at(b, h, i), *x = f.q.at(b, h, i);
    for (int64_t j = 0; j < f.k.rows; j++) {
      dp[j] = 0;
      if (p[j] == 0) continue;
      const double *y = f.v.at(b, kh, j);
      double *to = dv.at(b, kh, j);
      for (int64_t d = 0; d < g.width; d++) dp[j] += up[d] * y[d], to[d] += p[j] * up[d];
      dot += dp[j] * p[j];
    }
    double *mine = dq.at(b, h, i);
    for (int64_t j = 0; j < f.k.rows; j++) if (p[j] != 0) {
      double ds = p[j] * (dp[j] - dot) * f.scale;
      const double *y = f.k.at(b, kh, j);
      double *to = dk.at(b, kh, j);
      for (int64_t d = 0; d < f.q.width; d++) mine[d] += ds * y[d], to[d] += ds * x[d];
    }
  }
  call.out(21, dq.a);
  call.out(22, dk.a);
  call.out(23, dv.a);
}
