#include "operations.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>

#include "scratch.h"

namespace osaurus {
namespace {

// Rows that meet a tile before the next one is read, in whole panels: their activations stay in the second cache beside
// it.
constexpr size_t ROWS_AT_A_TIME = 64;

size_t panels_at_a_time(const Kernels& kernels) {
    return (ROWS_AT_A_TIME + kernels.panel_rows - 1) / kernels.panel_rows;
}

// Rows quantised into panels, as few as possible.
struct Activations {
    std::vector<Panel> panels;
    std::vector<size_t> first;  // the first row of each panel

    void add(size_t row, size_t count, size_t most, size_t columns, uint8_t*& memory) {
        for (; count > 0; row += panels.back().rows, count -= panels.back().rows) {
            Panel panel;
            panel.rows = std::min(count, most);
            panel.values = (int8_t*)memory;
            panel.blocks = (Panel::Block*)(memory + panel.rows * columns);
            memory += bytes(panel.rows, columns);
            panels.push_back(panel);
            first.push_back(row);
        }
    }

    static size_t bytes(size_t rows, size_t columns) { return rows * (columns + columns / BLOCK * sizeof(Panel::Block)); }
};

void quantise(const Kernels& kernels, Pool& pool, const Activations& activations, const float* x, size_t stride,
              const uint32_t* sources, size_t columns, const Norm* norm) {
    pool.run(activations.panels.size(), 2, [&](size_t begin, size_t end) {
        thread_local Scratch scratch;
        float* normalised = norm ? (float*)scratch.get(MOST_PANEL_ROWS * columns * sizeof(float)) : nullptr;
        for (size_t n = begin; n < end; n++) {
            const float* rows[MOST_PANEL_ROWS];
            for (size_t row = 0; row < activations.panels[n].rows; row++) {
                const size_t place = activations.first[n] + row;
                rows[row] = x + (sources ? sources[place] : place) * stride;
                if (!norm) continue;
                kernels.rms_norm(rows[row], norm->weight, norm->epsilon, normalised + row * columns, columns);
                rows[row] = normalised + row * columns;
            }
            kernels.quantise(rows, columns, activations.panels[n]);
        }
    });
}

// A piece of work is so many tiles: enough for a thread to be worth taking, and several for each thread.
size_t piece_of(size_t tasks, const Pool& pool) { return std::max<size_t>(1, tasks / (8 * pool.threads())); }

// The first `count` of a tile's lanes, on their way out.
inline void copy_lanes(float* tile, const float* bias, const float* added, float* out, size_t count) {
    if (bias)
        for (size_t lane = 0; lane < count; lane++) tile[lane] += bias[lane];
    if (added)
        for (size_t lane = 0; lane < count; lane++) tile[lane] += added[lane];
    std::memcpy(out, tile, count * sizeof(float));
}

void copy_out(float* tile, const Panel& panel, const Product& product, size_t place, size_t first) {
    const Weights& weights = product.matrix.weights;
    const float* bias = product.matrix.bias ? product.matrix.bias + place * TILE : nullptr;
    for (size_t row = 0; row < panel.rows; row++, tile += TILE) {
        const size_t at = (first + row) * product.stride + place * TILE;
        const float* added = product.added ? product.added + at : nullptr;
        // Whole tiles have loops of a known length.
        if ((place + 1) * TILE <= weights.rows) {
            copy_lanes(tile, bias, added, product.out + at, TILE);
        } else {
            copy_lanes(tile, bias, added, product.out + at, weights.rows - place * TILE);
        }
    }
}

Activations activations_of(const Kernels& kernels, Pool& pool, const float* x, size_t rows, size_t stride,
                           size_t columns, const Norm* norm) {
    thread_local Scratch scratch;
    uint8_t* memory = scratch.get(Activations::bytes(rows, columns));
    Activations activations;
    activations.add(0, rows, kernels.panel_rows, columns, memory);
    quantise(kernels, pool, activations, x, stride, nullptr, columns, norm);
    return activations;
}

}  // namespace

void matmul(const Kernels& kernels, Pool& pool, const float* x, size_t rows, size_t stride,
            const std::vector<Product>& products, const Norm* norm) {
    if (rows == 0 || products.empty()) return;
    const size_t columns = products[0].matrix.weights.columns;
    const Activations activations = activations_of(kernels, pool, x, rows, stride, columns, norm);
    size_t tiles = 0;
    for (const Product& product : products) tiles += product.matrix.weights.tiles();
    const size_t step = panels_at_a_time(kernels);
    const size_t layers = (activations.panels.size() + step - 1) / step;
    pool.run(tiles * layers, piece_of(tiles * layers, pool), [&](size_t begin, size_t end) {
        alignas(64) float tile[MOST_PANEL_ROWS * TILE];
        for (size_t task = begin; task < end; task++) {
            size_t place = task % tiles;
            const Product* product = products.data();
            for (; place >= product->matrix.weights.tiles(); product++) place -= product->matrix.weights.tiles();
            const Matrix& matrix = product->matrix;
            const uint8_t* packed = matrix.packed + place * matrix.weights.tile_bytes();
            const size_t first = task / tiles * step, last = std::min(first + step, activations.panels.size());
            for (size_t n = first; n < last; n++) {
                const Panel& panel = activations.panels[n];
                kernels.multiply(matrix.weights, packed, panel, tile);
                copy_out(tile, panel, *product, place, activations.first[n]);
            }
        }
    }, rows);
}

void gated_matmul(const Kernels& kernels, Pool& pool, Gate gate, const float* x, size_t rows, size_t stride,
                  const Matrix& a, const Matrix& b, float* out, const Norm* norm) {
    if (rows == 0) return;
    const Activations activations = activations_of(kernels, pool, x, rows, stride, a.weights.columns, norm);
    const size_t tiles = a.weights.tiles(), width = a.weights.rows;
    const size_t step = panels_at_a_time(kernels);
    const size_t layers = (activations.panels.size() + step - 1) / step;
    pool.run(tiles * layers, piece_of(tiles * layers, pool), [&](size_t begin, size_t end) {
        alignas(64) float first_tile[MOST_PANEL_ROWS * TILE], second_tile[MOST_PANEL_ROWS * TILE];
        for (size_t task = begin; task < end; task++) {
            const size_t place = task % tiles, count = std::min(TILE, width - place * TILE);
            const size_t first = task / tiles * step, last = std::min(first + step, activations.panels.size());
            for (size_t n = first; n < last; n++) {
                const Panel& panel = activations.panels[n];
                kernels.multiply(a.weights, a.packed + place * a.weights.tile_bytes(), panel, first_tile);
                kernels.multiply(b.weights, b.packed + place * b.weights.tile_bytes(), panel, second_tile);
                for (size_t row = 0; row < panel.rows; row++) {
                    float* x_part = first_tile + row * TILE;
                    float* y_part = second_tile + row * TILE;
                    for (size_t lane = 0; lane < count; lane++) {
                        if (a.bias) x_part[lane] += a.bias[place * TILE + lane];
                        if (b.bias) y_part[lane] += b.bias[place * TILE + lane];
                    }
                    kernels.glu(gate, x_part, y_part, out + (activations.first[n] + row) * width + place * TILE, count);
                }
            }
        }
    }, rows);
}

void gather_matmul(const Kernels& kernels, Pool& pool, const float* x, size_t stride, const uint32_t* sources,
                   const uint32_t* experts, size_t count, const Matrix& first, size_t matrices, float* out) {
    if (count == 0) return;
    // Rows of the same expert go together, wherever they come from and go to.
    std::vector<uint32_t> order(count), from(count);
    std::iota(order.begin(), order.end(), 0u);
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return experts[a] < experts[b]; });
    for (size_t n = 0; n < count; n++) from[n] = sources[order[n]];
    const size_t columns = first.weights.columns, width = first.weights.rows, tiles = first.weights.tiles();
    thread_local Scratch scratch;
    uint8_t* memory = scratch.get(Activations::bytes(count, columns));
    Activations activations;
    for (size_t begin = 0, end; begin < count; begin = end) {
        for (end = begin; end < count && experts[order[end]] == experts[order[begin]]; end++) {
        }
        activations.add(begin, end - begin, kernels.panel_rows, columns, memory);
    }
    quantise(kernels, pool, activations, x, stride, from.data(), columns, nullptr);
    const size_t tasks = tiles * activations.panels.size();
    pool.run(tasks, piece_of(tasks, pool), [&](size_t begin, size_t end) {
        alignas(64) float tile[MOST_PANEL_ROWS * TILE];
        for (size_t task = begin; task < end; task++) {
            const size_t n = task / tiles, place = task % tiles, lanes = std::min(TILE, width - place * TILE);
            const Panel& panel = activations.panels[n];
            const size_t expert = experts[order[activations.first[n]]];
            if (expert < matrices) {
                const uint8_t* packed = first.packed + expert * first.weights.bytes() + place * first.weights.tile_bytes();
                kernels.multiply(first.weights, packed, panel, tile);
            } else {
                std::fill_n(tile, panel.rows * TILE, std::numeric_limits<float>::quiet_NaN());
            }
            for (size_t row = 0; row < panel.rows; row++) {
                float* to = out + (size_t)order[activations.first[n] + row] * width + place * TILE;
                std::memcpy(to, tile + row * TILE, lanes * sizeof(float));
            }
        }
    });
}

void greatest(const Kernels& kernels, const float* x, size_t width, size_t count, float* values, uint32_t* places) {
    // As many blocks as there are numbers wanted have a greatest that is not below the limit, so as many numbers are
    // not; only in these blocks need be looked for them.
    constexpr size_t SIZE = 64;
    std::vector<float> maxima((width + SIZE - 1) / SIZE);
    kernels.block_maxima(x, width, SIZE, maxima.data());
    float limit = -std::numeric_limits<float>::infinity();
    if (count <= maxima.size()) {
        std::vector<float> sorted = maxima;
        std::nth_element(sorted.begin(), sorted.begin() + (count - 1), sorted.end(), std::greater<float>());
        limit = sorted[count - 1];
    }
    std::vector<uint32_t> found;
    for (size_t block = 0; block < maxima.size(); block++) {
        if (!(maxima[block] >= limit)) continue;
        for (size_t at = block * SIZE; at < std::min(width, (block + 1) * SIZE); at++)
            if (!(x[at] < limit)) found.push_back((uint32_t)at);
    }
    // Of equals the first, so that the choice does not depend on how it was made.
    const auto before = [x](uint32_t a, uint32_t b) {
        const bool a_strange = x[a] != x[a], b_strange = x[b] != x[b];
        if (a_strange || b_strange) return a_strange != b_strange ? a_strange : a < b;
        return x[a] != x[b] ? x[a] > x[b] : a < b;
    };
    std::nth_element(found.begin(), found.begin() + (count - 1), found.end(), before);
    for (size_t n = 0; n < count; n++) {
        places[n] = found[n];
        values[n] = x[found[n]];
    }
}

namespace {

// How many of the queries, at most so many, a task is to have of each of its heads: so many that those who share them,
// `alike` for each stretch of queries, are done soonest. A vector of queries takes its time however few are in it.
size_t length_of(size_t queries, size_t most, size_t heads, size_t lanes, size_t alike, size_t threads) {
    const size_t fewest = (queries + most - 1) / most;
    size_t best = 0, least = 0;
    for (size_t stretches = fewest; stretches < fewest + 3; stretches++) {
        const size_t length = (queries + stretches - 1) / stretches;
        const size_t vectors = (heads * length + lanes - 1) / lanes, turns = (alike * stretches + threads - 1) / threads;
        // What a task does once, keys and values made float32, is an eighth of a vector's work.
        const size_t cost = turns * (8 * vectors + 1);
        if (best == 0 || cost < least) best = length, least = cost;
    }
    return best;
}

}  // namespace

void attention(const Kernels& kernels, Pool& pool, const Attention& a) {
    if (a.batch == 0 || a.heads == 0 || a.queries == 0 || a.value_width == 0) return;
    const size_t shared = a.heads / a.kv_heads;
    const size_t widest = (std::max(a.width, a.value_width) + TILE - 1) / TILE * TILE;
    const size_t most = std::min(MOST_QUERIES, QUERY_FLOATS / widest);
    // Heads that share keys go together, unless threads would have nothing to do then.
    size_t heads = std::min(shared, most);
    while (heads > 1 && a.batch * a.kv_heads * ((shared + heads - 1) / heads) * a.queries < 3 * (size_t)pool.threads())
        heads = (heads + 1) / 2;
    const size_t parts = (shared + heads - 1) / heads, alike = a.batch * a.kv_heads * parts;
    const size_t length = length_of(a.queries, std::max<size_t>(1, most / heads), heads, kernels.lanes, alike,
                                    pool.threads());
    const size_t stretches = (a.queries + length - 1) / length, tasks = alike * stretches;
    pool.run(tasks, 1, [&](size_t begin, size_t end) {
        for (size_t task = begin; task < end; task++) {
            // The last queries see most keys: the longest tasks come first.
            const size_t place = (stretches - 1 - task / alike) * length, rest = task % alike;
            const size_t row = rest / (a.kv_heads * parts), part = rest % parts;
            const size_t head = rest / parts % a.kv_heads * shared + part * heads;
            const size_t count = std::min(heads, shared - part * heads);
            kernels.attend(a, row, head, count, place, std::min(place + length, a.queries));
        }
    }, a.keys);
}

}  // namespace osaurus
