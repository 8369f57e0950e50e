// Normalisation, rotation, gates, and what a sampler asks of a row of logits; included inside the set's namespace.

static void glu(Gate gate, const float* x, const float* y, float* out, size_t count) {
    // gelu is the one that mlx_lm's models use, with tanh: x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 * x^3)).
    const auto one = [gate](f32 a, f32 b) __attribute__((always_inline)) {
        const f32 inner = gate == Gate::silu ? a : 1.5957691216057308f * (a + 0.044715f * a * a * a);
        return a / (1.0f + exponential(-inner)) * b;
    };
    size_t at = 0;
    for (; at + WIDTH <= count; at += WIDTH) store(out + at, one(load(x + at), load(y + at)));
    if (at < count) store_some(out + at, one(load_some(x + at, count - at), load_some(y + at, count - at)), count - at);
}

static void rms_norm(const float* x, const float* weight, float epsilon, float* out, size_t count) {
    f32 total = {};
    size_t at = 0;
    for (; at + WIDTH <= count; at += WIDTH) {
        const f32 part = load(x + at);
        total += part * part;
    }
    if (at < count) {
        const f32 part = load_some(x + at, count - at);
        total += part * part;
    }
    const float factor = 1.0f / __builtin_sqrtf(sum(total) / (float)count + epsilon);
    const f32 ones = broadcast(1.0f);
    for (at = 0; at + WIDTH <= count; at += WIDTH) {
        store(out + at, load(x + at) * factor * (weight ? load(weight + at) : ones));
    }
    if (at < count) {
        const f32 by = weight ? load_some(weight + at, count - at) : ones;
        store_some(out + at, load_some(x + at, count - at) * factor * by, count - at);
    }
}

static void rotate(const float* x, const float* cosines, const float* sines, bool neighbours, size_t width, size_t whole,
                   float* out) {
    const size_t half = width / 2;
    size_t at = 0;
    if (neighbours) {
        for (; at < half; at++) {
            const float a = x[2 * at], b = x[2 * at + 1];
            out[2 * at] = a * cosines[at] - b * sines[at];
            out[2 * at + 1] = a * sines[at] + b * cosines[at];
        }
    } else {
        for (; at + WIDTH <= half; at += WIDTH) {
            const f32 a = load(x + at), b = load(x + half + at), c = load(cosines + at), s = load(sines + at);
            store(out + at, a * c - b * s);
            store(out + half + at, a * s + b * c);
        }
        for (; at < half; at++) {
            const float a = x[at], b = x[half + at];
            out[at] = a * cosines[at] - b * sines[at];
            out[half + at] = a * sines[at] + b * cosines[at];
        }
    }
    for (at = width; at < whole; at++) out[at] = x[at];
}

static void narrow(const float* x, uint16_t* out, size_t count) {
    size_t at = 0;
    for (; at + WIDTH <= count; at += WIDTH) store_float16(out + at, load(x + at));
    if (at < count) {
        uint16_t rest[WIDTH];
        store_float16(rest, load_some(x + at, count - at));
        __builtin_memcpy(out + at, rest, (count - at) * sizeof *out);
    }
}

static float log_sum_exp(const float* x, size_t count) {
    f32 most = broadcast(-__builtin_inff());
    float highest = -__builtin_inff();
    size_t at = 0;
    for (; at + WIDTH <= count; at += WIDTH) most = maximum(load(x + at), most);
    highest = greatest(most);
    for (; at < count; at++) highest = x[at] > highest ? x[at] : highest;
    // All minus infinity, or one plus infinity: a difference to it would be no number.
    const bool finite = highest > -__builtin_inff() && highest < __builtin_inff();
    const float base = finite ? highest : 0.0f;
    f32 total = {};
    for (at = 0; at + WIDTH <= count; at += WIDTH) total += exponential(load(x + at) - base);
    float rest = sum(total);
    for (; at < count; at++) rest += exponential(broadcast(x[at] - base))[0];
    return base + __builtin_logf(rest);
}

static void block_maxima(const float* x, size_t count, size_t block, float* maxima) {
    const f32 infinite = broadcast(__builtin_inff());
    for (size_t begin = 0; begin < count; begin += block) {
        const size_t end = begin + block < count ? begin + block : count;
        f32 most = broadcast(-__builtin_inff());
        size_t at = begin;
        for (; at + WIDTH <= end; at += WIDTH) {
            const f32 part = load(x + at);
            most = maximum(part == part ? part : infinite, most);
        }
        float highest = greatest(most);
        for (; at < end; at++) highest = x[at] > highest ? x[at] : (x[at] == x[at] ? highest : __builtin_inff());
        *maxima++ = highest;
    }
}

static void divide(const float* x, float divisor, float* out, size_t count) {
    size_t at = 0;
    for (; at + WIDTH <= count; at += WIDTH) store(out + at, load(x + at) / divisor);
    for (; at < count; at++) out[at] = x[at] / divisor;
}

static size_t argmax(const float* x, size_t count) {
    f32 most = broadcast(-__builtin_inff());
    i32 strange = {};
    size_t at = 0;
    for (; at + WIDTH <= count; at += WIDTH) {
        const f32 part = load(x + at);
        most = maximum(part, most);
        strange |= part != part;
    }
    float highest = greatest(most);
    bool any = sum(to_float(strange)) != 0.0f;
    for (; at < count; at++) {
        highest = x[at] > highest ? x[at] : highest;
        any |= x[at] != x[at];
    }
    for (at = 0; at < count; at++)
        if (any ? x[at] != x[at] : x[at] == highest) return at;
    return 0;
}
