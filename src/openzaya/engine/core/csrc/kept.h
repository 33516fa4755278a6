// Keys and values in the forms that pages keep them in. Attention works on float32; what is kept smaller is widened a
// page at a time, once for all query heads of a key-value head.
#pragma once

#include "abi.h"
#include "elementwise.h"

namespace oz {

OZ_INLINE int64_t vector_bytes(const oz_attention &a) {
    switch (a.kept) {
        case OZ_FLOAT32: return a.channels * 4;
        case OZ_FLOAT16: return a.channels * 2;
        default: return a.channels + 4;
    }
}

// Writes vector number `place` of `vectors`.
OZ_INLINE void keep(const oz_attention &a, const float *x, void *vectors, int64_t place) {
    char *to = static_cast<char *>(vectors) + place * vector_bytes(a);
    if (a.kept == OZ_FLOAT32) {
        std::memcpy(to, x, sizeof(float) * static_cast<size_t>(a.channels));
    } else if (a.kept == OZ_FLOAT16) {
        for (int c = 0; c < a.channels; ++c) {
            const uint16_t half = to_half(x[c]);
            std::memcpy(to + 2 * c, &half, sizeof half);
        }
    } else {
        float scale;
        int32_t sum;
        quantise_row(x, a.channels, a.channels, reinterpret_cast<int8_t *>(to), &scale, &sum);
        std::memcpy(to + a.channels, &scale, sizeof scale);
    }
}

// Vectors `first` .. `last` after number `place`, as float32 (vectors, channels): number `first` is at `first` rows of
// the result. `room` has space for `last` of them.
OZ_INLINE const float *widened(const oz_attention &a, const void *vectors, int64_t place, int first, int last,
                               float *room) {
    const char *from = static_cast<const char *>(vectors) + place * vector_bytes(a);
    if (a.kept == OZ_FLOAT32) return reinterpret_cast<const float *>(from);
    for (int i = first; i < last; ++i) {
        const char *vector = from + i * vector_bytes(a);
        float *x = room + i * a.channels;
        if (a.kept == OZ_FLOAT16) {
            for (int c = 0; c < a.channels; ++c) {
                uint16_t half;
                std::memcpy(&half, vector + 2 * c, sizeof half);
                x[c] = from_half(half);
            }
        } else {
            float scale;
            std::memcpy(&scale, vector + a.channels, sizeof scale);
            for (int c = 0; c < a.channels; ++c) x[c] = static_cast<float>(static_cast<int8_t>(vector[c])) * scale;
        }
    }
    return room;
}

}  // namespace oz
