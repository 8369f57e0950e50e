// Quantised matrix multiplication for one instruction set; included inside its namespace.
//
// The difficulty is to keep the processor's byte products busy while weights are unpacked and scaled. Lanes are output
// rows: the sixteen rows of a tile are stored side by side (packing.h), so that nothing is ever added across lanes, and
// a scale is one multiplication for a whole vector. Activations are quantised to eight bits in blocks of 32; four of
// them are broadcast against four weights of each row. With
//
//     weight = scale * q + bias    and    x ~ s * a
//
// a block adds scale * (s * sum(q * a)) + bias * (s * sum(a)). The sum belonging to the bias is that of the quantised
// activations: then the error of rounding meets the weight itself and not its parts, which are far larger. Where the
// weights are symmetric the bias is a whole number of scales, and its part is taken off the sum of products at once.
//
// What is computed for a row of activations does not depend on the others: sums of integers are exact, and those of
// floats have an order of their own. So a row in a batch has exactly the result that it has alone.

// How far ahead of what is computed weights are asked for, in bytes, where memory is what a row waits for.
constexpr size_t AHEAD = 1024;

static LANES f32 scales_of(const uint8_t* at, Scale scale, int lane) {
    if (scale == Scale::float16) return from_float16((const uint16_t*)at + lane);
    if (scale == Scale::bfloat16) return from_bfloat16((const uint16_t*)at + lane);
    return load((const float*)at + lane);
}

// PARTS of a tile, each as wide as a vector, are computed together. With one row that is all of it, so that memory is
// read in one go. Where a group is ONE_BLOCK its sums need not be kept from block to block, and there are registers for
// all of them.
template <int BITS, int ROWS, bool SYMMETRIC, int PARTS, bool ONE_BLOCK>
static void multiply_rows(const Weights& weights, const uint8_t* tile, const Panel& panel, float* out) {
    const size_t groups = weights.columns / weights.group, blocks = ONE_BLOCK ? 1 : weights.group / BLOCK;
    const size_t scale_bytes = TILE * weights.scale_bytes();
    // What is multiplied is so much too great, in scales.
    constexpr uint32_t OFFSET = (SYMMETRIC ? 1u << (BITS - 1) : 0) - Sum<BITS>::TAKEN_OFF;
    for (int lane = 0; lane < (int)TILE; lane += PARTS * WIDTH) {
        const uint8_t* at = tile;
        const int8_t* values = panel.values;
        const Panel::Block* activations = panel.blocks;
        f32 total[ROWS][PARTS] = {};
        for (size_t group = 0; group < groups; group++) {
            f32 product[ROWS][PARTS] = {};
            const Panel::Block* const group_activations = activations;
            for (size_t block = 0; block < blocks; block++) {
                // Two sums for few rows: one alone would wait for itself.
                Sum<BITS> sum[ROWS][PARTS], more[ROWS][PARTS];
#pragma GCC unroll 8
                for (int step = 0; step < BITS; step++) {
                    u8 first[PARTS], second[PARTS];
                    if constexpr (ROWS < 4) __builtin_prefetch(at + AHEAD);
#pragma GCC unroll 4
                    for (int part = 0; part < PARTS; part++) {
                        const u8 bytes = load<u8>(at + 4 * (lane + part * WIDTH));
                        first[part] = BITS == 4 ? bytes & (uint8_t)15 : bytes;
                        second[part] = bytes >> 4;
                    }
#pragma GCC unroll 8
                    for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 4
                        for (int part = 0; part < PARTS; part++)
                            sum[row][part].add(first[part], broadcast_bytes(values + 4 * row));
                    values += 4 * ROWS;
                    if constexpr (BITS == 4) {
#pragma GCC unroll 8
                        for (int row = 0; row < ROWS; row++)
#pragma GCC unroll 4
                            for (int part = 0; part < PARTS; part++)
                                (ROWS < 4 ? more : sum)[row][part].add(second[part], broadcast_bytes(values + 4 * row));
                        values += 4 * ROWS;
                    }
                    at += 4 * TILE;
                }
#pragma GCC unroll 8
                for (int row = 0; row < ROWS; row++) {
#pragma GCC unroll 4
                    for (int part = 0; part < PARTS; part++) {
                        i32 lanes = sum[row][part].lanes();
                        if constexpr (BITS == 4 && ROWS < 4) lanes += more[row][part].lanes();
                        if constexpr (OFFSET != 0) lanes = (i32)((u32)lanes - (u32)broadcast(activations[row].sum) * OFFSET);
                        product[row][part] += activations[row].scale * to_float(lanes);
                    }
                }
                activations += ROWS;
            }
#pragma GCC unroll 4
            for (int part = 0; part < PARTS; part++) {
                const f32 scale = scales_of(at, weights.scale, lane + part * WIDTH);
#pragma GCC unroll 8
                for (int row = 0; row < ROWS; row++) total[row][part] += scale * product[row][part];
            }
            at += scale_bytes;
            if constexpr (!SYMMETRIC) {
                f32 bias[PARTS];
                for (int part = 0; part < PARTS; part++) bias[part] = scales_of(at, weights.scale, lane + part * WIDTH);
                at += scale_bytes;
#pragma GCC unroll 8
                for (int row = 0; row < ROWS; row++) {
                    float shift = group_activations[row].shift;
                    for (size_t block = 1; block < blocks; block++) shift += group_activations[block * ROWS + row].shift;
#pragma GCC unroll 4
                    for (int part = 0; part < PARTS; part++) total[row][part] += bias[part] * shift;
                }
            }
        }
        for (int row = 0; row < ROWS; row++)
            for (int part = 0; part < PARTS; part++) store(out + row * TILE + lane + part * WIDTH, total[row][part]);
    }
}

template <int BITS, bool SYMMETRIC, int ROWS = PANEL_ROWS>
static void multiply_kind(const Weights& weights, const uint8_t* tile, const Panel& panel, float* out) {
    constexpr int PARTS = ROWS == 1 ? TILE / WIDTH : 1;
    if (panel.rows == ROWS && weights.group == BLOCK)
        return multiply_rows<BITS, ROWS, SYMMETRIC, PARTS, true>(weights, tile, panel, out);
    if (panel.rows == ROWS) return multiply_rows<BITS, ROWS, SYMMETRIC, PARTS, false>(weights, tile, panel, out);
    if constexpr (ROWS > 1) return multiply_kind<BITS, SYMMETRIC, ROWS - 1>(weights, tile, panel, out);
}

static void multiply(const Weights& weights, const uint8_t* tile, const Panel& panel, float* out) {
    if (weights.bits == 4 && weights.symmetric) return multiply_kind<4, true>(weights, tile, panel, out);
    if (weights.bits == 4) return multiply_kind<4, false>(weights, tile, panel, out);
    if (weights.symmetric) return multiply_kind<8, true>(weights, tile, panel, out);
    return multiply_kind<8, false>(weights, tile, panel, out);
}

static void quantise(const float* const* rows, size_t columns, const Panel& panel) {
    for (size_t row = 0; row < panel.rows; row++) {
        const float* x = rows[row];
        for (size_t block = 0; block < columns / BLOCK; block++, x += BLOCK) {
            // Without their signs, floats are in the order of their bits, and what is not finite is the greatest.
            i32 most = {};
            for (size_t lane = 0; lane < BLOCK; lane += WIDTH) {
                const i32 bits = (i32)absolute(load(x + lane));
                most = bits > most ? bits : most;
            }
            const int32_t greatest_bits = greatest(most);
            float greatest_value;
            __builtin_memcpy(&greatest_value, &greatest_bits, sizeof greatest_value);
            // What is smaller has no reciprocal, and counts as nothing.
            const bool nothing = greatest_value < 1e-36f;
            const float factor = nothing ? 0.0f : 127.0f / greatest_value;
            float scale = nothing ? 0.0f : greatest_value / 127.0f;
            if (greatest_bits >= 0x7f800000) scale = __builtin_nanf("");
            u32 total = {};  // of what is no number anything may come, and go round
            int8_t* to = panel.values + block * BLOCK * panel.rows + 4 * row;
            for (size_t lane = 0; lane < BLOCK; lane += WIDTH) {
                const i32 quantised = __builtin_convertvector(rounded(load(x + lane) * factor), i32);
                total += (u32)quantised;
                const i8 bytes = to_bytes(quantised);
                for (int four = 0; four < WIDTH; four += 4, to += 4 * panel.rows)
                    __builtin_memcpy(to, (const char*)&bytes + four, 4);
            }
            const int32_t whole = (int32_t)sum(total);
            panel.blocks[block * panel.rows + row] = {scale, scale * (float)whole, whole};
        }
    }
}
