#if defined(__x86_64__)
#include <immintrin.h>

#define OZ_TARGET __attribute__((target("avx2,f16c")))
#define OZ_REGISTER 32
#define OZ_LAYER kLayerAvx2
#include "lanes.h"
#include "layer.h"

namespace oz {

namespace {

constexpr int kScored = 1, kMixed = 1, kCoded = 1, kCodedHeads = 2, kRouted = 2, kRoutedRows = 2;

OZ_INNER Lanes all_widened(const uint16_t *halves) {
    Lanes lanes;
    for (int i = 0; i < 2; ++i) {
        lanes.in[i] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(halves + 8 * i)));
    }
    return lanes;
}

// Codes as 16 bits, four vectors of four; sums of the first and of the last two products of each four.
struct Codes {
    __m256i in[4];
};

struct Whole {
    __m256i in[4];
};

OZ_INNER Codes codes_at(const int8_t *at) {
    Codes codes;
    for (int i = 0; i < 4; ++i) {
        codes.in[i] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(at + 16 * i)));
    }
    return codes;
}

OZ_INNER Whole started(const PreparedQueries::Offsets &) {
    const __m256i zero = _mm256_setzero_si256();
    return {{zero, zero, zero, zero}};
}

OZ_INNER void add_scored(Whole &sums, const Codes &codes, const int16_t *factors) {
    int64_t four;
    std::memcpy(&four, factors, sizeof four);
    for (int i = 0; i < 4; ++i) {
        const __m256i products = _mm256_madd_epi16(codes.in[i], _mm256_set1_epi64x(four));
        sums.in[i] = _mm256_add_epi32(sums.in[i], products);
    }
}

OZ_INNER void add_mixed(Whole &sums, const Codes &codes, const int16_t *factors) { add_scored(sums, codes, factors); }

OZ_INNER Lanes floats_of(const Whole &sums) {
    Lanes lanes;
    for (int i = 0; i < 2; ++i) {
        // Of each half of a register it takes two sums of the one, then two of the other.
        const __m256i mixed = _mm256_hadd_epi32(sums.in[2 * i], sums.in[2 * i + 1]);
        lanes.in[i] = _mm256_cvtepi32_ps(_mm256_permute4x64_epi64(mixed, 0b11011000));
    }
    return lanes;
}

OZ_INNER PreparedQueries::Offsets arrange_queries(int16_t *, int64_t) { return {0, 0}; }

OZ_INNER void arrange_weights(int16_t *, int64_t) {}

}  // namespace

}  // namespace oz

#include "layer_kernels.h"
#endif
