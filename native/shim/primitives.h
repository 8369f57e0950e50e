// The kernels as operations of MLX's graph. All of them compute in float32 and run on the CPU.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "mlx/array.h"
#include "arena.h"
#include "block.h"

namespace osaurus::shim {

namespace mx = mlx::core;

// One or several quantised matrices of the same shape, packed behind each other.
struct PackedWeights {
    Weights shape;
    size_t matrices;
    mx::array packed;  // bytes, in memory aligned for the kernels

    Matrix first(const mx::array& bytes) const { return {shape, bytes.data<uint8_t>(), nullptr}; }
};

// Pack what mx.quantize made, in the affine mode; [rows, …] or [matrices, rows, …]. Computes at once.
// Raises std::invalid_argument where the shapes do not fit together or the kernels have no such format.
PackedWeights pack(const mx::array& values, const mx::array& scales, const mx::array& biases, int bits, int group,
                   Arena& arena);

// x @ weights^T (+ bias), for several weights of as many columns; x: [..., columns].
std::vector<mx::array> matmul(const mx::array& x, const std::vector<std::shared_ptr<PackedWeights>>& weights,
                              const std::vector<std::optional<mx::array>>& biases);
// gate(x @ a^T + bias) * (x @ b^T + bias)
mx::array gated_matmul(const mx::array& x, const std::shared_ptr<PackedWeights>& a,
                       const std::shared_ptr<PackedWeights>& b, const std::string& gate,
                       const std::optional<mx::array>& a_bias, const std::optional<mx::array>& b_bias);
// As mx.gather_qmm with rhs_indices: x [..., m, columns] against matrices[indices], whose shape goes with x's leading
// dimensions by broadcasting; the result has the shape [..., m, rows].
mx::array gather_matmul(const mx::array& x, const std::shared_ptr<PackedWeights>& weights, const mx::array& indices);
// The rows of the matrix that `indices` name, as float32: indices.shape + [columns].
mx::array rows_of(const std::shared_ptr<PackedWeights>& weights, const mx::array& indices);

mx::array rms_norm(const mx::array& x, const std::optional<mx::array>& weight, float epsilon);
mx::array glu(const mx::array& x, const mx::array& y, const std::string& gate);
mx::array log_sum_exp(const mx::array& x);  // over the last axis
mx::array argmax(const mx::array& x);       // over the last axis
// Of logits [rows, vocabulary] divided by the temperatures [rows]: the `count` greatest of each row in any order, which
// they are, and the logarithm of the sum of all exponentials; [rows, count] twice, and [rows].
std::vector<mx::array> candidates(const mx::array& logits, const mx::array& temperatures, int count);

// What Python holds of them. A graph keeps the angles themselves, never something of Python's: it is let go of on a
// stream's thread, which must not wait for the interpreter while that waits for the stream.
struct Rotation {
    // `frequencies`: the angle that each pair is turned by with every position, [width / 2]. Pairs are neighbours, or
    // else half of the width apart.
    Rotation(std::vector<double> frequencies, bool neighbours);

    std::shared_ptr<Angles> angles;
    size_t width;
    bool neighbours;
};

// x: [batch, heads, length, width]; positions begin at `offset`, or for each row at those of `offsets`.
mx::array rotate(const Rotation& rotation, const mx::array& x, int offset, const std::optional<mx::array>& offsets);

// As mx.fast.scaled_dot_product_attention; queries float32, keys and values both float32 or float16. `mask`: bool or
// float32, of a shape that broadcasts to [batch, heads, queries, keys]. `window` only with `causal`; 0 for none.
mx::array attention(const mx::array& queries, const mx::array& keys, const mx::array& values, float scale, bool causal,
                    int window, const std::optional<mx::array>& mask, const std::optional<mx::array>& sinks);

// What each row [heads, room, width] of float16 keys or values has before place `end`, moved so many places on: in its
// very memory, if nobody else needs it as it was. What stands in the places that become free is not said.
mx::array push(const mx::array& kept, const std::vector<int>& places, int end);

// Compute with the kernels of this name; an empty one stands for the best. Raises std::invalid_argument where they
// cannot run here.
void use(const std::string& name);
const Kernels& kernels();

}  // namespace osaurus::shim
