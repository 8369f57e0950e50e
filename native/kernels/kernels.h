// What the kernels are to the rest: packed weights, and a table of functions for each instruction set.
//
// Nothing here knows MLX. All numbers are float32 unless a name says otherwise; strides count elements, not bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace osaurus {

// Output rows of a matrix that are stored, and computed, side by side.
inline constexpr size_t TILE = 16;
// Activations share a scale in blocks of so many; weights in groups of a multiple of it.
inline constexpr size_t BLOCK = 32;
// The most rows of activations that are multiplied at a time.
inline constexpr size_t MOST_PANEL_ROWS = 8;

enum class Scale : uint8_t { float16, bfloat16, float32 };

// A quantised matrix of `rows` by `columns`, as packing.h lays it out; `bits` is 4 or 8.
struct Weights {
    size_t rows = 0;
    size_t columns = 0;
    int bits = 4;
    size_t group = BLOCK;
    Scale scale = Scale::float16;
    // Whether every weight is scale * (q - 2^(bits - 1)): then there are no biases.
    bool symmetric = false;

    size_t scale_bytes() const { return scale == Scale::float32 ? 4 : 2; }
    size_t group_bytes() const { return TILE * (group * bits / 8 + (symmetric ? 1 : 2) * scale_bytes()); }
    size_t tiles() const { return (rows + TILE - 1) / TILE; }
    size_t tile_bytes() const { return columns / group * group_bytes(); }
    size_t bytes() const { return tiles() * tile_bytes(); }
};

// The queries of one call of `attend`, and the numbers that these, padded to whole vectors of TILE, may be.
inline constexpr size_t MOST_QUERIES = 96;
inline constexpr size_t QUERY_FLOATS = 8192;

// Rows of activations, quantised to eight bits and interleaved: `values` [columns / 4][rows][4], `blocks`
// [columns / BLOCK][rows].
struct Panel {
    // What a block has in common.
    struct Block {
        float scale;
        float shift;  // the scale times the sum
        int32_t sum;  // of the quantised values
    };

    size_t rows = 0;
    int8_t* values = nullptr;
    Block* blocks = nullptr;
};

enum class Gate : uint8_t { silu, gelu };

enum class Masking : uint8_t { none, causal, boolean, additive };

// One scaled dot product attention. Queries and output: [batch][heads][queries][width]; keys and values:
// [batch][kv_heads][keys][width], the width of values may differ. Innermost dimensions are contiguous, others strided.
struct Attention {
    size_t batch, heads, kv_heads, queries, keys, width, value_width;
    const float* query;
    size_t query_strides[3];
    bool half;  // whether keys and values are float16
    const void* key;
    size_t key_strides[3];
    const void* value;
    size_t value_strides[3];
    float* out;
    size_t out_strides[3];
    float scale;
    Masking masking;
    const void* mask;  // bytes where boolean, floats where additive, to be added to the scores
    size_t mask_strides[4];
    size_t window;       // how many keys a query sees, itself included; 0 for all; causal masking only
    const float* sinks;  // a logit for each head that takes probability and gives nothing; may be null
};

// The kernels for one instruction set. All may be called by several threads at a time.
struct Kernels {
    const char* name;
    // How many rows the widest panel has.
    size_t panel_rows;
    // How many queries lie side by side where there are many.
    size_t lanes;

    // Quantise `panel.rows` rows of activations into a panel. A row with a value that is not finite gets scales that
    // are not a number in that block, so that everything computed from it is none either.
    void (*quantise)(const float* const* rows, size_t columns, const Panel& panel);
    // Multiply a panel with one tile of weights: out [panel.rows][TILE].
    void (*multiply)(const Weights& weights, const uint8_t* tile, const Panel& panel, float* out);
    // out = gate(x) * y
    void (*glu)(Gate gate, const float* x, const float* y, float* out, size_t count);
    // out = x / sqrt(mean(x * x) + epsilon) * weight; `weight` may be null.
    void (*rms_norm)(const float* x, const float* weight, float epsilon, float* out, size_t count);
    // Rotate the first `width` elements of x by the angles of `cosines` and `sines`, [width / 2] each; copy the others.
    // Pairs are neighbours where `neighbours`, else half of `width` apart.
    void (*rotate)(const float* x, const float* cosines, const float* sines, bool neighbours, size_t width, size_t whole,
                   float* out);
    // As float16, to the nearest.
    void (*narrow)(const float* x, uint16_t* out, size_t count);
    // Attention for the queries [begin, end) of the heads [head, head + count), which share their keys and values; no
    // more of them than MOST_QUERIES and QUERY_FLOATS allow.
    void (*attend)(const Attention& attention, size_t row, size_t head, size_t count, size_t begin, size_t end);
    // The logarithm of the sum of exponentials.
    float (*log_sum_exp)(const float* x, size_t count);
    // The greatest of each `block` numbers, the last block being shorter; what is no number counts as plus infinity.
    void (*block_maxima)(const float* x, size_t count, size_t block, float* maxima);
    // x / divisor
    void (*divide)(const float* x, float divisor, float* out, size_t count);
    // The first of the greatest; where there are numbers that are none, the first of them, as in NumPy.
    size_t (*argmax)(const float* x, size_t count);
};

// The kernels by name ("portable", "avx2", "avx512", "avx512vnni", "neon"); null where this processor cannot run them,
// or they were not built.
const Kernels* find(const char* name);
// The best that this processor can run, or what the environment's OSAURUS_CPU_KERNELS names. Null if that cannot run.
const Kernels* best();
// The names of all that can run here, best first; ends with null.
const char* const* names();

}  // namespace osaurus
