// Keys and values in the forms that pages keep them in: float32, float16, or int8 codes with a float32 scale a vector.
//
// Values of a page and head are vectors, one after the other, each with its scale. Keys lie the other way, one number of
// all places side by side and all scales at the end, so that attention scores sixteen places at once.
#pragma once

#include "abi.h"
#include "elementwise.h"
#include "layer.h"

namespace oz {

OZ_INLINE int64_t vector_bytes(const oz_attention &a) {
    switch (a.kept) {
        case OZ_FLOAT32: return a.channels * 4;
        case OZ_FLOAT16: return a.channels * 2;
        default: return a.channels + 4;
    }
}

// Keys or values of one head in one page.
OZ_INLINE char *vectors_of(const oz_attention &a, void *all, int64_t page, int head) {
    return static_cast<char *>(all) + (page * a.key_heads + head) * a.page_tokens * vector_bytes(a);
}

// Writes the numbers of x to the places `at` + i * `apart` (in numbers, not bytes) of `vectors`, and the scale that they
// have as int8 to `scale_at`.
OZ_INLINE void keep(const oz_attention &a, const float *x, char *vectors, int64_t at, int64_t apart, char *scale_at) {
    if (a.kept == OZ_FLOAT32) {
        for (int64_t c = 0; c < a.channels; ++c) std::memcpy(vectors + (at + c * apart) * 4, x + c, 4);
    } else if (a.kept == OZ_FLOAT16) {
        for (int64_t c = 0; c < a.channels; ++c) {
            const uint16_t half = to_half(x[c]);
            std::memcpy(vectors + (at + c * apart) * 2, &half, 2);
        }
    } else {
        float scale;
        int32_t sum;
        int8_t codes[kMostChannels];
        quantise_row(x, a.channels, a.channels, codes, &scale, &sum);
        for (int64_t c = 0; c < a.channels; ++c) std::memcpy(vectors + at + c * apart, codes + c, 1);
        std::memcpy(scale_at, &scale, sizeof scale);
    }
}

OZ_INLINE void keep_key(const oz_attention &a, const float *x, int64_t page, int head, int64_t place) {
    char *keys = vectors_of(a, a.keys, page, head);
    keep(a, x, keys, place, a.page_tokens, keys + a.channels * a.page_tokens + place * 4);
}

OZ_INLINE void keep_value(const oz_attention &a, const float *x, int64_t page, int head, int64_t place) {
    char *value = vectors_of(a, a.values, page, head) + place * vector_bytes(a);
    keep(a, x, value, 0, 1, value + a.channels);
}

}  // namespace oz
