// Scaled dot product attention for one instruction set; included inside its namespace.
//
// The difficulty is that a query must get the same result alone, in a batch behind padding, and among others that are
// read together, at the speed of a matrix product. A query's keys are taken in blocks, counted from the first key that
// its task sees (padding in front shifts nothing), with a running maximum and sum (Milakov and Gimelshein, "Online
// normalizer calculation for softmax", 2018). A product of a query and a key has lanes along the width and is added up
// by `sums`, in the same order whether one query meets WIDTH keys or four queries a quarter of that.
//
// Queries that see no key at all get zeros.

// Keys in a block: its scores stay in the first cache, beside a block of keys and of values.
constexpr size_t KEYS = 64;

template <bool HALF>
static LANES f32 load_kv(const void* base, size_t at, size_t some) {
    if constexpr (HALF) {
        const uint16_t* from = (const uint16_t*)base + at;
        if (some >= (size_t)WIDTH) return from_float16(from);
        uint16_t halves[WIDTH] = {};
        for (size_t lane = 0; lane < some; lane++) halves[lane] = from[lane];
        return from_float16(halves);
    } else {
        const float* from = (const float*)base + at;
        return some >= (size_t)WIDTH ? load(from) : load_some(from, some);
    }
}

// The scores of GROUP queries and WIDTH / GROUP keys. `queries` are padded to whole vectors, `pitch` apart.
template <bool HALF, int GROUP>
static LANES f32 score(const float* queries, size_t pitch, const void* keys, const size_t* places, size_t width) {
    f32 product[WIDTH] = {};
    for (size_t at = 0; at < width; at += WIDTH) {
        f32 query[GROUP];
        for (int q = 0; q < GROUP; q++) query[q] = load(queries + q * pitch + at);
#pragma GCC unroll 16
        for (int k = 0; k < WIDTH / GROUP; k++) {
            const f32 key = load_kv<HALF>(keys, places[k] + at, width - at);
#pragma GCC unroll 4
            for (int q = 0; q < GROUP; q++) product[q * (WIDTH / GROUP) + k] += query[q] * key;
        }
    }
    return sums(product);
}

// out[q] += weights[q][k] * values[k] for GROUP queries; whole vectors of `out`, `pitch` apart.
template <bool HALF, int GROUP, int VECTORS>
static LANES void gather(const float* weights, const void* values, size_t base, size_t stride, size_t count,
                         size_t at, size_t width, float* out, size_t pitch) {
    f32 total[GROUP][VECTORS];
#pragma GCC unroll 4
    for (int q = 0; q < GROUP; q++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) total[q][v] = load(out + q * pitch + at + v * WIDTH);
    for (size_t k = 0; k < count; k++) {
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            const size_t place = at + v * WIDTH;
            const f32 value = load_kv<HALF>(values, base + k * stride + place, VECTORS > 1 ? WIDTH : width - place);
#pragma GCC unroll 4
            for (int q = 0; q < GROUP; q++) total[q][v] += weights[q * KEYS + k] * value;
        }
    }
#pragma GCC unroll 4
    for (int q = 0; q < GROUP; q++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) store(out + q * pitch + at + v * WIDTH, total[q][v]);
}

template <bool HALF, int GROUP>
static void gather_all(const float* weights, const void* values, size_t base, size_t stride, size_t count, size_t width,
                       float* out, size_t pitch) {
    size_t at = 0;
    for (; at + 4 * WIDTH <= width; at += 4 * WIDTH)
        gather<HALF, GROUP, 4>(weights, values, base, stride, count, at, width, out, pitch);
    for (; at < width; at += WIDTH) gather<HALF, GROUP, 1>(weights, values, base, stride, count, at, width, out, pitch);
}

// One query of a task: which keys it sees, and its running maximum and sum.
struct Query {
    size_t begin, end;  // no key outside is seen
    const uint8_t* shown;
    const float* added;
    float highest, total;
};

static Query query_of(const Attention& a, size_t row, size_t head, size_t place) {
    Query query = {0, a.keys, nullptr, nullptr, -__builtin_inff(), 0.0f};
    if (a.sinks) {
        query.highest = a.sinks[head];
        query.total = 1.0f;
    }
    if (a.masking == Masking::causal) {
        // The last query sees all keys, those before it fewer each.
        const size_t seen = a.keys + place + 1 - a.queries;
        query.end = a.keys + place + 1 > a.queries ? seen : 0;
        if (a.window && query.end > a.window) query.begin = query.end - a.window;
        return query;
    }
    const size_t at = row * a.mask_strides[0] + head * a.mask_strides[1] + place * a.mask_strides[2];
    const size_t stride = a.mask_strides[3];
    if (a.masking == Masking::boolean) {
        query.shown = (const uint8_t*)a.mask + at;
        while (query.begin < query.end && !query.shown[query.begin * stride]) query.begin++;
        while (query.begin < query.end && !query.shown[(query.end - 1) * stride]) query.end--;
    } else if (a.masking == Masking::additive) {
        query.added = (const float*)a.mask + at;
        const float nothing = -__builtin_inff();
        while (query.begin < query.end && query.added[query.begin * stride] == nothing) query.begin++;
        while (query.begin < query.end && query.added[(query.end - 1) * stride] == nothing) query.end--;
    }
    return query;
}

// Turn a query's scores of a block of keys into weights; return what the sums so far are to be multiplied with.
static float weigh(const Attention& a, Query& query, size_t first, size_t count, float* scores) {
    const float nothing = -__builtin_inff();
    const size_t stride = a.mask_strides[3];
    f32 most = broadcast(query.highest);
    for (size_t key = 0; key < KEYS; key += WIDTH) store(scores + key, load(scores + key) * a.scale);
    if (query.added)
        for (size_t key = 0; key < count; key++) scores[key] += query.added[(first + key) * stride];
    if (query.shown)
        for (size_t key = 0; key < count; key++)
            if (!query.shown[(first + key) * stride]) scores[key] = nothing;
    if (first < query.begin || first + KEYS > query.end)
        for (size_t key = 0; key < KEYS; key++)
            if (first + key < query.begin || first + key >= query.end) scores[key] = nothing;
    for (size_t key = 0; key < KEYS; key += WIDTH) {
        const f32 part = load(scores + key);
        // What is no number must stay in sight.
        most = (part > most) | (part != part) ? part : most;
    }
    float highest = greatest(most);
    for (int lane = 0; lane < WIDTH; lane++)
        if (most[lane] != most[lane]) highest = most[lane];
    if (highest == nothing) {
        for (size_t key = 0; key < KEYS; key += WIDTH) store(scores + key, f32{});
        return 1.0f;
    }
    const float factor = query.highest == highest ? 1.0f : exponential(broadcast(query.highest - highest))[0];
    f32 total = {};
    for (size_t key = 0; key < KEYS; key += WIDTH) {
        const f32 part = exponential(load(scores + key) - highest);
        store(scores + key, part);
        total += part;
    }
    query.total = query.total * factor + sum(total);
    query.highest = highest;
    return factor;
}

template <bool HALF>
static void attend_some(const Attention& a, size_t row, size_t head, size_t heads, size_t begin, size_t end) {
    alignas(64) float queries[QUERY_FLOATS];
    alignas(64) float out[QUERY_FLOATS];
    alignas(64) float scores[MOST_QUERIES * KEYS];
    Query states[MOST_QUERIES];
    const size_t pitch = (a.width + WIDTH - 1) / WIDTH * WIDTH, out_pitch = (a.value_width + WIDTH - 1) / WIDTH * WIDTH;
    const size_t length = end - begin, count = heads * length;
    const size_t shared = head / (a.heads / a.kv_heads);
    size_t first = a.keys, last = 0;
    for (size_t n = 0; n < count; n++) {
        const size_t place = begin + n % length, own = head + n / length;
        const float* from = a.query + row * a.query_strides[0] + own * a.query_strides[1] + place * a.query_strides[2];
        for (size_t at = 0; at < pitch; at++) queries[n * pitch + at] = at < a.width ? from[at] : 0.0f;
        states[n] = query_of(a, row, own, place);
        if (states[n].begin < states[n].end) {
            first = states[n].begin < first ? states[n].begin : first;
            last = states[n].end > last ? states[n].end : last;
        }
    }
    for (size_t at = 0; at < count * out_pitch; at++) out[at] = 0.0f;
    const size_t key_base = row * a.key_strides[0] + shared * a.key_strides[1];
    const size_t value_base = row * a.value_strides[0] + shared * a.value_strides[1];
    for (; first < last; first += KEYS) {
        const size_t keys = last - first < KEYS ? last - first : KEYS;
        for (size_t key = 0; key < keys; key += WIDTH) {
            // Behind the last key that one is scored again, and hidden later.
            size_t places[WIDTH];
            for (int lane = 0; lane < WIDTH; lane++)
                places[lane] = key_base + (first + (key + lane < keys ? key + lane : keys - 1)) * a.key_strides[2];
            size_t n = 0;
            for (; n + 4 <= count; n += 4) {
                for (int part = 0; part < 4; part++) {
                    const f32 four = score<HALF, 4>(queries + n * pitch, pitch, a.key, places + part * (WIDTH / 4), a.width);
                    float parts[WIDTH];
                    store(parts, four);
                    for (int q = 0; q < 4; q++)
                        __builtin_memcpy(scores + (n + q) * KEYS + key + part * (WIDTH / 4), parts + q * (WIDTH / 4), WIDTH);
                }
            }
            for (; n < count; n++)
                store(scores + n * KEYS + key, score<HALF, 1>(queries + n * pitch, pitch, a.key, places, a.width));
        }
        for (size_t n = 0; n < count; n++) {
            const float factor = weigh(a, states[n], first, keys, scores + n * KEYS);
            if (factor != 1.0f)
                for (size_t at = 0; at < out_pitch; at += WIDTH)
                    store(out + n * out_pitch + at, load(out + n * out_pitch + at) * factor);
        }
        const size_t base = value_base + first * a.value_strides[2], stride = a.value_strides[2];
        size_t n = 0;
        for (; n + 4 <= count; n += 4)
            gather_all<HALF, 4>(scores + n * KEYS, a.value, base, stride, keys, a.value_width, out + n * out_pitch, out_pitch);
        for (; n < count; n++)
            gather_all<HALF, 1>(scores + n * KEYS, a.value, base, stride, keys, a.value_width, out + n * out_pitch, out_pitch);
    }
    for (size_t n = 0; n < count; n++) {
        const size_t place = begin + n % length, own = head + n / length;
        float* to = a.out + row * a.out_strides[0] + own * a.out_strides[1] + place * a.out_strides[2];
        const float factor = states[n].total == 0.0f ? 0.0f : 1.0f / states[n].total;
        for (size_t at = 0; at < a.value_width; at++) to[at] = out[n * out_pitch + at] * factor;
    }
}

static void attend(const Attention& a, size_t row, size_t head, size_t count, size_t begin, size_t end) {
    if (a.half) return attend_some<true>(a, row, head, count, begin, end);
    return attend_some<false>(a, row, head, count, begin, end);
}
