// What the tiles of every instruction set of x86 share.
#pragma once

#include <immintrin.h>

#include "elementwise.h"
#include "tile_rows.h"
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
