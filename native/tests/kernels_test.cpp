// The kernels against float64, without MLX, for every instruction set that this processor has; what `make test-native`
// runs under the address, undefined-behaviour and thread sanitizers. Ends with status 1 where something is wrong.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "arena.h"
#include "block.h"
#include "packing.h"

using namespace osaurus;

namespace {

std::atomic<int> failures{0};

void check(bool condition, const char* kernels, const char* what, double found = 0) {
    if (condition) return;
    failures++;
    std::printf("%s: %s (%g)\n", kernels, what, found);
}

struct Random {
    std::mt19937 engine;
    explicit Random(unsigned seed) : engine(seed) {}
    size_t below(size_t end) { return engine() % end; }
    float number() { return std::normal_distribution<float>()(engine); }
    std::vector<float> numbers(size_t count) {
        std::vector<float> all(count);
        for (float& one : all) one = number();
        return all;
    }
};

// A quantised matrix, what it stands for in float64, and its packed form at an aligned place.
struct Quantised {
    Weights weights;
    std::vector<double> dense;
    std::vector<uint8_t> memory;

    const uint8_t* packed() const { return (const uint8_t*)(((uintptr_t)memory.data() + 63) & ~(uintptr_t)63); }
    Matrix matrix(const float* bias = nullptr) const { return {weights, packed(), bias}; }

    Quantised(Random& random, size_t rows, size_t columns, int bits, size_t group, Scale scale, size_t matrices = 1) {
        weights = {rows, columns, bits <= 4 ? 4 : 8, group, scale, bits % 4 == 0 && random.below(2) == 0};
        memory.resize(matrices * weights.bytes() + 64);
        for (size_t matrix = 0; matrix < matrices; matrix++) add(random, bits, matrix);
    }

    void add(Random& random, int bits, size_t matrix) {
        const size_t groups = weights.columns / weights.group;
        std::vector<uint32_t> values(weights.rows * weights.columns * bits / 32);
        for (uint32_t& word : values) word = random.engine();
        std::vector<uint8_t> scales, biases;
        std::vector<double> numbers[2];
        for (size_t n = 0; n < weights.rows * groups; n++) {
            // Few enough digits for every type.
            const float own = (float)(1 + random.below(7)) / 64, bias = (float)random.below(15) / 8 - 1;
            const float parts[2] = {own, weights.symmetric ? -own * (float)(1 << (bits - 1)) : bias};
            for (int part = 0; part < 2; part++) {
                std::vector<uint8_t>& to = part ? biases : scales;
                uint32_t word;
                std::memcpy(&word, &parts[part], 4);
                if (weights.scale == Scale::bfloat16) word >>= 16;
                if (weights.scale == Scale::float16)
                    word = word == 0 ? 0 : (word >> 16 & 0x8000) | ((word >> 23 & 255) - 112) << 10 | (word >> 13 & 1023);
                for (size_t byte = 0; byte < weights.scale_bytes(); byte++) to.push_back(word >> 8 * byte & 255);
                numbers[part].push_back(parts[part]);
            }
        }
        for (size_t row = 0; row < weights.rows; row++) {
            for (size_t column = 0; column < weights.columns; column++) {
                const size_t bit = column * bits, at = row * weights.columns * bits / 32 + bit / 32;
                uint64_t window = values[at];
                if (bit % 32 + bits > 32) window |= (uint64_t)values[at + 1] << 32;
                const unsigned value = window >> bit % 32 & ((1u << bits) - 1);
                const size_t own = row * groups + column / weights.group;
                dense.push_back(numbers[0][own] * value + numbers[1][own]);
            }
        }
        const size_t count = weights.rows * groups;
        const bool symmetric = are_symmetric(bits, weights.scale, scales.data(), biases.data(), count);
        check(symmetric || !weights.symmetric, "packing", "symmetric weights are told");
        biases.back() ^= 1;
        check(!are_symmetric(bits, weights.scale, scales.data(), biases.data(), count), "packing", "one bias that differs");
        biases.back() ^= 1;
        pack(weights, bits, values.data(), scales.data(), biases.data(), (uint8_t*)packed() + matrix * weights.bytes());
    }
};

// What a product may be off by: activations are rounded to 1/127 of the greatest of their block.
double allowance(const float* x, const double* row, size_t columns) {
    double total = 1e-5;
    for (size_t block = 0; block < columns; block += BLOCK) {
        double most = 0, weight = 0;
        for (size_t n = block; n < block + BLOCK; n++) most = std::fmax(most, std::fabs(x[n])), weight += std::fabs(row[n]);
        total += weight * most / 127 * 0.51;
    }
    return total;
}

void products_are_right(const Kernels& kernels, Pool& pool, Random& random) {
    const int all_bits[] = {2, 3, 4, 5, 6, 8};
    for (int round = 0; round < 40; round++) {
        const size_t group = 32u << random.below(3), columns = group * (1 + random.below(4)), rows = 1 + random.below(70);
        const size_t count = 1 + random.below(20), stride = columns + random.below(3);
        const Quantised a(random, rows, columns, all_bits[random.below(6)], group, (Scale)random.below(3));
        const Quantised b(random, rows, columns, all_bits[random.below(6)], group, (Scale)random.below(3));
        std::vector<float> x = random.numbers(count * stride), bias = random.numbers(rows), out(count * rows), other(count * rows);
        matmul(kernels, pool, x.data(), count, stride, {{a.matrix(bias.data()), out.data(), rows}, {b.matrix(), other.data(), rows}});
        std::vector<float> gated(count * rows), plain(count * rows);
        for (size_t n = 0; n < count * rows; n++) plain[n] = out[n] - bias[n % rows];
        gated_matmul(kernels, pool, Gate::silu, x.data(), count, stride, a.matrix(), b.matrix(), gated.data());
        for (size_t n = 0; n < count; n++) {
            for (size_t row = 0; row < rows; row++) {
                double expected = bias[row];
                for (size_t k = 0; k < columns; k++) expected += (double)x[n * stride + k] * a.dense[row * columns + k];
                const double off = std::fabs(out[n * rows + row] - expected);
                check(off <= allowance(&x[n * stride], &a.dense[row * columns], columns), kernels.name, "a product", off);
                const double first = plain[n * rows + row];
                const double gate = first / (1 + std::exp(-first)) * other[n * rows + row];
                check(std::fabs(gated[n * rows + row] - gate) <= 1e-3 + 1e-4 * std::fabs(gate), kernels.name, "a gated product");
            }
            std::vector<float> alone(rows);
            matmul(kernels, pool, &x[n * stride], 1, stride, {{a.matrix(bias.data()), alone.data(), rows}});
            check(!std::memcmp(alone.data(), &out[n * rows], rows * sizeof(float)), kernels.name, "a row alone differs");
        }
        std::vector<float> unpacked(columns);
        const size_t row = random.below(rows);
        unpack_row(a.weights, a.packed(), row, unpacked.data());
        for (size_t k = 0; k < columns; k++)
            check(std::fabs(unpacked[k] - a.dense[row * columns + k]) < 1e-5, kernels.name, "an unpacked row");
        x[random.below(columns)] = round % 2 ? NAN : INFINITY;
        matmul(kernels, pool, x.data(), count, stride, {{a.matrix(), out.data(), rows}});
        for (size_t n = 0; n < count * rows; n++)
            check(std::isnan(out[n]) == (n < rows), kernels.name, "what is not finite must stay in its row, and in sight");
    }
}

void gathered_products_are_right(const Kernels& kernels, Pool& pool, Random& random) {
    for (int round = 0; round < 10; round++) {
        const size_t columns = 64, rows = 1 + random.below(40), matrices = 1 + random.below(5), count = 1 + random.below(30);
        const Quantised experts(random, rows, columns, round % 2 ? 4 : 8, 32, Scale::float16, matrices);
        const std::vector<float> x = random.numbers(7 * columns);
        std::vector<uint32_t> sources(count), chosen(count);
        for (size_t n = 0; n < count; n++) sources[n] = random.below(7), chosen[n] = random.below(matrices + 1);
        std::vector<float> out(count * rows);
        gather_matmul(kernels, pool, x.data(), columns, sources.data(), chosen.data(), count, experts.matrix(), matrices, out.data());
        for (size_t n = 0; n < count; n++) {
            std::vector<float> alone(rows, NAN);
            Matrix one = experts.matrix();
            one.packed += chosen[n] * experts.weights.bytes();
            if (chosen[n] < matrices) matmul(kernels, pool, &x[sources[n] * columns], 1, columns, {{one, alone.data(), rows}});
            for (size_t row = 0; row < rows; row++)
                check(alone[row] == out[n * rows + row] || (chosen[n] == matrices && std::isnan(out[n * rows + row])),
                      kernels.name, "a gathered product");
        }
    }
}

uint16_t half_of(float value) {
    // Of the numbers used here: whole eighths below 4.
    uint32_t word;
    std::memcpy(&word, &value, 4);
    return word << 1 == 0 ? 0 : (word >> 16 & 0x8000) | ((word >> 23 & 255) - 112) << 10 | (word >> 13 & 1023);
}

// The same attention, by calls of `attend` with any of its heads and queries.
void attend_in_pieces(const Kernels& kernels, Random& random, const Attention& a) {
    const size_t shared = a.heads / a.kv_heads, widest = (std::max(a.width, a.value_width) + TILE - 1) / TILE * TILE;
    const size_t most = std::min(MOST_QUERIES, QUERY_FLOATS / widest);
    for (size_t row = 0; row < a.batch; row++)
        for (size_t head = 0, heads; head < a.heads; head += heads) {
            heads = 1 + random.below(shared - head % shared);
            for (size_t begin = 0, end; begin < a.queries; begin = end) {
                end = std::min(a.queries, begin + 1 + random.below(most / heads));
                kernels.attend(a, row, head, heads, begin, end);
            }
        }
}

void attention_to_nothing_is_nothing(const Kernels& kernels, Pool& pool) {
    size_t Attention::*const sizes[] = {&Attention::batch, &Attention::heads, &Attention::queries, &Attention::value_width};
    for (const auto size : sizes) {
        Attention a = {};
        a.batch = a.heads = a.kv_heads = a.queries = a.keys = a.width = a.value_width = 1;
        a.*size = 0;
        attention(kernels, pool, a);
    }
}

// The same of causal attention, by one query at a time that is given the keys that it sees and no others.
void attend_alone(const Kernels& kernels, Pool& pool, const Attention& a) {
    for (size_t place = 0; place < a.queries; place++) {
        Attention one = a;
        const size_t end = a.keys - a.queries + place + 1, begin = a.window && end > a.window ? end - a.window : 0;
        one.masking = Masking::none, one.queries = 1, one.keys = end - begin;
        one.query += place * a.query_strides[2], one.out += place * a.out_strides[2];
        const size_t size = a.half ? sizeof(uint16_t) : sizeof(float);
        one.key = (const uint8_t*)a.key + begin * a.key_strides[2] * size;
        one.value = (const uint8_t*)a.value + begin * a.value_strides[2] * size;
        attention(kernels, pool, one);
    }
}

void attention_is_right(const Kernels& kernels, Pool& pool, Random& random) {
    for (int round = 0; round < 60; round++) {
        Attention a = {};
        a.batch = 1 + random.below(3), a.kv_heads = 1 + random.below(3), a.heads = a.kv_heads * (1 + random.below(4));
        a.keys = 1 + random.below(150), a.queries = 1 + random.below(round % 3 ? 3 : 90);
        a.width = 1 + random.below(130), a.value_width = 1 + random.below(130), a.half = round % 2, a.scale = 0.3f;
        if (a.queries > a.keys) a.queries = a.keys;
        const std::vector<float> q = random.numbers(a.batch * a.heads * a.queries * a.width);
        std::vector<float> k(a.batch * a.kv_heads * a.keys * a.width), v(a.batch * a.kv_heads * a.keys * a.value_width);
        std::vector<uint16_t> k_half, v_half;
        for (float& one : k) one = (float)random.below(31) / 8 - 2, k_half.push_back(half_of(one));
        for (float& one : v) one = (float)random.below(31) / 8 - 2, v_half.push_back(half_of(one));
        std::vector<float> out(a.batch * a.heads * a.queries * a.value_width, NAN), sinks = random.numbers(a.heads);
        const auto strides = [](size_t* to, size_t heads, size_t length, size_t width) {
            to[0] = heads * length * width, to[1] = length * width, to[2] = width;
        };
        a.query = q.data(), a.out = out.data();
        a.key = a.half ? (const void*)k_half.data() : k.data(), a.value = a.half ? (const void*)v_half.data() : v.data();
        strides(a.query_strides, a.heads, a.queries, a.width), strides(a.key_strides, a.kv_heads, a.keys, a.width);
        strides(a.value_strides, a.kv_heads, a.keys, a.value_width), strides(a.out_strides, a.heads, a.queries, a.value_width);
        a.masking = (Masking)random.below(4);
        if (a.masking == Masking::causal) a.window = random.below(2) * (1 + random.below(20));
        if (random.below(3) == 0) a.sinks = sinks.data();
        std::vector<uint8_t> shown(a.batch * a.queries * a.keys);
        std::vector<float> added(shown.size());
        for (size_t n = 0; n < shown.size(); n++) shown[n] = random.below(3) > 0, added[n] = shown[n] ? random.number() : -INFINITY;
        a.mask = a.masking == Masking::boolean ? (const void*)shown.data() : added.data();
        a.mask_strides[0] = a.queries * a.keys, a.mask_strides[2] = a.keys, a.mask_strides[3] = 1;
        attention(kernels, pool, a);
        std::vector<float> again(out.size(), NAN);
        a.out = again.data();
        attend_in_pieces(kernels, random, a);
        check(!std::memcmp(out.data(), again.data(), out.size() * sizeof(float)), kernels.name, "attention changes with the task");
        std::fill(again.begin(), again.end(), NAN);
        if (a.masking == Masking::causal) {
            attend_alone(kernels, pool, a);
            check(!std::memcmp(out.data(), again.data(), out.size() * sizeof(float)), kernels.name, "a query alone differs");
        }
        for (size_t row = 0; row < a.batch; row++)
            for (size_t head = 0; head < a.heads; head++)
                for (size_t place = 0; place < a.queries; place++) {
                    const size_t own = head / (a.heads / a.kv_heads);
                    std::vector<double> weights;
                    double total = a.sinks ? std::exp(sinks[head]) : 0;
                    for (size_t key = 0; key < a.keys; key++) {
                        double score = 0;
                        for (size_t n = 0; n < a.width; n++)
                            score += (double)q[((row * a.heads + head) * a.queries + place) * a.width + n] *
                                     k[((row * a.kv_heads + own) * a.keys + key) * a.width + n];
                        score *= a.scale;
                        const size_t seen = a.keys - a.queries + place, at = (row * a.queries + place) * a.keys + key;
                        if (a.masking == Masking::boolean && !shown[at]) score = -INFINITY;
                        if (a.masking == Masking::additive) score += added[at];
                        if (a.masking == Masking::causal && (key > seen || (a.window && key + a.window <= seen))) score = -INFINITY;
                        weights.push_back(std::exp(score));
                        total += weights.back();
                    }
                    for (size_t n = 0; n < a.value_width; n++) {
                        double expected = 0;
                        for (size_t key = 0; key < a.keys; key++)
                            expected += weights[key] * v[((row * a.kv_heads + own) * a.keys + key) * a.value_width + n];
                        expected = total > 0 ? expected / total : 0;
                        const double found = out[((row * a.heads + head) * a.queries + place) * a.value_width + n];
                        check(std::fabs(found - expected) < 1e-4, kernels.name, "attention", found - expected);
                    }
                }
    }
}

// A layer's steps against its operations one by one: the same to the last bit.
void layers_are_their_operations(const Kernels& kernels, Pool& pool, Random& random) {
    for (int round = 0; round < 12; round++) {
        const size_t batch = 1 + random.below(3), length = 1 + random.below(round % 2 ? 2 : 30), rows = batch * length;
        const size_t kv_heads = 1 + random.below(2), heads = kv_heads * (1 + random.below(3)), width = 32, size = 64;
        const size_t attended = heads * width, kept_size = kv_heads * width, hidden = 96, room = length + 5, first = 3;
        const Quantised q(random, attended, size, 4, 32, Scale::float16), k(random, kept_size, size, 4, 32, Scale::float16);
        const Quantised v(random, kept_size, size, 8, 32, Scale::float16), o(random, size, attended, 4, 32, Scale::float16);
        const Quantised gate(random, hidden, size, 4, 32, Scale::float16), up(random, hidden, size, 4, 32, Scale::float16);
        const Quantised down(random, size, hidden, 4, 32, Scale::float16);
        const std::vector<float> x = random.numbers(rows * size), weight = random.numbers(size), own = random.numbers(width);
        const std::vector<float> bias = random.numbers(attended);
        Angles table({1.0, 0.5, 0.25, 0.125});
        std::vector<int64_t> positions;
        for (size_t row = 0; row < rows; row++) positions.push_back((int64_t)(row % length) - 2);
        std::deque<std::vector<float>> strays;
        const std::vector<const float*> angles = table.look_up(positions, strays);
        Block block = {};
        block.heads = heads, block.kv_heads = kv_heads, block.width = width, block.turned = 8, block.scale = 0.2f;
        block.neighbours = round % 3 == 0;
        block.before_attention = block.before_network = {weight.data(), 1e-5f};
        if (round % 4 < 2) block.query_norm = block.key_norm = {own.data(), 1e-6f};
        block.queries = q.matrix(bias.data()), block.keys = k.matrix(), block.values = v.matrix(), block.output = o.matrix();
        block.kind = round % 2 ? Gate::silu : Gate::gelu;
        block.gate = gate.matrix(), block.up = up.matrix(), block.down = down.matrix();

        std::vector<float> projected(rows * block.projected()), out(rows * size);
        std::vector<uint16_t> keys(batch * kv_heads * room * width, 0), values = keys, expected_keys = keys, expected_values = keys;
        project(kernels, pool, block, x.data(), rows, angles, projected.data());
        const Kept kept_keys = {keys.data(), {kv_heads * room * width, room * width, width}};
        const Kept kept_values = {values.data(), {kv_heads * room * width, room * width, width}};
        keep(kernels, block, projected.data() + attended, block.projected(), batch, length, kept_keys, first);
        keep(kernels, block, projected.data() + attended + kept_size, block.projected(), batch, length, kept_values, first);
        Attention a = {};
        a.batch = batch, a.heads = heads, a.kv_heads = kv_heads, a.queries = length, a.keys = first + length;
        a.width = a.value_width = width, a.scale = block.scale, a.half = true, a.masking = Masking::causal;
        a.query = projected.data(), a.key = keys.data(), a.value = values.data();
        a.query_strides[0] = length * block.projected(), a.query_strides[1] = width, a.query_strides[2] = block.projected();
        for (int axis = 0; axis < 3; axis++) a.key_strides[axis] = a.value_strides[axis] = kept_keys.strides[axis];
        finish(kernels, pool, block, a, x.data(), out.data());

        std::vector<float> normed(rows * size), queries(rows * attended), new_keys(rows * kept_size), new_values(rows * kept_size);
        const auto norm = [&](const float* from) {
            for (size_t row = 0; row < rows; row++)
                kernels.rms_norm(from + row * size, weight.data(), 1e-5f, normed.data() + row * size, size);
        };
        norm(x.data());
        matmul(kernels, pool, normed.data(), rows, size, {{block.queries, queries.data(), attended}});
        matmul(kernels, pool, normed.data(), rows, size, {{block.keys, new_keys.data(), kept_size}});
        matmul(kernels, pool, normed.data(), rows, size, {{block.values, new_values.data(), kept_size}});
        for (size_t row = 0; row < rows; row++) {
            const auto turn = [&](float* head) {
                float part[32];
                if (block.query_norm.weight) kernels.rms_norm(head, own.data(), 1e-6f, head, width);
                kernels.rotate(head, angles[row], angles[row] + 4, block.neighbours, 8, width, part);
                std::memcpy(head, part, sizeof part);
            };
            for (size_t head = 0; head < heads; head++) turn(&queries[row * attended + head * width]);
            for (size_t head = 0; head < kv_heads; head++) {
                turn(&new_keys[row * kept_size + head * width]);
                const size_t to = ((row / length * kv_heads + head) * room + first + row % length) * width;
                kernels.narrow(&new_keys[row * kept_size + head * width], &expected_keys[to], width);
                kernels.narrow(&new_values[row * kept_size + head * width], &expected_values[to], width);
            }
        }
        check(keys == expected_keys && values == expected_values, kernels.name, "what a layer keeps");
        std::vector<float> seen(rows * attended), between(rows * size), gated(rows * hidden), expected(rows * size);
        a.query = queries.data(), a.out = seen.data();
        a.query_strides[0] = length * attended, a.query_strides[2] = attended;
        a.out_strides[0] = length * attended, a.out_strides[1] = width, a.out_strides[2] = attended;
        attention(kernels, pool, a);
        matmul(kernels, pool, seen.data(), rows, attended, {{block.output, between.data(), size}});
        for (size_t n = 0; n < rows * size; n++) between[n] += x[n];
        norm(between.data());
        gated_matmul(kernels, pool, block.kind, normed.data(), rows, size, block.gate, block.up, gated.data());
        matmul(kernels, pool, gated.data(), rows, hidden, {{block.down, expected.data(), size}});
        for (size_t n = 0; n < rows * size; n++) expected[n] += between[n];
        check(out == expected, kernels.name, "what a layer computes");
    }
}

// float16, to the nearest, by what each of them stands for.
void halves_are_the_nearest(const Kernels& kernels) {
    const auto value_of = [](unsigned bits) {
        const int exponent = bits >> 10 & 31, fraction = bits & 1023;
        return exponent ? std::ldexp(fraction + 1024.0, exponent - 25) : std::ldexp((double)fraction, -24);
    };
    for (unsigned bits = 0; bits < 0x7c00; bits++) {
        const double below = value_of(bits), above = bits == 0x7bff ? 65536.0 : value_of(bits + 1);
        const float middle = (float)((below + above) / 2);
        const float numbers[6] = {(float)below, std::nextafter(middle, 0.0f), middle, std::nextafter(middle, 1e9f), -(float)below, -middle};
        const unsigned even = bits + (bits & 1), expected[6] = {bits, bits, even, bits + 1, bits | 0x8000, even | 0x8000};
        uint16_t found[6];
        kernels.narrow(numbers, found, 6);
        for (int n = 0; n < 6; n++) check(found[n] == expected[n], kernels.name, "a float16", numbers[n]);
    }
    const float strange[3] = {INFINITY, NAN, 1e30f};
    uint16_t found[3];
    kernels.narrow(strange, found, 3);
    check(found[0] == 0x7c00 && (found[1] & 0x7fff) > 0x7c00 && found[2] == 0x7c00, kernels.name, "a strange float16");
}

void elements_are_right(const Kernels& kernels, Random& random) {
    for (size_t count = 1; count < 70; count++) {
        std::vector<float> x = random.numbers(count), y = random.numbers(count), out(count);
        double squares = 0, exponentials = 0;
        size_t best = 0;
        for (size_t n = 0; n < count; n++) {
            squares += (double)x[n] * x[n], exponentials += std::exp((double)x[n]);
            if (x[n] > x[best]) best = n;
        }
        kernels.rms_norm(x.data(), y.data(), 1e-5f, out.data(), count);
        for (size_t n = 0; n < count; n++)
            check(std::fabs(out[n] - x[n] / std::sqrt(squares / count + 1e-5) * y[n]) < 1e-5, kernels.name, "rms_norm");
        check(std::fabs(kernels.log_sum_exp(x.data(), count) - std::log(exponentials)) < 1e-5, kernels.name, "log_sum_exp");
        check(kernels.argmax(x.data(), count) == best, kernels.name, "argmax");
        const size_t wanted = 1 + random.below(count);
        std::vector<float> highest(wanted);
        std::vector<uint32_t> places(wanted);
        greatest(kernels, x.data(), count, wanted, highest.data(), places.data());
        const float lowest = *std::min_element(highest.begin(), highest.end());
        const auto above = std::count_if(x.begin(), x.end(), [&](float one) { return one > lowest; });
        check((size_t)above == wanted - 1, kernels.name, "greatest");
        kernels.glu(Gate::gelu, x.data(), y.data(), out.data(), count);
        for (size_t n = 0; n < count; n++) {
            const double a = x[n];
            const double gelu = a / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (a + 0.044715 * a * a * a)));
            check(std::fabs(out[n] - gelu * y[n]) < 1e-5, kernels.name, "gelu", out[n] - gelu * y[n]);
        }
        x[random.below(count)] = INFINITY;
        check(std::isinf(kernels.log_sum_exp(x.data(), count)), kernels.name, "log_sum_exp of infinity");
        const size_t strange = random.below(count);
        x[strange] = NAN;
        check(kernels.argmax(x.data(), count) == strange, kernels.name, "argmax of no number");
        check(std::isnan(kernels.log_sum_exp(x.data(), count)), kernels.name, "log_sum_exp of no number");
        kernels.rms_norm(x.data(), nullptr, 1e-5f, out.data(), count);
        check(std::isnan(out[0]), kernels.name, "rms_norm of no number");
    }
}

// What an arena gives out is aligned, is nobody else's, and stays when the arena and its neighbours have gone.
void arenas_give_memory(Random& random) {
    std::vector<std::pair<std::shared_ptr<uint8_t>, size_t>> taken;
    {
        Arena arena;
        for (int n = 0; n < 40; n++) {
            const size_t bytes = n == 20 ? (70 << 20) : 1 + random.below(4 << 20);
            taken.emplace_back(arena.take(bytes), bytes);
            check((uintptr_t)taken.back().first.get() % 64 == 0, "arena", "its memory is aligned");
            std::memset(taken.back().first.get(), n, bytes);
        }
    }
    for (size_t n = 0; n < taken.size(); n++) {
        const uint8_t* bytes = taken[n].first.get();
        check(bytes[0] == n && bytes[taken[n].second - 1] == n, "arena", "its memory is nobody else's");
        taken[n].first.reset();
    }
}

// Several threads with jobs for one pool, and a pool that comes and goes.
void threads_do_not_meet(const Kernels& kernels) {
    for (int round = 0; round < 3; round++) {
        Pool pool(3);
        std::vector<std::thread> callers;
        for (unsigned caller = 0; caller < 3; caller++) {
            callers.emplace_back([&, caller] {
                Random random(caller);
                const Quantised a(random, 200, 64, 4, 32, Scale::float16);
                const std::vector<float> x = random.numbers(4 * 64);
                std::vector<float> first(4 * 200), again(4 * 200);
                for (int turn = 0; turn < 50; turn++) {
                    matmul(kernels, pool, x.data(), 4, 64, {{a.matrix(), (turn ? again : first).data(), 200}});
                    if (turn) check(first == again, kernels.name, "a product changes with the thread");
                    // Long enough for workers to fall asleep.
                    if (turn % 20 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
                }
            });
        }
        for (auto& caller : callers) caller.join();
    }
}

// Whichever threads pieces fail on, the caller is told when nobody is at work any more, and no others are begun.
void failures_reach_the_caller() {
    constexpr size_t COUNT = 64;
    constexpr int THREADS = 3;
    Pool pool(THREADS);
    enum { all, caller, workers };
    for (const int failing : {all, caller, workers}) {
        size_t shared = 0, fewest = COUNT;
        // Now and then the pool does jobs alone.
        for (int round = 0; round < 10000 && shared < 100; round++) {
            const auto own = std::this_thread::get_id();
            const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(5);
            const auto wait_for = [&](const std::atomic<int>& number, int least) {
                while (number < least && std::chrono::steady_clock::now() < patience) std::this_thread::yield();
            };
            std::atomic<int> begun{0}, failed{0}, inside{0};
            bool told = false;
            try {
                pool.run(COUNT, 1, [&](size_t begin, size_t end) {
                    begun++, inside++;
                    const bool alone = end - begin == COUNT, called = std::this_thread::get_id() == own;
                    // All of them are in the middle of a piece when the first one fails.
                    if (!alone) wait_for(begun, THREADS);
                    const bool fails = alone || failing == all || called == (failing == caller);
                    if (!fails) wait_for(failed, 1), std::this_thread::sleep_for(std::chrono::microseconds(100));
                    inside--;
                    if (!fails) return;
                    failed++;
                    throw std::runtime_error("a piece");
                });
            } catch (const std::runtime_error&) {
                told = inside == 0;
            }
            check(told, "pool", "a failure reaches the caller, behind all that is under way", inside);
            if (begun > 1) shared++, fewest = std::min(fewest, (size_t)begun);
        }
        check(fewest < COUNT, "pool", "pieces are begun behind one that failed", (double)fewest);
    }
    std::atomic<size_t> done{0};
    pool.run(COUNT, 1, [&](size_t begin, size_t end) { done += end - begin; });
    check(done == COUNT, "pool", "it goes on working", (double)done);
}

}  // namespace

int main() {
    Random own(7);
    arenas_give_memory(own);
    failures_reach_the_caller();
    for (const char* const* name = names(); *name; name++) {
        const Kernels& kernels = *find(*name);
        Random random(7);
        Pool pool(2);
        products_are_right(kernels, pool, random);
        gathered_products_are_right(kernels, pool, random);
        attention_is_right(kernels, pool, random);
        attention_to_nothing_is_nothing(kernels, pool);
        layers_are_their_operations(kernels, pool, random);
        elements_are_right(kernels, random);
        halves_are_the_nearest(kernels);
        threads_do_not_meet(kernels);
        std::printf("%s: %s\n", *name, failures ? "wrong" : "right");
    }
    return failures ? 1 : 0;
}
