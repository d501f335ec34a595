// Packed, register-blocked matrix product in double: 4 × 12 accumulators of the compiler's vectors.
#include "gemm.h"
#include <cstdlib>
#include <exception>
#include <thread>
#ifdef __FMA__
#include <immintrin.h>
#endif

namespace softnpu {

namespace {
typedef double Vec __attribute__((vector_size(32)));
typedef double Loose __attribute__((vector_size(32), aligned(8), may_alias));  // in memory, on any address
// Twice as fast fused. The difference is one of the last bit of a double, far below what the results are rounded to.
#ifdef __FMA__
inline Vec multiply_add(Vec x, Vec y, Vec z) { return (Vec)_mm256_fmadd_pd((__m256d)x, (__m256d)y, (__m256d)z); }
#else
inline Vec multiply_add(Vec x, Vec y, Vec z) { return x * y + z; }
#endif
constexpr int64_t kRows = 4, kVecs = 3, kCols = kVecs * 4;
constexpr int64_t kDeep = 256, kTall = 96, kWide = 384;  // a packed piece of `a` fits L2, a panel of `b` L1

// Copies rows × depth of `a` into panels of kRows rows, row index fastest; rows that do not exist are 0.
void pack(const Matrix &a, int64_t row, int64_t rows, int64_t deep, int64_t depth, int64_t panel, double *to) {
  size_t bytes = item_bytes(a.dtype);
  double line[kDeep];
  for (int64_t r = 0; r < rows; r += panel) {
    int64_t here = std::min(panel, rows - r);
    const char *p = a.data + ((row + r) * a.row + deep * a.col) * (int64_t)bytes;
    if (a.row == 1 || (a.col != 1 && here == panel)) {  // rows lie side by side: one short run for each depth
      for (int64_t k = 0; k < depth; k++, p += a.col * (int64_t)bytes) {
        load_run(p, a.dtype, a.row, here, to + k * panel);
        for (int64_t i = here; i < panel; i++) to[k * panel + i] = 0;
      }
    } else {
      for (int64_t i = 0; i < panel; i++) {
        if (i < here) load_run(p + i * a.row * (int64_t)bytes, a.dtype, a.col, depth, line);
        else std::fill_n(line, depth, 0.0);
        for (int64_t k = 0; k < depth; k++) to[k * panel + i] = line[k];
      }
    }
    to += panel * depth;
  }
}
// c[kRows, kCols] += panels of a and b. The sums stay in registers: 12 of the 16 that AVX2 has.
void multiply_panels(const double *a, const double *b, int64_t depth, double *c, int64_t stride) {
  Vec sum[kRows][kVecs] = {};
  for (int64_t k = 0; k < depth; k++, a += kRows, b += kCols) {
    Vec y0 = *(const Loose *)b, y1 = *(const Loose *)(b + 4), y2 = *(const Loose *)(b + 8);
#pragma GCC unroll 4
    for (int64_t i = 0; i < kRows; i++) {
      Vec x = {a[i], a[i], a[i], a[i]};
      sum[i][0] = multiply_add(x, y0, sum[i][0]);
      sum[i][1] = multiply_add(x, y1, sum[i][1]);
      sum[i][2] = multiply_add(x, y2, sum[i][2]);
    }
  }
#pragma GCC unroll 4
  for (int64_t i = 0; i < kRows; i++)
#pragma GCC unroll 3
    for (int64_t j = 0; j < kVecs; j++) {
      Loose *to = (Loose *)(c + i * stride + j * 4);
      *to = *to + sum[i][j];
    }
}
int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Rows [first, last) of the product.
void multiply_rows(const Matrix &a, const Matrix &b, int64_t first, int64_t last, int64_t k, int64_t n, const Finish &finish) {
  Matrix across{b.data, b.dtype, b.col, b.row};  // columns of b are packed as rows of its transpose
  int64_t wide = std::min(kWide, round_up(n, kCols)), num_deep = std::max<int64_t>(1, (k + kDeep - 1) / kDeep);
  double *packed_b = scratch(0, wide * num_deep * kDeep), *packed_a = scratch(1, kTall * kDeep), *c = scratch(2, kTall * wide);
  for (int64_t j = 0; j < n; j += wide) {
    int64_t cols = std::min(wide, n - j), padded = round_up(cols, kCols);
    for (int64_t p = 0; p < k; p += kDeep) pack(across, j, cols, p, std::min(kDeep, k - p), kCols, packed_b + p * wide);
    for (int64_t i = first; i < last; i += kTall) {
      int64_t rows = std::min(kTall, last - i);
      std::fill_n(c, round_up(rows, kRows) * wide, 0.0);
      for (int64_t p = 0; p < k; p += kDeep) {
        int64_t depth = std::min(kDeep, k - p);
        pack(a, i, rows, p, depth, kRows, packed_a);
        for (int64_t y = 0; y < padded; y += kCols)
          for (int64_t x = 0; x < rows; x += kRows)
            multiply_panels(packed_a + x * depth, packed_b + p * wide + y * depth, depth, c + x * wide + y, wide);
      }
      finish(i, j, rows, cols, c, wide);
    }
  }
}
}  // namespace

int num_threads() {
  static const int n = [] {
    const char *given = getenv("SOFTNPU_THREADS");
    int wanted = given ? atoi(given) : (int)std::min(2u, std::thread::hardware_concurrency());
    return std::max(1, std::min(wanted, 64));
  }();
  return n;
}
static thread_local bool t_inside = false;
void parallel(int64_t n, const std::function<void(int64_t)> &f) {
  int64_t parts = std::min<int64_t>(num_threads(), n);
  std::exception_ptr errors[64];
  auto work = [&](int64_t part) {
    bool outer = t_inside;
    t_inside = parts > 1;
    try {
      for (int64_t i = part * n / parts; i < (part + 1) * n / parts; i++) f(i);
    } catch (...) { errors[part] = std::current_exception(); }
    t_inside = outer;
  };
  std::vector<std::thread> helpers;
  for (int64_t part = 1; part < parts; part++) helpers.emplace_back(work, part);
  if (parts > 0) work(0);
  for (auto &t : helpers) t.join();
  for (auto &e : errors) if (e) std::rethrow_exception(e);
}
void multiply(const Matrix &a, const Matrix &b, int64_t m, int64_t k, int64_t n, const Finish &finish) {
  int64_t parts = t_inside ? 1 : std::min<int64_t>(num_threads(), m / kRows);
  if (parts < 2 || (double)m * (double)k * (double)n < 4e6) return multiply_rows(a, b, 0, m, k, n, finish);
  int64_t each = round_up((m + parts - 1) / parts, kRows);
  std::vector<std::thread> helpers;
  for (int64_t from = each; from < m; from += each)
    helpers.emplace_back([&, from] { multiply_rows(a, b, from, std::min(m, from + each), k, n, finish); });
  multiply_rows(a, b, 0, std::min(m, each), k, n, finish);
  for (auto &t : helpers) t.join();
}
void multiply(const Matrix &a, const Matrix &b, int64_t m, int64_t k, int64_t n, double *c, bool add) {
  multiply(a, b, m, k, n, [=](int64_t i, int64_t j, int64_t rows, int64_t cols, double *piece, int64_t stride) {
    for (int64_t r = 0; r < rows; r++) {
      double *to = c + (i + r) * n + j;
      const double *from = piece + r * stride;
      if (add) for (int64_t q = 0; q < cols; q++) to[q] += from[q];
      else std::copy_n(from, cols, to);
    }
  });
}

}  // namespace softnpu
