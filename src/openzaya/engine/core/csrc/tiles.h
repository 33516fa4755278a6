// What the tiles of every instruction set of x86 share.
#pragma once

#include <immintrin.h>

#include "elementwise.h"
#include "variants.h"

namespace oz {

namespace {

// Weights are read once and in order; the hardware's own prefetch starts anew at each page. Into the second cache: the
// first one has room for few reads under way.
constexpr int kAhead = 8192;

OZ_INLINE void prefetch(const void *codes) {
    _mm_prefetch(static_cast<const char *>(codes) + kAhead, _MM_HINT_T1);
}

// The codes of four columns of a token, which every row of a step takes.
OZ_INLINE int32_t four_codes(const int8_t *codes) {
    int32_t four;
    std::memcpy(&four, codes, sizeof four);
    return four;
}

}  // namespace

}  // namespace oz

// A tile's number of rows as a constant of its code: `OZ_FOR_ROWS(rows, call)` is `call<rows>(...)`.
#define OZ_FOR_ROWS(rows, function, ...)                                                                              \
    switch (rows) {                                                                                                   \
        case 1: return function<1>(__VA_ARGS__);                                                                      \
        case 2: return function<2>(__VA_ARGS__);                                                                      \
        case 3: return function<3>(__VA_ARGS__);                                                                      \
        case 4: return function<4>(__VA_ARGS__);                                                                      \
        case 5: return function<5>(__VA_ARGS__);                                                                      \
        case 6: return function<6>(__VA_ARGS__);                                                                      \
        case 7: return function<7>(__VA_ARGS__);                                                                      \
        default: return function<8>(__VA_ARGS__);                                                                     \
    }

// The tiles of a variant's table, from the templates `tile4_of` and `tile8_of` of its file.
#define OZ_TILES                                                                                                      \
    void tile4(int rows, const uint8_t *codes, const uint16_t *scales, int64_t columns, int group,                    \
               const TileRows &x) {                                                                                   \
        OZ_FOR_ROWS(rows, tile4_of, codes, scales, columns, group, x)                                                 \
    }                                                                                                                 \
    void tile8(int rows, const int8_t *codes, const float *scales, int64_t columns, const TileRows &x) {              \
        OZ_FOR_ROWS(rows, tile8_of, codes, scales, columns, x)                                                        \
    }
