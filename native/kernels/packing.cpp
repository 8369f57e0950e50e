#include "packing.h"

#include <cmath>
#include <cstring>

namespace osaurus {
namespace {

unsigned value_at(const uint32_t* row, int bits, size_t column) {
    const size_t first = column * bits, word = first / 32, shift = first % 32;
    uint64_t window = row[word];
    if (shift + bits > 32) window |= (uint64_t)row[word + 1] << 32;
    return (window >> shift) & ((1u << bits) - 1);
}

float float_of(const uint8_t* at, Scale scale) {
    if (scale == Scale::float32) {
        float value;
        std::memcpy(&value, at, sizeof value);
        return value;
    }
    uint16_t half;
    std::memcpy(&half, at, sizeof half);
    if (scale == Scale::bfloat16) {
        const uint32_t bits = (uint32_t)half << 16;
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const float sign = half >> 15 ? -1.0f : 1.0f;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    return sign * (exponent ? std::ldexp((float)(fraction | 1024), exponent - 25) : std::ldexp((float)fraction, -24));
}

}  // namespace

void pack(const Weights& weights, int bits, const uint32_t* values, const void* scales, const void* biases,
          uint8_t* packed) {
    const size_t words = weights.columns * bits / 32, groups = weights.columns / weights.group;
    const size_t size = weights.scale_bytes(), chunk = weights.bits == 4 ? 8 : 4;
    std::memset(packed, 0, weights.bytes());
    for (size_t row = 0; row < weights.rows; row++) {
        const size_t lane = row % TILE;
        uint8_t* at = packed + row / TILE * weights.tile_bytes();
        for (size_t group = 0; group < groups; group++) {
            for (size_t column = group * weights.group; column < (group + 1) * weights.group; column += chunk) {
                for (size_t j = 0; j < 4; j++) {
                    unsigned value = value_at(values + row * words, bits, column + j);
                    if (chunk == 8) value |= value_at(values + row * words, bits, column + j + 4) << 4;
                    at[4 * lane + j] = (uint8_t)value;
                }
                at += 4 * TILE;
            }
            const size_t own = (row * groups + group) * size;
            std::memcpy(at + lane * size, (const uint8_t*)scales + own, size);
            at += TILE * size;
            if (weights.symmetric) continue;
            std::memcpy(at + lane * size, (const uint8_t*)biases + own, size);
            at += TILE * size;
        }
    }
}

bool are_symmetric(int bits, Scale scale, const void* scales, const void* biases, size_t count) {
    const size_t size = scale == Scale::float32 ? 4 : 2;
    const float middle = (float)(1 << (bits - 1));
    for (size_t n = 0; n < count; n++) {
        const size_t at = n * size;
        if (!(float_of((const uint8_t*)biases + at, scale) == -middle * float_of((const uint8_t*)scales + at, scale))) return false;
    }
    return true;
}

void unpack_row(const Weights& weights, const uint8_t* packed, size_t row, float* out) {
    const size_t size = weights.scale_bytes(), chunk = weights.bits == 4 ? 8 : 4, lane = row % TILE;
    const uint8_t* at = packed + row / TILE * weights.tile_bytes();
    for (size_t group = 0; group < weights.columns / weights.group; group++) {
        const uint8_t* scales = at + weights.group / chunk * 4 * TILE;
        const float scale = float_of(scales + lane * size, weights.scale);
        const float bias = weights.symmetric ? -scale * (float)(1 << (weights.bits - 1))
                                             : float_of(scales + (TILE + lane) * size, weights.scale);
        for (size_t column = 0; column < weights.group; column += chunk, at += 4 * TILE) {
            for (size_t j = 0; j < 4; j++) {
                const uint8_t byte = at[4 * lane + j];
                out[column + j] = scale * (float)(chunk == 8 ? byte & 15 : byte) + bias;
                if (chunk == 8) out[column + j + 4] = scale * (float)(byte >> 4) + bias;
            }
        }
        out += weights.group;
        at += (weights.symmetric ? 1 : 2) * TILE * size;
    }
}

}  // namespace osaurus
