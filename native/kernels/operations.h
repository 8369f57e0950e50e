// Whole operations: what the kernels do, shared among the threads of the pool.
#pragma once

#include <vector>

#include "kernels.h"
#include "pool.h"

namespace osaurus {

// A matrix to multiply with. `bias` may be null.
struct Matrix {
    Weights weights;
    const uint8_t* packed = nullptr;
    const float* bias = nullptr;
};

// One result of `matmul`: rows of `out`, and of what is added to it (which may be null), are `stride` apart.
struct Product {
    Matrix matrix;
    float* out = nullptr;
    size_t stride = 0;
    const float* added = nullptr;
};

// How rows are normalised: x / sqrt(mean(x * x) + epsilon) * weight.
struct Norm {
    const float* weight = nullptr;
    float epsilon = 0;
};

// out = norm(x) @ matrix^T + bias + added for several matrices of as many columns. x: [rows][columns], rows `stride`
// apart. There need not be a `norm`.
void matmul(const Kernels& kernels, Pool& pool, const float* x, size_t rows, size_t stride,
            const std::vector<Product>& products, const Norm* norm = nullptr);

// out = gate(norm(x) @ a^T) * (norm(x) @ b^T); a and b have the same shape.
void gated_matmul(const Kernels& kernels, Pool& pool, Gate gate, const float* x, size_t rows, size_t stride,
                  const Matrix& a, const Matrix& b, float* out, const Norm* norm = nullptr);

// out[n] = x[sources[n]] @ matrices[experts[n]]^T for count rows. The experts' weights are packed behind each other.
// Out of range in `experts` gives rows that are not a number.
void gather_matmul(const Kernels& kernels, Pool& pool, const float* x, size_t stride, const uint32_t* sources,
                   const uint32_t* experts, size_t count, const Matrix& first, size_t matrices, float* out);

// The `count` greatest of `width` numbers, in any order, and where they are. What is no number counts as the greatest.
void greatest(const Kernels& kernels, const float* x, size_t width, size_t count, float* values, uint32_t* places);

void attention(const Kernels& kernels, Pool& pool, const Attention& attention);

}  // namespace osaurus
