#if defined(__x86_64__)
#include <immintrin.h>

#define OZ_TARGET __attribute__((target("avx2,f16c,avx512f,avx512bw,avx512vl,avx512vnni")))
#define OZ_REGISTER 64
#define OZ_LAYER kLayerAvx512
#include "lanes.h"
#include "layer.h"

namespace oz {

namespace {

constexpr int kScored = 2, kMixed = 4, kCoded = 2, kCodedHeads = 4, kRouted = 4, kRoutedRows = 4;

OZ_INNER Lanes all_widened(const uint16_t *halves) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(halves)))};
}

// Products of unsigned with signed bytes are what there is, so factors lie as four upper and four lower bytes. Those of
// queries are signed, so 128 makes codes unsigned, and sums begin at what that adds; those of weights are unsigned.
typedef __m512i Codes;

struct Whole {
    __m512i high, low;
};

OZ_INNER Codes codes_at(const int8_t *at) { return _mm512_loadu_si512(at); }

OZ_INNER __m512i four_bytes(const void *at) {
    int32_t four;
    std::memcpy(&four, at, sizeof four);
    return _mm512_set1_epi32(four);
}

OZ_INNER Whole started(const PreparedQueries::Offsets &offsets) {
    return {_mm512_set1_epi32(offsets.high), _mm512_set1_epi32(offsets.low)};
}

OZ_INNER void add_scored(Whole &sums, Codes codes, const int16_t *factors) {
    const __m512i raised = _mm512_xor_si512(codes, _mm512_set1_epi8(static_cast<char>(0x80)));
    sums.high = _mm512_dpbusd_epi32(sums.high, raised, four_bytes(factors));
    sums.low = _mm512_dpbusd_epi32(sums.low, raised, four_bytes(factors + 2));
}

OZ_INNER void add_mixed(Whole &sums, Codes codes, const int16_t *factors) {
    sums.high = _mm512_dpbusd_epi32(sums.high, four_bytes(factors), codes);
    sums.low = _mm512_dpbusd_epi32(sums.low, four_bytes(factors + 2), codes);
}

OZ_INNER Lanes floats_of(const Whole &sums) {
    return {_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(sums.high, 8), sums.low))};
}

// Upper and lower bytes of four numbers each, from their bytes in turn.
OZ_INNER __m128i apart(__m128i numbers) {
    return _mm_shuffle_epi8(numbers, _mm_setr_epi8(1, 3, 5, 7, 0, 2, 4, 6, 9, 11, 13, 15, 8, 10, 12, 14));
}

OZ_INNER PreparedQueries::Offsets arrange_queries(int16_t *factors, int64_t count) {
    int32_t high = 0, low = 0;
    for (int64_t i = 0; i < count; ++i) {
        high += (factors[i] + 128) >> 8;
        low += static_cast<int8_t>(factors[i]);
    }
    const __m128i uppers = _mm_set1_epi64x(0xffffffff);
    for (int64_t i = 0; i < count; i += 4) {
        const __m128i four = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(factors + i));
        // A lower byte that is negative as a signed one has the upper one too low by one.
        const __m128i raised = apart(_mm_add_epi16(four, _mm_set1_epi16(128)));
        const __m128i both = _mm_or_si128(_mm_and_si128(uppers, raised), _mm_andnot_si128(uppers, apart(four)));
        _mm_storel_epi64(reinterpret_cast<__m128i *>(factors + i), both);
    }
    return {-128 * high, -128 * low};
}

OZ_INNER void arrange_weights(int16_t *factors, int64_t count) {
    for (int64_t i = 0; i < count; i += 8) {
        auto *eight = reinterpret_cast<__m128i *>(factors + i);
        _mm_storeu_si128(eight, apart(_mm_loadu_si128(eight)));
    }
}

}  // namespace

}  // namespace oz

#include "layer_kernels.h"
#endif
