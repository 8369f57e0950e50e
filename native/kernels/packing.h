// Weights as MLX stores them, and as the kernels read them.
//
// MLX: each row is a stream of `bits` wide numbers, lowest bits first, with a scale and a bias for each group.
// Packed: tiles of sixteen rows (the last filled up with zeros), and in a tile one group behind the other:
//
//     quantised values   64 bytes for each four columns (eight bits) or eight columns (four bits); byte 4 * row + j is
//                        column j of the row, in four bits with column j + 4 in its upper half
//     scales             [16], in the type that they have in the file
//     biases             [16], unless the weights are symmetric
//
// so that a tile is read from one end to the other, once, and takes what its quantised rows take. Two, three, five and
// six bits become four and eight, with the same values.
#pragma once

#include "kernels.h"

namespace osaurus {

// `values` [rows][columns * bits / 32], `scales` and `biases` [rows][columns / group] in the type of `weights.scale`.
// `bits` is that of `values`; `weights.bits` the packed one, not below it.
void pack(const Weights& weights, int bits, const uint32_t* values, const void* scales, const void* biases,
          uint8_t* packed);

// Whether all biases are what symmetric weights of so many bits would have; there are `count` of them.
bool are_symmetric(int bits, Scale scale, const void* scales, const void* biases, size_t count);

// A row as float32 numbers, [columns].
void unpack_row(const Weights& weights, const uint8_t* packed, size_t row, float* out);

}  // namespace osaurus
