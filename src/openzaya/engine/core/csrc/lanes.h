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

// Numbers of bfloat16: the upper halves of float32.
typedef uint16_t Bfloat16;

OZ_INLINE Lanes load_lanes(const Bfloat16 *at) {
    typedef Bfloat16 Halves __attribute__((vector_size(2 * kLanes)));
    typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));
    Halves halves;
    std::memcpy(&halves, at, sizeof halves);
    return reinterpret_cast<Lanes>(__builtin_convertvector(halves, Words) << 16);
}

OZ_INLINE Lanes load_some(const Bfloat16 *at, int64_t count) {
    Bfloat16 padded[kLanes] = {};
    std::memcpy(padded, at, static_cast<size_t>(count) * sizeof(Bfloat16));
    return load_lanes(padded);
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

// Dot products of x with COUNT vectors, `stride` apart.
template <int COUNT, class Number>
OZ_INLINE void dots(const float *x, const Number *vectors, int64_t stride, int64_t length, float *results) {
    Lanes sums[COUNT];
    for (int i = 0; i < COUNT; ++i) sums[i] = zeros();
    int64_t k = 0;
    for (; k + kLanes <= length; k += kLanes) {
        const Lanes lanes = load_lanes(x + k);
        for (int i = 0; i < COUNT; ++i) sums[i] += load_lanes(vectors + i * stride + k) * lanes;
    }
    if (k < length) {
        const Lanes lanes = load_some(x + k, length - k);
        for (int i = 0; i < COUNT; ++i) sums[i] += load_some(vectors + i * stride + k, length - k) * lanes;
    }
    for (int i = 0; i < COUNT; ++i) results[i] = sum_of(sums[i]);
}

template <class Number>
OZ_INLINE float dot(const float *x, const Number *y, int64_t length) {
    float result;
    dots<1>(x, y, 0, length, &result);
    return result;
}

// result[n] = x . matrix[n] + bias[n]
template <class Number>
OZ_INLINE void linear(const float *x, const Number *matrix, const float *bias, int64_t rows, int64_t columns,
                      float *result) {
    int64_t n = 0;
    for (; n + 4 <= rows; n += 4) dots<4>(x, matrix + n * columns, columns, columns, result + n);
    for (; n < rows; ++n) result[n] = dot(x, matrix + n * columns, columns);
    if (bias) {
        for (n = 0; n < rows; ++n) result[n] += bias[n];
    }
}

}  // namespace oz
