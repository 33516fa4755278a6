// Loops that are plain C++ in every variant: each variant's file compiles them for its own instruction set, which the
// compiler then vectorises for. Inlined, so that they take the target of the function that calls them.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "abi.h"

#define OZ_INLINE static inline __attribute__((always_inline))

namespace oz {

OZ_INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

OZ_INLINE float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

OZ_INLINE float from_half(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, rest = (half & 0x7fffu) << 13;
    // The exponent's bias differs by 112; the product is exact, and makes normal numbers of subnormal halves.
    const uint32_t number = bits_of(float_of(rest) * 0x1p112f);
    return float_of(sign | (rest < 0x7c00u << 13 ? number : rest | 0x7f800000u));
}

// The nearest half, ties to even; finite numbers beyond the largest half become it.
OZ_INLINE uint16_t to_half(float value) {
    const uint32_t sign = bits_of(value) >> 16 & 0x8000u, rest = bits_of(value) & 0x7fffffffu;
    const uint32_t normal = (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1)) >> 13;
    // Added to 1/2 a number below 2^-14 is rounded to the steps of a subnormal half.
    const uint32_t subnormal = bits_of(float_of(rest) + 0.5f) - 0x3f000000u;
    uint32_t half = rest < 0x38800000u ? subnormal : normal;
    half = rest > 0x477fe000u ? 0x7bffu : half;
    half = rest >= 0x7f800000u ? (rest > 0x7f800000u ? 0x7e00u : 0x7c00u) : half;
    return static_cast<uint16_t>(sign | half);
}

// Added to a number below 2^22 it rounds that to the nearest integer, ties to even, which then is in the low bits.
constexpr float kRounder = 12582912.0f;
constexpr uint32_t kRounderBits = 0x4b400000u;

// Symmetric int8: code = round(x / scale), scale = max|x| / 127. A row of zeros has scale 1. A row that holds an
// infinity or a NaN has scale NaN, so that its products say so.
OZ_INLINE void quantise_row(const float *x, int64_t columns, int group, int8_t *codes, float *scale, int32_t *sums) {
    uint32_t highest = 0;  // of the bits of |x|, which order as the numbers do, with NaN on top
    for (int64_t k = 0; k < columns; ++k) {
        const uint32_t magnitude = bits_of(x[k]) & 0x7fffffffu;
        highest = magnitude > highest ? magnitude : highest;
    }
    const bool finite = highest < 0x7f800000u;
    float step = float_of(highest) / 127.0f;
    if (!(step > 0.0f)) step = 1.0f;
    *scale = finite ? step : std::numeric_limits<float>::quiet_NaN();
    if (!finite) {
        std::memset(codes, 0, static_cast<size_t>(columns));
        std::memset(sums, 0, static_cast<size_t>(columns / group) * sizeof *sums);
        return;
    }
    for (int64_t g = 0; g < columns / group; ++g) {
        int32_t sum = 0;
        for (int64_t k = g * group; k < (g + 1) * group; ++k) {
            // Below the normal numbers a scale is coarse, and a ratio may pass 127.
            float ratio = x[k] / step;
            ratio = ratio < -127.0f ? -127.0f : ratio;
            ratio = ratio > 127.0f ? 127.0f : ratio;
            const int32_t code = static_cast<int32_t>(bits_of(ratio + kRounder) - kRounderBits);
            codes[k] = static_cast<int8_t>(code);
            sum += code;
        }
        sums[g] = sum;
    }
}

// e^x within 2 units in the last place for x in [-87.3, 88], and its value at the nearer end beyond.
OZ_INLINE float exponential(float x) {
    x = x < -87.3f ? -87.3f : x;
    x = x > 88.0f ? 88.0f : x;
    const float shifted = x * 1.44269504f + kRounder;
    const float power = shifted - kRounder;
    // ln 2 in two parts: products with the first are exact.
    const float rest = (x - power * 0.693359375f) - power * -2.12194440e-4f;
    float sum = 1.98756915e-4f;
    sum = sum * rest + 1.39819995e-3f;
    sum = sum * rest + 8.33345191e-3f;
    sum = sum * rest + 4.16657959e-2f;
    sum = sum * rest + 1.66666655e-1f;
    sum = sum * rest + 5.00000012e-1f;
    sum = (sum * (rest * rest) + rest) + 1.0f;
    return float_of(bits_of(sum) + ((bits_of(shifted) - kRounderBits) << 23));
}

OZ_INLINE void swiglu_row(const float *gate, const float *up, int64_t count, float *output) {
    for (int64_t i = 0; i < count; ++i) output[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

// In lanes, as the compiler does not find them by itself.
OZ_INLINE float top_of(const float *scores, int64_t count) {
    constexpr int lanes = 16;
    float tops[lanes];
    int wrong[lanes] = {};
    for (float &top : tops) top = -std::numeric_limits<float>::infinity();
    const auto look = [&](const float *at) __attribute__((always_inline)) {
        for (int i = 0; i < lanes; ++i) {
            wrong[i] |= !(at[i] < std::numeric_limits<float>::infinity());
            tops[i] = at[i] > tops[i] ? at[i] : tops[i];
        }
    };
    int64_t first = 0;
    for (; first + lanes <= count; first += lanes) look(scores + first);
    if (first < count) {
        float rest[lanes];
        for (int i = 0; i < lanes; ++i) rest[i] = scores[first + i < count ? first + i : first];
        look(rest);
    }
    int any = 0;
    float top = tops[0];
    for (int i = 0; i < lanes; ++i) {
        any |= wrong[i];
        top = tops[i] > top ? tops[i] : top;
    }
    return any ? std::numeric_limits<float>::quiet_NaN() : top;
}

OZ_INLINE double weight_of(const float *scores, int64_t count, float highest, float temperature) {
    float weights[OZ_BLOCK];
    if (temperature == 1.0f) {
        for (int64_t i = 0; i < count; ++i) weights[i] = exponential(scores[i] - highest);
    } else {
        for (int64_t i = 0; i < count; ++i) weights[i] = exponential((scores[i] - highest) / temperature);
    }
    for (int64_t i = count; i < OZ_BLOCK; ++i) weights[i] = 0.0f;
    double sums[8] = {};
    for (int64_t first = 0; first < OZ_BLOCK; first += 8) {
        for (int i = 0; i < 8; ++i) sums[i] += static_cast<double>(weights[first + i]);
    }
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

OZ_INLINE uint64_t read_words(const void *memory, int64_t bytes) {
    const char *at = static_cast<const char *>(memory);
    uint64_t sums[32] = {};
    for (int64_t i = 0; i + 256 <= bytes; i += 256) {
        uint64_t words[32];
        std::memcpy(words, at + i, sizeof words);
        for (int w = 0; w < 32; ++w) sums[w] += words[w];
    }
    uint64_t sum = 0;
    for (uint64_t part : sums) sum += part;
    return sum;
}

}  // namespace oz

// The loops as functions with the attributes of `target`, for a variant's table.
#define OZ_ELEMENTWISE(target)                                                                                        \
    target void quantise(const float *x, int64_t columns, int group, int8_t *codes, float *scale, int32_t *sums) {   \
        quantise_row(x, columns, group, codes, scale, sums);                                                         \
    }                                                                                                                 \
    target void swiglu(const float *gate, const float *up, int64_t count, float *output) {                           \
        swiglu_row(gate, up, count, output);                                                                         \
    }                                                                                                                 \
    target uint64_t read(const void *memory, int64_t bytes) { return read_words(memory, bytes); }                     \
    target float top(const float *scores, int64_t count) { return top_of(scores, count); }                            \
    target double weight(const float *scores, int64_t count, float highest, float temperature) {                      \
        return weight_of(scores, count, highest, temperature);                                                        \
    }
