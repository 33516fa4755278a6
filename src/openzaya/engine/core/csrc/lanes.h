// Sixteen float32 lanes in plain C++ (vector extensions of g++ and clang++), in as many registers as a file's processor
// needs for them: each file that includes this defines OZ_TARGET and OZ_REGISTER, the bytes of a register. The order of
// every sum is that of the lanes, whatever the registers are.
#pragma once

#include "elementwise.h"

// Inlined like OZ_INLINE, but only into functions of one variant: those that use instructions of their own.
#define OZ_INNER static inline __attribute__((always_inline)) OZ_TARGET

namespace oz {

namespace {

constexpr int kLanes = 16;
constexpr int kRegisters = 64 / OZ_REGISTER;
typedef float Register __attribute__((vector_size(OZ_REGISTER)));
typedef uint32_t Words __attribute__((vector_size(OZ_REGISTER)));

// A vector type of its own that is wider than the registers would be kept in memory between any two operations.
struct Lanes {
    Register in[kRegisters];
};

OZ_INLINE Lanes operator+(const Lanes &x, const Lanes &y) {
    Lanes sum;
    for (int i = 0; i < kRegisters; ++i) sum.in[i] = x.in[i] + y.in[i];
    return sum;
}

OZ_INLINE Lanes operator*(const Lanes &x, const Lanes &y) {
    Lanes product;
    for (int i = 0; i < kRegisters; ++i) product.in[i] = x.in[i] * y.in[i];
    return product;
}

OZ_INLINE Lanes operator*(const Lanes &x, float y) {
    Lanes product;
    for (int i = 0; i < kRegisters; ++i) product.in[i] = x.in[i] * y;
    return product;
}

OZ_INLINE void operator+=(Lanes &x, const Lanes &y) { x = x + y; }

OZ_INLINE Lanes zeros() { return Lanes{}; }

OZ_INLINE Lanes load_lanes(const float *at) {
    Lanes lanes;
    for (int i = 0; i < kRegisters; ++i) std::memcpy(lanes.in + i, at + i * kLanes / kRegisters, sizeof(Register));
    return lanes;
}

// The first `count` lanes, the others 0.
OZ_INLINE Lanes load_some(const float *at, int64_t count) {
    if (count == kLanes) return load_lanes(at);
    float lanes[kLanes] = {};
    std::memcpy(lanes, at, static_cast<size_t>(count) * sizeof(float));
    return load_lanes(lanes);
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
    TwoLanes two;
    for (int i = 0; i < kRegisters; ++i) {
        Words words;
        std::memcpy(&words, at + i * (kLanes / kRegisters), sizeof words);
        two.first.in[i] = reinterpret_cast<Register>(words << 16);
        two.second.in[i] = reinterpret_cast<Register>(words & 0xffff0000u);
    }
    return two;
}

OZ_INLINE void store_some(float *at, const Lanes &lanes, int64_t count) {
    float numbers[kLanes];
    for (int i = 0; i < kRegisters; ++i) {
        std::memcpy((count < kLanes ? numbers : at) + i * kLanes / kRegisters, lanes.in + i, sizeof(Register));
    }
    if (count < kLanes) std::memcpy(at, numbers, static_cast<size_t>(count) * sizeof(float));
}

// By halves: lane i and lane i + 8, then i + 4, i + 2, i + 1.
OZ_INLINE float sum_of(const Lanes &v) {
    float lanes[kLanes / 2];
    if constexpr (kRegisters == 1) {
        float all[kLanes];
        std::memcpy(all, &v, sizeof all);
        for (int i = 0; i < 8; ++i) lanes[i] = all[i] + all[i + 8];
    } else {
        for (int i = 0; i < kRegisters / 2; ++i) {
            const Register sum = v.in[i] + v.in[i + kRegisters / 2];
            std::memcpy(lanes + i * (kLanes / kRegisters), &sum, sizeof sum);
        }
    }
    for (int i = 0; i < 4; ++i) lanes[i] += lanes[i + 4];
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

// Bytes. Rows of a matrix are about a page, where the hardware's own prefetch starts anew.
constexpr int kVectorsAhead = 4096;

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
            if (COUNT == 1) __builtin_prefetch(reinterpret_cast<const char *>(at) + kVectorsAhead, 0, 2);
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

// The same for TOKENS vectors x, `stride` numbers apart too: results (tokens, `apart`). Nothing is read ahead.
template <int TOKENS, int COUNT, class Number>
OZ_INLINE void dots_of_many(const float *x, const Number *vectors, int64_t stride, int64_t length, float *results,
                            int64_t apart) {
    Lanes sums[TOKENS][COUNT];
    for (int t = 0; t < TOKENS; ++t) {
        for (int i = 0; i < COUNT; ++i) sums[t][i] = zeros();
    }
    for (int64_t k = 0; k < length; k += 2 * kLanes) {
        TwoLanes lanes[TOKENS];
        for (int t = 0; t < TOKENS; ++t) lanes[t] = load_two(x + t * stride + k);
        for (int i = 0; i < COUNT; ++i) {
            const TwoLanes numbers = load_two(vectors + (i * stride + k) / kNumbersIn<Number>);
            for (int t = 0; t < TOKENS; ++t) {
                sums[t][i] += numbers.first * lanes[t].first;
                sums[t][i] += numbers.second * lanes[t].second;
            }
        }
    }
    for (int t = 0; t < TOKENS; ++t) {
        for (int i = 0; i < COUNT; ++i) results[t * apart + i] = sum_of(sums[t][i]);
    }
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

}  // namespace

}  // namespace oz
