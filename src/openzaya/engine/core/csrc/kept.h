// Keys and values in the forms that pages keep them in: float32, float16, or int8 codes with a float32 scale a vector.
//
// Values of a page and head are vectors, one after the other. Keys lie the other way, one number of all places side by side,
// so that attention scores sixteen places at once. Of codes four lie together that attention multiplies and adds up in one
// instruction: four channels of each key in turn, and for each channel the values of four places. All scales are at the end.
#pragma once

#include "abi.h"
#include "elementwise.h"
#include "layer.h"

namespace oz {

// Channels of codes: whole fours.
OZ_INLINE int64_t padded_channels(const oz_attention &a) { return (a.channels + 3) / 4 * 4; }

OZ_INLINE int64_t vector_bytes(const oz_attention &a) {
    switch (a.kept) {
        case OZ_FLOAT32: return a.channels * 4;
        case OZ_FLOAT16: return a.channels * 2;
        default: return padded_channels(a) + 4;
    }
}

// Keys or values of one head in one page.
OZ_INLINE char *vectors_of(const oz_attention &a, void *all, int64_t page, int head) {
    return static_cast<char *>(all) + (page * a.key_heads + head) * a.page_tokens * vector_bytes(a);
}

// Writes the numbers of x to the places `at` + i * `apart` (in numbers, not bytes) of `vectors`.
OZ_INLINE void keep_floats(const oz_attention &a, const float *x, char *vectors, int64_t at, int64_t apart) {
    for (int64_t c = 0; c < a.channels; ++c) {
        const uint16_t half = to_half(x[c]);
        if (a.kept == OZ_FLOAT32) std::memcpy(vectors + (at + c * apart) * 4, x + c, 4);
        else std::memcpy(vectors + (at + c * apart) * 2, &half, 2);
    }
}

// Writes the codes of x to `vectors`, each to where `at` says that its channel is, and their scale behind all codes.
template <class At>
OZ_INLINE void keep_codes(const oz_attention &a, const float *x, char *vectors, int64_t place, const At &at) {
    float scale;
    int32_t sum;
    int8_t codes[kMostChannels];
    quantise_row(x, a.channels, a.channels, codes, &scale, &sum);
    for (int64_t c = 0; c < a.channels; ++c) std::memcpy(vectors + at(c), codes + c, 1);
    std::memcpy(vectors + padded_channels(a) * a.page_tokens + place * 4, &scale, sizeof scale);
}

OZ_INLINE void keep_key(const oz_attention &a, const float *x, int64_t page, int head, int64_t place) {
    char *keys = vectors_of(a, a.keys, page, head);
    if (a.kept != OZ_INT8) return keep_floats(a, x, keys, place, a.page_tokens);
    keep_codes(a, x, keys, place, [&](int64_t c) { return (c / 4 * a.page_tokens + place) * 4 + c % 4; });
}

OZ_INLINE void keep_value(const oz_attention &a, const float *x, int64_t page, int head, int64_t place) {
    char *values = vectors_of(a, a.values, page, head);
    if (a.kept != OZ_INT8) return keep_floats(a, x, values, place * a.channels, 1);
    const int64_t channels = padded_channels(a);
    keep_codes(a, x, values, place, [&](int64_t c) { return (place / 4 * channels + c) * 4 + place % 4; });
}

}  // namespace oz
