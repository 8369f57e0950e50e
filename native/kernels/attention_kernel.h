// Scaled dot product attention for one instruction set; included inside its namespace.
//
// The difficulty is that a query must get the same result alone, in a batch behind padding, and among others that are
// read together, at the speed of a matrix product; and that one query and many want to be computed differently.
//
// Many queries are laid side by side, one in each lane: elements of keys are broadcast, there are no sums across lanes,
// and a query's maximum and sum are lanes as well. Keys and values become float32 once for all of them. With few queries
// most lanes would be idle: there lanes go along the width, and `sums` adds them up. Many queries add in the same order,
// as many partial sums as there are lanes and these in the same tree, so that nobody can tell.
//
// Keys are taken in blocks, with a running maximum and sum (Milakov and Gimelshein, "Online normalizer calculation for
// softmax", 2018). Where blocks begin depends on the other queries of a task and on what a window or padding hides, so
// no result may depend on it. Scores are binary logarithms and the maximum is rounded to a whole number: what a higher
// maximum makes of the sums so far is a power of two, and exact. Weights and values are added up key by key.
//
// Keys might be transposed instead of queries, and lie in lanes; but queries are transposed once, and keys would be
// again for each task. Blocks counted from the first key that a task sees bear padding, but no window.
//
// Queries that see no key at all get zeros.

// The most keys in a block, and the most numbers of its keys: these and those of some queries fill the first cache.
constexpr size_t KEYS = 64;
constexpr size_t KEY_FLOATS = 4096;
// Keys that meet a vector of queries at a time, in as many sums. Where instructions take no number out of a vector or from
// memory for all lanes, each broadcast is one more: there half as many keys meet two vectors.
constexpr size_t TILE_KEYS = 8;

// Vectors of values that are summed up at a time for four queries: as registers allow.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int VECTORS = 4;
constexpr int QUERY_VECTORS = 1;
#else
constexpr int VECTORS = 2;
constexpr int QUERY_VECTORS = 2;
#endif

constexpr float LOG2_E = 1.44269504088896341f;
// What no score is below, and what a maximum is before any key was seen: a hidden key is nothing beside it.
constexpr float LOWEST = -1e38f;

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

// The scores of GROUP queries and WIDTH keys; each query's are KEYS apart from those of the next.
template <bool HALF, int GROUP>
static void score_some(const float* queries, size_t pitch, const void* keys, const size_t* places, size_t width,
                       float* scores) {
    constexpr int PART = WIDTH / GROUP;
    for (int at = 0; at < WIDTH; at += PART) {
        float parts[WIDTH];
        store(parts, score<HALF, GROUP>(queries, pitch, keys, places + at, width));
        for (int q = 0; q < GROUP; q++) __builtin_memcpy(scores + q * KEYS + at, parts + q * PART, PART * sizeof(float));
    }
}

// out[q] += weights[q][k] * values[k] for GROUP queries; whole vectors of `out`, `pitch` apart. Weights of a query are
// `query_step` apart from those of the next, and `key_step` from key to key. They are added to `totals` here, if it is
// given, because the chain of additions costs nothing beside the others.
template <bool HALF, int GROUP, int COUNT>
static LANES void gather(const float* weights, size_t query_step, size_t key_step, const void* values, size_t base,
                         size_t stride, size_t count, size_t at, size_t width, float* out, size_t pitch,
                         float* totals) {
    float sum[GROUP] = {};
    if (totals)
        for (int q = 0; q < GROUP; q++) sum[q] = totals[q];
    f32 total[GROUP][COUNT];
#pragma GCC unroll 4
    for (int q = 0; q < GROUP; q++)
#pragma GCC unroll 4
        for (int v = 0; v < COUNT; v++) total[q][v] = load(out + q * pitch + at + v * WIDTH);
    for (size_t k = 0; k < count; k++) {
        f32 value[COUNT];
#pragma GCC unroll 4
        for (int v = 0; v < COUNT; v++) {
            const size_t place = at + v * WIDTH;
            value[v] = load_kv<HALF>(values, base + k * stride + place, COUNT > 1 ? WIDTH : width - place);
        }
#pragma GCC unroll 4
        for (int q = 0; q < GROUP; q++) {
            const float weight = weights[q * query_step + k * key_step];
            sum[q] += weight;
#pragma GCC unroll 4
            for (int v = 0; v < COUNT; v++) total[q][v] += weight * value[v];
        }
    }
#pragma GCC unroll 4
    for (int q = 0; q < GROUP; q++)
#pragma GCC unroll 4
        for (int v = 0; v < COUNT; v++) store(out + q * pitch + at + v * WIDTH, total[q][v]);
    if (totals)
        for (int q = 0; q < GROUP; q++) totals[q] = sum[q];
}

template <bool HALF, int GROUP>
static void gather_all(const float* weights, size_t query_step, size_t key_step, const void* values, size_t base,
                       size_t stride, size_t count, size_t width, float* out, size_t pitch, float* totals) {
    constexpr int COUNT = GROUP < 4 ? 4 : VECTORS;
    size_t at = 0;
    for (; at + COUNT * WIDTH <= width; at += COUNT * WIDTH, totals = nullptr)
        gather<HALF, GROUP, COUNT>(weights, query_step, key_step, values, base, stride, count, at, width, out, pitch,
                                   totals);
    for (; at < width; at += WIDTH, totals = nullptr)
        gather<HALF, GROUP, 1>(weights, query_step, key_step, values, base, stride, count, at, width, out, pitch,
                               totals);
}

template <int COUNT, int KEYS_AT_ONCE>
struct Products {
    f32 of[COUNT][KEYS_AT_ONCE];
};

// The products of COUNT vectors of WIDTH queries, [COUNT][pitch][WIDTH], with keys, `pitch` apart, added up as `sums`
// does: of the lanes that are STEP apart, from `lane` on.
template <int COUNT, int KEYS_AT_ONCE, int STEP = 1>
static LANES Products<COUNT, KEYS_AT_ONCE> products(const float* queries, const float* keys, size_t pitch, size_t lane) {
    if constexpr (STEP == WIDTH) {
        Products<COUNT, KEYS_AT_ONCE> total = {};
        for (size_t at = lane; at < pitch; at += WIDTH)
#pragma GCC unroll 8
            for (int k = 0; k < KEYS_AT_ONCE; k++)
#pragma GCC unroll 2
                for (int v = 0; v < COUNT; v++)
                    total.of[v][k] += load(queries + (v * pitch + at) * WIDTH) * keys[k * pitch + at];
        return total;
    } else {
        Products<COUNT, KEYS_AT_ONCE> total = products<COUNT, KEYS_AT_ONCE, 2 * STEP>(queries, keys, pitch, lane);
        const Products<COUNT, KEYS_AT_ONCE> other =
            products<COUNT, KEYS_AT_ONCE, 2 * STEP>(queries, keys, pitch, lane + STEP);
#pragma GCC unroll 2
        for (int v = 0; v < COUNT; v++)
#pragma GCC unroll 8
            for (int k = 0; k < KEYS_AT_ONCE; k++) total.of[v][k] += other.of[v][k];
        return total;
    }
}

// The scores of COUNT vectors of queries and the first `count` keys, or a few more: [COUNT][KEYS][WIDTH].
template <int COUNT>
static void score_tiles(const float* queries, const float* keys, size_t pitch, size_t count, float* scores) {
    constexpr int KEYS_AT_ONCE = TILE_KEYS / COUNT;
    for (size_t key = 0; key < count; key += KEYS_AT_ONCE) {
        const auto found = products<COUNT, KEYS_AT_ONCE>(queries, keys + key * pitch, pitch, 0);
        for (int v = 0; v < COUNT; v++)
            for (int k = 0; k < KEYS_AT_ONCE; k++) store(scores + (v * KEYS + key + k) * WIDTH, found.of[v][k]);
    }
}

// Which keys a query sees.
struct Query {
    size_t begin, end;  // no key outside is seen
    const uint8_t* shown;
    const float* added;
};

static Query query_of(const Attention& a, size_t row, size_t head, size_t place) {
    Query query = {0, a.keys, nullptr, nullptr};
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
        // Padding and what is to come is all that most masks hide.
        size_t hidden = 0;
        for (size_t key = query.begin; key < query.end; key++) hidden += !query.shown[key * stride];
        if (hidden == 0) query.shown = nullptr;
    } else if (a.masking == Masking::additive) {
        query.added = (const float*)a.mask + at;
        const float nothing = -__builtin_inff();
        while (query.begin < query.end && query.added[query.begin * stride] == nothing) query.begin++;
        while (query.begin < query.end && query.added[(query.end - 1) * stride] == nothing) query.end--;
    }
    return query;
}

// Put a mask on the scores of a query, which are `step` apart, for the `count` keys of a block.
static void hide(const Attention& a, const Query& query, size_t first, size_t count, float* scores, size_t step) {
    const float nothing = -__builtin_inff();
    const size_t stride = a.mask_strides[3];
    if (query.added) {
        for (size_t key = 0; key < count; key++) {
            const float added = query.added[(first + key) * stride] * LOG2_E;
            scores[key * step] += added < LOWEST && query.added[(first + key) * stride] != nothing ? LOWEST : added;
        }
    }
    if (query.shown)
        for (size_t key = 0; key < count; key++)
            if (!query.shown[(first + key) * stride]) scores[key * step] = nothing;
    for (size_t key = 0; key < count && first + key < query.begin; key++) scores[key * step] = nothing;
    for (size_t key = count; key > 0 && first + key > query.end; key--) scores[(key - 1) * step] = nothing;
}

// 2^(score - highest), where `highest` is whole and not below the score's nearest whole number: but for what is zero, a
// power of two is all by which the result depends on `highest`. What is not a number stays none.
static LANES f32 weight(f32 score, f32 highest) {
    const f32 inside = maximum(broadcast(3 * LOWEST), score), whole = nearest(inside), rest = inside - whole;
    f32 value = broadcast(1.3264727e-3f);
    value = value * rest + 9.671513e-3f;
    value = value * rest + 5.5507336e-2f;
    value = value * rest + 2.4022242e-1f;
    value = value * rest + 6.93147e-1f;
    value = value * rest + 1.0f;
    return scaled(value, whole - highest);
}

// Running maxima and sums of queries.
struct Sums {
    alignas(64) float highest[MOST_QUERIES];
    alignas(64) float total[MOST_QUERIES];
};

// Turn the scores of one query into weights, which `gather` adds up; return what the sums so far are to be multiplied
// with. `count` is a multiple of WIDTH.
static float weigh_one(float* scores, size_t count, float& highest, float& total) {
    f32 most = broadcast(highest);
    for (size_t key = 0; key < count; key += WIDTH) most = maximum(load(scores + key), most);
    const f32 limit = nearest(broadcast(greatest(most)));
    const float factor = scaled(broadcast(1.0f), highest - limit)[0];
    for (size_t key = 0; key < count; key += WIDTH) store(scores + key, weight(load(scores + key), limit));
    total *= factor;
    highest = limit[0];
    return factor;
}

// The same for WIDTH queries side by side, with the weights added up.
static f32 weigh(float* scores, size_t count, float* highest, float* total) {
    f32 most = load(highest);
    for (size_t key = 0; key < count; key++) most = maximum(load(scores + key * WIDTH), most);
    const f32 limit = nearest(most), factor = scaled(broadcast(1.0f), load(highest) - limit);
    f32 sum = load(total) * factor;
    for (size_t key = 0; key < count; key++) {
        const f32 part = weight(load(scores + key * WIDTH), limit);
        store(scores + key * WIDTH, part);
        sum += part;
    }
    store(highest, limit);
    store(total, sum);
    return factor;
}

static LANES size_t padded(size_t width) { return (width + WIDTH - 1) / WIDTH * WIDTH; }

// The queries [begin, end) of `heads` heads, which share keys and values: a call of `attend`.
struct Task {
    const Attention& a;
    size_t row, head, heads, begin, count;
    size_t key_base, value_base;
    size_t first, last;  // keys outside are not seen
    Query queries[MOST_QUERIES];
    Sums sums;

    Task(const Attention& attention, size_t row_, size_t head_, size_t heads_, size_t begin_, size_t end)
        : a(attention), row(row_), head(head_), heads(heads_), begin(begin_), count(heads_ * (end - begin_)) {
        const size_t shared = head / (a.heads / a.kv_heads);
        key_base = row * a.key_strides[0] + shared * a.key_strides[1];
        value_base = row * a.value_strides[0] + shared * a.value_strides[1];
        first = a.keys, last = 0;
        for (size_t n = 0; n < MOST_QUERIES; n++) sums.highest[n] = LOWEST, sums.total[n] = 0.0f;
        for (size_t n = 0; n < count; n++) {
            const bool known = n % heads > 0 && a.mask_strides[1] == 0;
            queries[n] = known ? queries[n - 1] : query_of(a, row, own_head(n), place(n));
            if (queries[n].begin < queries[n].end) {
                first = queries[n].begin < first ? queries[n].begin : first;
                last = queries[n].end > last ? queries[n].end : last;
            }
            if (!a.sinks) continue;
            const f32 sink = broadcast(a.sinks[own_head(n)] * LOG2_E);
            const f32 limit = nearest(maximum(sink, broadcast(LOWEST)));
            sums.highest[n] = limit[0];
            sums.total[n] = weight(sink, limit)[0];
        }
    }

    // Neighbours are the same place's heads, which see the same keys.
    size_t own_head(size_t n) const { return head + n % heads; }
    size_t place(size_t n) const { return begin + n / heads; }
    const float* query(size_t n) const {
        return a.query + row * a.query_strides[0] + own_head(n) * a.query_strides[1] + place(n) * a.query_strides[2];
    }

    // How many of a block's keys are to be looked at for WIDTH queries.
    size_t seen(size_t n, size_t first_, size_t most) const {
        size_t end = 0;
        for (size_t q = n; q < n + WIDTH && q < count; q++) end = queries[q].end > end ? queries[q].end : end;
        return end <= first_ ? 0 : end - first_ < most ? end - first_ : most;
    }

    void put(size_t n, const float* values) const {
        float* to = a.out + row * a.out_strides[0] + own_head(n) * a.out_strides[1] + place(n) * a.out_strides[2];
        const float factor = sums.total[n] == 0.0f ? 0.0f : 1.0f / sums.total[n];
        for (size_t at = 0; at < a.value_width; at++) to[at] = values[at] * factor;
    }
};

static void rescale(float* values, size_t width, float factor) {
    if (factor == 1.0f) return;
    for (size_t at = 0; at < width; at += WIDTH) store(values + at, load(values + at) * factor);
}

template <bool HALF>
static void attend_few(Task& task) {
    const Attention& a = task.a;
    alignas(64) float queries[QUERY_FLOATS];
    alignas(64) float out[QUERY_FLOATS];
    alignas(64) float scores[MOST_QUERIES * KEYS];
    const size_t pitch = padded(a.width), out_pitch = padded(a.value_width), count = task.count;
    const float scale = a.scale * LOG2_E;
    for (size_t n = 0; n < count; n++) {
        const float* from = task.query(n);
        for (size_t at = 0; at < pitch; at++) queries[n * pitch + at] = at < a.width ? from[at] * scale : 0.0f;
    }
    for (size_t at = 0; at < count * out_pitch; at++) out[at] = 0.0f;
    for (size_t first = task.first; first < task.last; first += KEYS) {
        const size_t keys = task.last - first < KEYS ? task.last - first : KEYS;
        for (size_t key = 0; key < keys; key += WIDTH) {
            // Behind the last key that one is scored again, and hidden later.
            size_t places[WIDTH];
            for (int lane = 0; lane < WIDTH; lane++)
                places[lane] = task.key_base + (first + (key + lane < keys ? key + lane : keys - 1)) * a.key_strides[2];
            size_t n = 0;
            for (; n + 4 <= count; n += 4)
                score_some<HALF, 4>(queries + n * pitch, pitch, a.key, places, a.width, scores + n * KEYS + key);
            for (; n + 2 <= count; n += 2)
                score_some<HALF, 2>(queries + n * pitch, pitch, a.key, places, a.width, scores + n * KEYS + key);
            for (; n < count; n++)
                score_some<HALF, 1>(queries + n * pitch, pitch, a.key, places, a.width, scores + n * KEYS + key);
        }
        for (size_t n = 0; n < count; n++) {
            hide(a, task.queries[n], first, keys, scores + n * KEYS, 1);
            for (size_t key = keys; key < padded(keys); key++) scores[n * KEYS + key] = -__builtin_inff();
            const float factor = weigh_one(scores + n * KEYS, padded(keys), task.sums.highest[n], task.sums.total[n]);
            rescale(out + n * out_pitch, out_pitch, factor);
        }
        const size_t base = task.value_base + first * a.value_strides[2], stride = a.value_strides[2];
        const auto gather_some = [&]<int GROUP>(size_t n) {
            gather_all<HALF, GROUP>(scores + n * KEYS, KEYS, 1, a.value, base, stride, keys, a.value_width,
                                    out + n * out_pitch, out_pitch, task.sums.total + n);
        };
        size_t n = 0;
        for (; n + 4 <= count; n += 4) gather_some.template operator()<4>(n);
        for (; n + 2 <= count; n += 2) gather_some.template operator()<2>(n);
        for (; n < count; n++) gather_some.template operator()<1>(n);
    }
    for (size_t n = 0; n < count; n++) task.put(n, out + n * out_pitch);
}

// Copy rows of keys or values as whole vectors of float32.
template <bool HALF>
static LANES void widen(const void* from, size_t base, size_t stride, size_t count, size_t width, float* to) {
    for (size_t row = 0; row < count; row++)
        for (size_t at = 0; at < width; at += WIDTH, to += WIDTH)
            store(to, load_kv<HALF>(from, base + row * stride + at, width - at));
}

// Copy queries, scaled, WIDTH of them side by side: [vectors][width][WIDTH].
static void lay_out(const Task& task, float* to, size_t pitch) {
    const float scale = task.a.scale * LOG2_E;
    for (size_t n = 0; n < task.count; n += WIDTH) {
        const float* from[WIDTH];
        for (size_t lane = 0; lane < WIDTH; lane++) from[lane] = task.query(n + lane < task.count ? n + lane : n);
        for (size_t at = 0; at < pitch; at += WIDTH) {
            f32 side[WIDTH];
            for (int lane = 0; lane < WIDTH; lane++)
                side[lane] = load_kv<false>(from[lane], at, task.a.width - at) * scale;
            transpose(side);
            for (int lane = 0; lane < WIDTH; lane++, to += WIDTH) store(to, side[lane]);
        }
    }
}

template <bool HALF>
static void attend_many(Task& task) {
    const Attention& a = task.a;
    alignas(64) float queries[QUERY_FLOATS];
    alignas(64) float out[QUERY_FLOATS];
    alignas(64) float scores[MOST_QUERIES * KEYS];  // [vectors][KEYS][WIDTH]
    alignas(64) float block[KEY_FLOATS];            // of keys first, then of their values
    const size_t pitch = padded(a.width), out_pitch = padded(a.value_width), lanes = padded(task.count);
    lay_out(task, queries, pitch);
    for (size_t at = 0; at < lanes * out_pitch; at++) out[at] = 0.0f;
    // Whole tiles: what is behind the last key is zero, and its scores are not looked at.
    const size_t fitting = KEY_FLOATS / (pitch > out_pitch ? pitch : out_pitch) / TILE_KEYS * TILE_KEYS;
    const size_t most = fitting < KEYS ? fitting : KEYS;
    for (size_t first = task.first; first < task.last; first += most) {
        const size_t count = task.last - first < most ? task.last - first : most;
        widen<HALF>(a.key, task.key_base + first * a.key_strides[2], a.key_strides[2], count, a.width, block);
        for (size_t at = count * pitch; at < (count + TILE_KEYS - 1) / TILE_KEYS * TILE_KEYS * pitch; at++)
            block[at] = 0.0f;
        size_t seen[MOST_QUERIES / WIDTH];
        for (size_t n = 0; n < lanes; n += WIDTH) seen[n / WIDTH] = task.seen(n, first, count);
        size_t scored = 0;
        for (; QUERY_VECTORS == 2 && scored + 2 * WIDTH <= lanes; scored += 2 * WIDTH) {
            const size_t* of = seen + scored / WIDTH;
            score_tiles<2>(queries + scored * pitch, block, pitch, of[0] > of[1] ? of[0] : of[1], scores + scored * KEYS);
        }
        for (; scored < lanes; scored += WIDTH)
            score_tiles<1>(queries + scored * pitch, block, pitch, seen[scored / WIDTH], scores + scored * KEYS);
        for (size_t n = 0; n < task.count; n++)
            hide(a, task.queries[n], first, seen[n / WIDTH], scores + n / WIDTH * WIDTH * KEYS + n % WIDTH, WIDTH);
        for (size_t n = 0; n < lanes; n += WIDTH) {
            float factors[WIDTH];
            store(factors, weigh(scores + n * KEYS, seen[n / WIDTH], task.sums.highest + n, task.sums.total + n));
            for (int lane = 0; lane < WIDTH; lane++) rescale(out + (n + lane) * out_pitch, out_pitch, factors[lane]);
        }
        const size_t stride = a.value_strides[2];
        widen<HALF>(a.value, task.value_base + first * stride, stride, count, a.value_width, block);
        for (size_t n = 0; n < lanes; n += 4)
            gather_all<false, 4>(scores + n / WIDTH * WIDTH * KEYS + n % WIDTH, 1, WIDTH, block, 0, out_pitch,
                                 seen[n / WIDTH], out_pitch, out + n * out_pitch, out_pitch, nullptr);
    }
    for (size_t n = 0; n < task.count; n++) task.put(n, out + n * out_pitch);
}

template <bool HALF>
static void attend_some(Task& task) {
    const size_t pitch = padded(task.a.width), out_pitch = padded(task.a.value_width);
    const size_t widest = pitch > out_pitch ? pitch : out_pitch;
    const bool fits = widest * TILE_KEYS <= KEY_FLOATS && widest * padded(task.count) <= QUERY_FLOATS;
    if (fits && task.count * 4 >= padded(task.count) * 3) return attend_many<HALF>(task);
    return attend_few<HALF>(task);
}

static void attend(const Attention& a, size_t row, size_t head, size_t count, size_t begin, size_t end) {
    Task task(a, row, head, count, begin, end);
    if (a.half) return attend_some<true>(task);
    return attend_some<false>(task);
}
