// Sixteen float32 lanes in plain C++ (vector extensions of g++ and clang++), which each variant's file compiles for its
// own registers. The order of every sum is that of these lanes, whatever the registers are.
#pragma once

#include "elementwise.h"

namespace oz {

constexpr int kLanes = 16;
typedef float Lanes __attribute__((vector_size(64)));

OZ_INLINE Lanes zeros() { return Lanes{}; }

OZ_INLINE Lanes load_lanes(const float *at) {
    Lanes lanes;
    std::memcpy(&lanes, at, sizeof lanes);
    return lanes;
}

// The first `count` lanes, the others 0.
OZ_INLINE Lanes load_some(const float *at, int64_t count) {
    Lanes lanes = zeros();
    std::memcpy(&lanes, at, static_cast<size_t>(count) * sizeof(float));
    return lanes;
}

// Two sixteens of bfloat16, the first in the lower halves of sixteen words and the second in the upper ones, so that a
// shift and a mask widen them: nothing has to move between lanes.
struct Bfloat16 {
    uint32_t pair;
};

template <class Number>
constexpr int kNumbersIn = 1;
template <>
constexpr int kNumbersIn<Bfloat16> = 2;

struct TwoLanes {
    Lanes first, second;
};

OZ_INLINE TwoLanes load_two(const float *at) { return {load_lanes(at), load_lanes(at + kLanes)}; }

OZ_INLINE TwoLanes load_two(const Bfloat16 *at) {
    typedef uint32_t Words __attribute__((vector_size(64)));
    Words words;
    std::memcpy(&words, at, sizeof words);
    return {reinterpret_cast<Lanes>(words << 16), reinterpret_cast<Lanes>(words & 0xffff0000u)};
}

OZ_INLINE void store_some(float *at, const Lanes &lanes, int64_t count) {
    std::memcpy(at, &lanes, static_cast<size_t>(count < kLanes ? count : kLanes) * sizeof(float));
}

// By halves: lane i and lane i + 8, then i + 4, i + 2, i + 1.
OZ_INLINE float sum_of(const Lanes &v) {
    const auto eight = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                       __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
    const auto four = __builtin_shufflevector(eight, eight, 0, 1, 2, 3) +
                      __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

// Bytes. Rows of a matrix are about a page, where the hardware's own prefetch starts anew.
constexpr int kVectorsAhead = 2048;

// Dot products of x with COUNT vectors, `stride` numbers apart. Those of bfloat16 are pairs of sixteens throughout.
template <int COUNT, class Number>
OZ_INLINE void dots(const float *x, const Number *vectors, int64_t stride, int64_t length, float *results) {
    Lanes sums[COUNT];
    for (int i = 0; i < COUNT; ++i) sums[i] = zeros();
    int64_t k = 0;
    for (; k + 2 * kLanes <= length; k += 2 * kLanes) {
        const TwoLanes lanes = load_two(x + k);
        for (int i = 0; i < COUNT; ++i) {
            const Number *at = vectors + (i * stride + k) / kNumbersIn<Number>;
            if (COUNT == 1) __builtin_prefetch(reinterpret_cast<const char *>(at) + kVectorsAhead);
            const TwoLanes numbers = load_two(at);
            sums[i] += numbers.first * lanes.first;
            sums[i] += numbers.second * lanes.second;
        }
    }
    if constexpr (kNumbersIn<Number> == 1) {
        for (; k < length; k += kLanes) {
            const int64_t count = length - k < kLanes ? length - k : kLanes;
            const Lanes lanes = load_some(x + k, count);
            for (int i = 0; i < COUNT; ++i) sums[i] += load_some(vectors + i * stride + k, count) * lanes;
        }
    }
    for (int i = 0; i < COUNT; ++i) results[i] = sum_of(sums[i]);
}

OZ_INLINE float dot(const float *x, const float *y, int64_t length) {
    float result;
    dots<1>(x, y, 0, length, &result);
    return result;
}

// result[n] = x . matrix[n] + bias[n]. A matrix that is still in memory is read row by row, in one stream; one in the
// cache four rows at a time, whose sums do not wait for each other.
template <class Number>
OZ_INLINE void linear(const float *x, const Number *matrix, const float *bias, int64_t rows, int64_t columns,
                      bool in_cache, float *result) {
    const int64_t stride = columns / kNumbersIn<Number>;
    int64_t n = 0;
    for (; in_cache && n + 4 <= rows; n += 4) dots<4>(x, matrix + n * stride, columns, columns, result + n);
    for (; n < rows; ++n) dots<1>(x, matrix + n * stride, columns, columns, result + n);
    if (bias) {
        for (n = 0; n < rows; ++n) result[n] += bias[n];
    }
}

}  // namespace oz
