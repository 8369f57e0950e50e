// A layer of the kind that most models have, in three steps.
//
// The difficulty is that a pass with one row is over in a few milliseconds, and MLX's graph of it has some eight hundred
// operations of a few microseconds each: to make and to hand out these took longer than to compute them. So what lies
// between two layers is done at once, by the same kernels in the same order: the results are those of the operations
// one by one. It is cut where keys and values are kept, since nothing more is asked of the last layer of a prompt that
// is read in pieces, and since MLX lets an operation write to what it was given only if that has a single result.
#pragma once

#include "angles.h"
#include "operations.h"

namespace osaurus {

// x + attention(norm(x)), then x + down(gate(norm(x)) * up(norm(x))). Columns of `queries`, `keys` and `values` are x's;
// their rows are heads of `width` behind each other.
struct Block {
    size_t heads, kv_heads, width;
    Norm before_attention, before_network;
    Norm query_norm, key_norm;  // of each head, where they have a weight
    size_t turned;  // how much of a head's width is rotated
    bool neighbours;
    float scale;
    Matrix queries, keys, values, output;
    Gate kind;
    Matrix gate, up, down;

    size_t size() const { return queries.weights.columns; }
    // Queries, keys and values of one row of x, behind each other.
    size_t projected() const { return (heads + 2 * kv_heads) * width; }
};

// Heads of a layer's keys or values as float16, [batch][kv_heads][places][width]; the innermost dimension is contiguous.
struct Kept {
    uint16_t* heads;
    size_t strides[3];
};

// The queries, keys and values of x [rows][size], with their positions' angles, one of each for each row.
void project(const Kernels& kernels, Pool& pool, const Block& block, const float* x, size_t rows,
             const std::vector<const float*>& angles, float* projected);

// Keep heads: `from` points to those of the first row, of [batch][length] rows that are `stride` apart. They are put into
// the places from `first` on.
void keep(const Kernels& kernels, const Block& block, const float* from, size_t stride, size_t batch, size_t length,
          const Kept& kept, size_t first);

// The rest: `attention` has its queries, keys, values and mask, `out` is [batch][length][size].
void finish(const Kernels& kernels, Pool& pool, const Block& block, Attention attention, const float* x, float* out);

}  // namespace osaurus
