// Vectors of one instruction set; included inside that set's namespace.
//
// GCC's and Clang's vector extensions carry most of it: the width follows from the flags that the translation unit is
// compiled with, and arithmetic is written once. Only the product of bytes and the conversion of half-precision numbers
// need the processor's own instructions.
//
// Everything has internal linkage or lives in the set's own namespace, and nothing of the standard library is called:
// an inline function compiled with AVX-512 and shared by name with other units would crash older processors.

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX2__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

#define LANES inline __attribute__((always_inline))

typedef float f32 __attribute__((vector_size(WIDTH * 4)));
typedef int32_t i32 __attribute__((vector_size(WIDTH * 4)));
typedef uint32_t u32 __attribute__((vector_size(WIDTH * 4)));
typedef uint16_t u16 __attribute__((vector_size(WIDTH * 2)));
// Four bytes for each lane.
typedef uint8_t u8 __attribute__((vector_size(WIDTH * 4)));

template <typename V, typename T>
static LANES V load(const T* from) {
    V vector;
    __builtin_memcpy(&vector, from, sizeof vector);
    return vector;
}

static LANES f32 load(const float* from) { return load<f32>(from); }

static LANES void store(float* to, f32 vector) { __builtin_memcpy(to, &vector, sizeof vector); }

// The first `count` lanes, zero in the others.
static LANES f32 load_some(const float* from, size_t count) {
    f32 vector = {};
    __builtin_memcpy(&vector, from, count * sizeof(float));
    return vector;
}

static LANES void store_some(float* to, f32 vector, size_t count) {
    __builtin_memcpy(to, &vector, count * sizeof(float));
}

// A number minus zero is itself, and costs nothing; plus zero it need not be, and is an addition.
static LANES f32 broadcast(float value) { return value - f32{}; }

static LANES i32 broadcast(int32_t value) { return i32{} + value; }

static LANES i32 broadcast_bytes(const int8_t* four) {
    int32_t value;
    __builtin_memcpy(&value, four, sizeof value);
    return i32{} + value;
}

// Numbers of one byte, as bytes. For AVX2 the compiler would take them one by one.
typedef int8_t i8 __attribute__((vector_size(WIDTH)));
static LANES i8 to_bytes(i32 vector) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    const __m256i all = (__m256i)vector;
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    const __m128i bytes = _mm_packs_epi16(halves, halves);
    i8 result;
    __builtin_memcpy(&result, &bytes, sizeof result);
    return result;
#else
    return __builtin_convertvector(vector, i8);
#endif
}

static LANES f32 to_float(i32 vector) { return __builtin_convertvector(vector, f32); }

// Where one is not a number, b.
static LANES f32 maximum(f32 a, f32 b) {
#if defined(__AVX512F__)
    return (f32)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
    return (f32)_mm256_max_ps((__m256)a, (__m256)b);
#else
    return a > b ? a : b;
#endif
}

static LANES f32 absolute(f32 a) { return (f32)((u32)a & 0x7fffffffu); }

// To the nearest, ties to even; for values below 2^22.
static LANES f32 rounded(f32 a) {
    const f32 magic = broadcast(12582912.0f);  // 1.5 * 2^23: its last bit counts ones
    return (a + magic) - magic;
}

// To the nearest whole number, ties to even.
static LANES f32 nearest(f32 a) {
#if defined(__AVX512F__)
    return (f32)_mm512_maskz_roundscale_ps(0xffff, (__m512)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return (f32)_mm256_round_ps((__m256)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__aarch64__)
    return (f32)vrndnq_f32((float32x4_t)a);
#else
    return absolute(a) < 4194304.0f ? rounded(a) : a;  // those beyond 2^22 that are not whole are halves
#endif
}

// Times two to a whole number of at most 0; what comes below 2^-126 may be zero.
static LANES f32 scaled(f32 value, f32 power) {
#if defined(__AVX512F__)
    return (f32)_mm512_maskz_scalef_ps(0xffff, (__m512)value, (__m512)power);
#else
    const i32 exponent = __builtin_convertvector(maximum(power, broadcast(-127.0f)), i32);
    return value * (f32)((exponent + 127) << 23);
#endif
}

// One number from all lanes, each half combined with the other, always in the same order.
template <typename V, typename Combine>
static LANES auto reduced(V vector, Combine combine) {
#if defined(__AVX512F__)
    const auto eight = combine(__builtin_shufflevector(vector, vector, 0, 1, 2, 3, 4, 5, 6, 7),
                               __builtin_shufflevector(vector, vector, 8, 9, 10, 11, 12, 13, 14, 15));
#else
    const auto eight = vector;
#endif
#if defined(__AVX2__)
    const auto four = combine(__builtin_shufflevector(eight, eight, 0, 1, 2, 3), __builtin_shufflevector(eight, eight, 4, 5, 6, 7));
#else
    const auto four = eight;
#endif
    const auto two = combine(four, __builtin_shufflevector(four, four, 2, 3, 2, 3));
    return combine(two, __builtin_shufflevector(two, two, 1, 1, 1, 1))[0];
}

template <typename V>
static LANES auto sum(V vector) {
    return reduced(vector, [](auto a, auto b) __attribute__((always_inline)) { return a + b; });
}

template <typename V>
static LANES auto greatest(V vector) {
    return reduced(vector, [](auto a, auto b) __attribute__((always_inline)) { return a > b ? a : b; });
}

static LANES f32 from_bfloat16(const uint16_t* from) {
    return (f32)(__builtin_convertvector(load<u16>(from), u32) << 16);
}

static LANES f32 from_float16(const uint16_t* from) {
#if defined(__AVX512F__)
    return (f32)_mm512_cvtph_ps(load<__m256i>(from));
#elif defined(__F16C__)
    return (f32)_mm256_cvtph_ps(load<__m128i>(from));
#elif defined(__aarch64__)
    return (f32)vcvt_f32_f16(load<float16x4_t>(from));
#else
    const u32 bits = __builtin_convertvector(load<u16>(from), u32);
    const u32 magnitude = (bits & 0x7fffu) << 13;
    // The exponent's bias differs by 112, subnormal numbers included; infinities and the rest need all its bits set.
    const u32 finite = (u32)((f32)magnitude * 0x1p112f);
    const u32 special = magnitude | 0x7f800000u;
    return (f32)((magnitude >= 0x0f800000u ? special : finite) | (bits & 0x8000u) << 16);
#endif
}

static LANES float from_float16(uint16_t half) {
    uint16_t halves[WIDTH] = {half};
    return from_float16(halves)[0];
}

// To the nearest, ties to even; what is too great becomes infinite.
static LANES void store_float16(uint16_t* to, f32 vector) {
#if defined(__AVX512F__)
    const __m256i halves = _mm512_cvtps_ph((__m512)vector, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
    const __m128i halves = _mm256_cvtps_ph((__m256)vector, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__aarch64__)
    const float16x4_t halves = vcvt_f16_f32((float32x4_t)vector);
#else
    const u32 magnitude = (u32)vector & 0x7fffffffu;
    const u32 normal = ((magnitude + 0xfffu + (magnitude >> 13 & 1)) >> 13) - (112u << 10);
    // The sum's last bit is the least that a float16 has.
    const u32 subnormal = (u32)((f32)magnitude + 0.5f) - 0x3f000000u;
    const u32 special = magnitude > 0x7f800000u ? u32{} + 0x7e00u : u32{} + 0x7c00u;
    const u32 finite = magnitude < 0x38800000u ? subnormal : normal;
    const u16 halves = __builtin_convertvector((magnitude >= 0x477ff000u ? special : finite) | ((u32)vector >> 16 & 0x8000u), u16);
#endif
    __builtin_memcpy(to, &halves, sizeof halves);
}

// Adds up WIDTH vectors at a time: lane n of the result is the sum of vectors[n], always in the same order.
static LANES f32 sums(f32* v) {
#if defined(__AVX512F__)
    for (int n = 0; n < 16; n += 2) {
        v[n / 2] = __builtin_shufflevector(v[n], v[n + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                   __builtin_shufflevector(v[n], v[n + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
    }
    for (int n = 0; n < 8; n += 2) {
        v[n / 2] = __builtin_shufflevector(v[n], v[n + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
                   __builtin_shufflevector(v[n], v[n + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    }
    for (int n = 0; n < 4; n += 2) {
        v[n / 2] = __builtin_shufflevector(v[n], v[n + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
                   __builtin_shufflevector(v[n], v[n + 1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    }
    return __builtin_shufflevector(v[0], v[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
           __builtin_shufflevector(v[0], v[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif defined(__AVX2__)
    for (int n = 0; n < 8; n += 2) {
        v[n / 2] = __builtin_shufflevector(v[n], v[n + 1], 0, 1, 2, 3, 8, 9, 10, 11) +
                   __builtin_shufflevector(v[n], v[n + 1], 4, 5, 6, 7, 12, 13, 14, 15);
    }
    for (int n = 0; n < 4; n += 2) {
        v[n / 2] = __builtin_shufflevector(v[n], v[n + 1], 0, 1, 4, 5, 8, 9, 12, 13) +
                   __builtin_shufflevector(v[n], v[n + 1], 2, 3, 6, 7, 10, 11, 14, 15);
    }
    return __builtin_shufflevector(v[0], v[1], 0, 2, 4, 6, 8, 10, 12, 14) +
           __builtin_shufflevector(v[0], v[1], 1, 3, 5, 7, 9, 11, 13, 15);
#else
    for (int n = 0; n < 4; n += 2) {
        v[n / 2] = __builtin_shufflevector(v[n], v[n + 1], 0, 1, 4, 5) +
                   __builtin_shufflevector(v[n], v[n + 1], 2, 3, 6, 7);
    }
    return __builtin_shufflevector(v[0], v[1], 0, 2, 4, 6) + __builtin_shufflevector(v[0], v[1], 1, 3, 5, 7);
#endif
}

// Lane m of vector n becomes lane n of vector m. Interleaving the first half of the vectors with the second moves a bit
// from the number of the vector to that of the lane; after as many times as there are bits all are moved.
static LANES void transpose(f32* v) {
    for (int bit = 1; bit < WIDTH; bit *= 2) {
        f32 mixed[WIDTH];
        for (int n = 0; n < WIDTH / 2; n++) {
            const f32 a = v[n], b = v[n + WIDTH / 2];
#if defined(__AVX512F__)
            mixed[2 * n] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            mixed[2 * n + 1] = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
            mixed[2 * n] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
            mixed[2 * n + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
            mixed[2 * n] = __builtin_shufflevector(a, b, 0, 4, 1, 5);
            mixed[2 * n + 1] = __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
        }
        for (int n = 0; n < WIDTH; n++) v[n] = mixed[n];
    }
}

// e^x within two units in the last place; what is not a number stays none. The polynomial is that of Cephes' expf.
static LANES f32 exponential(f32 x) {
    const f32 least = broadcast(-87.33f), most = broadcast(88.72f);
    const f32 inside = x < least ? least : (x > most ? most : x);
    const f32 power = rounded(inside * 1.44269504088896341f);
    f32 rest = inside - power * 0.693359375f;
    rest = rest - power * -2.12194440e-4f;
    f32 value = broadcast(1.9875691500e-4f);
    value = value * rest + 1.3981999507e-3f;
    value = value * rest + 8.3334519073e-3f;
    value = value * rest + 4.1665795894e-2f;
    value = value * rest + 1.6666665459e-1f;
    value = value * rest + 5.0000001201e-1f;
    value = value * (rest * rest) + rest + 1.0f;
    // In two steps: 2^128 is no float32, and e^88.72 is one.
    const i32 exponent = __builtin_convertvector(power == power ? power : f32{}, i32);
    const i32 part = exponent >> 1;
    value = value * (f32)((part + 127) << 23) * (f32)((exponent - part + 127) << 23);
    value = x < least ? f32{} : value;
    return x > most ? broadcast(__builtin_inff()) : value;
}

// The products of unsigned bytes of weights and signed bytes of activations, summed by fours into each lane. Those of
// weights of four bits fit into sixteen bits meanwhile.
template <int BITS>
struct Sum {
    i32 total = {};

    // What weights are lessened by before they are multiplied: NEON's product is one of signed bytes.
#if defined(__ARM_FEATURE_DOTPROD)
    static constexpr uint32_t TAKEN_OFF = BITS == 8 ? 128 : 0;
#else
    static constexpr uint32_t TAKEN_OFF = 0;
#endif

#if defined(__AVX512VNNI__)
    LANES void add(u8 weights, i32 values) {
        total = (i32)_mm512_dpbusd_epi32((__m512i)total, (__m512i)weights, (__m512i)values);
    }
    LANES i32 lanes() const { return total; }
#elif defined(__AVX512F__)
    // 8 * 2 * 15 * 127 is below 2^15: a block's sum of pairs cannot overflow.
    LANES void add(u8 weights, i32 values) {
        if constexpr (BITS == 4) {
            total = (i32)_mm512_add_epi16((__m512i)total, _mm512_maddubs_epi16((__m512i)weights, (__m512i)values));
        } else {
            const __m512i even = _mm512_and_si512((__m512i)weights, _mm512_set1_epi16(0xff));
            const __m512i odd = _mm512_srli_epi16((__m512i)weights, 8);
            const __m512i even_values = _mm512_srai_epi16(_mm512_slli_epi16((__m512i)values, 8), 8);
            const __m512i odd_values = _mm512_srai_epi16((__m512i)values, 8);
            total += (i32)_mm512_madd_epi16(even, even_values) + (i32)_mm512_madd_epi16(odd, odd_values);
        }
    }
    LANES i32 lanes() const {
        return BITS == 4 ? (i32)_mm512_madd_epi16((__m512i)total, _mm512_set1_epi16(1)) : total;
    }
#elif defined(__AVX2__)
    // Of weights of eight bits each half by itself. 8 * 2 * 15 * 127 is below 2^15, as above.
    i32 high = {};
    LANES void add(u8 weights, i32 values) {
        if constexpr (BITS == 4) {
            add_pairs(total, weights, values);
        } else {
            add_pairs(total, weights & (uint8_t)15, values);
            add_pairs(high, weights >> 4, values);
        }
    }
    LANES i32 lanes() const {
        const i32 low = (i32)_mm256_madd_epi16((__m256i)total, _mm256_set1_epi16(1));
        return BITS == 4 ? low : low + (i32)_mm256_madd_epi16((__m256i)high, _mm256_set1_epi16(16));
    }
    static LANES void add_pairs(i32& to, u8 weights, i32 values) {
        to = (i32)_mm256_add_epi16((__m256i)to, _mm256_maddubs_epi16((__m256i)weights, (__m256i)values));
        // In this order: a tree of additions would need more registers than there are.
        asm("" : "+x"(to));
    }
#elif defined(__ARM_FEATURE_DOTPROD)
    LANES void add(u8 weights, i32 values) {
        total = (i32)vdotq_s32((int32x4_t)total, (int8x16_t)(weights ^ (uint8_t)TAKEN_OFF), (int8x16_t)values);
    }
    LANES i32 lanes() const { return total; }
#else
    // Of each pair the first and the second apart: 255 * 127 is below 2^15, and 8 * 2 * 15 * 127 as well.
    LANES void add(u8 weights, i32 values) {
        const i16 first = (i16)((pairs)weights & 255) * ((i16)((pairs)values << 8) >> 8);
        const i16 second = (i16)((pairs)weights >> 8) * ((i16)values >> 8);
        if constexpr (BITS == 4) {
            total = (i32)((i16)total + first + second);
        } else {
            total += halves_of(first) + halves_of(second);
        }
    }
    LANES i32 lanes() const { return BITS == 4 ? halves_of((i16)total) : total; }

   private:
    typedef int16_t i16 __attribute__((vector_size(WIDTH * 4)));
    typedef uint16_t pairs __attribute__((vector_size(WIDTH * 4)));
    static LANES i32 halves_of(i16 sums) { return ((i32)((u32)sums << 16) >> 16) + ((i32)sums >> 16); }
#endif
};
