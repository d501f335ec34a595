// Matrix product in double of operands of any dtype and strides.
#pragma once
#include <functional>
#include "arrays.h"

namespace softnpu {

// rows × cols elements at `data`, `row` and `col` elements apart; F64 for arrays of double.
struct Matrix {
  const char *data;
  int dtype;
  int64_t row, col;
};
inline Matrix rows_of(const double *p, int64_t width) { return {(const char *)p, F64, width, 1}; }
inline Matrix columns_of(const double *p, int64_t width) { return {(const char *)p, F64, 1, width}; }

// Takes a finished piece of the product: `rows` × `cols` doubles, rows `stride` apart, from (i, j) on.
typedef std::function<void(int64_t i, int64_t j, int64_t rows, int64_t cols, double *piece, int64_t stride)> Finish;

// Computes a[m, k] · b[k, n]. Every element is summed in the order of k, so the result depends neither on the number of
// threads nor on the other rows and columns. `finish` may run on two threads, for different pieces.
void multiply(const Matrix &a, const Matrix &b, int64_t m, int64_t k, int64_t n, const Finish &finish);
// c = product, or c += product, with rows of `n` doubles.
void multiply(const Matrix &a, const Matrix &b, int64_t m, int64_t k, int64_t n, double *c, bool add);
// Calls f(0), …, f(n - 1), which write different places, on num_threads() threads; products inside stay on their thread.
void parallel(int64_t n, const std::function<void(int64_t)> &f);
// Threads that share large products: SOFTNPU_THREADS, else 2 where the machine has as many.
int num_threads();

}  // namespace softnpu
