#if defined(__x86_64__)
#include <immintrin.h>

#define OZ_TARGET __attribute__((target("avx2,f16c")))
#define OZ_REGISTER 32
#define OZ_LAYER kLayerAvx2
#include "lanes.h"

namespace oz {

namespace {

constexpr int kScored = 1, kMixed = 1, kRouted = 2, kRoutedRows = 2;

OZ_INNER Lanes all_widened(const uint16_t *halves) {
    Lanes lanes;
    for (int i = 0; i < 2; ++i) {
        lanes.in[i] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(halves + 8 * i)));
    }
    return lanes;
}

OZ_INNER Lanes all_widened(const int8_t *codes) {
    Lanes lanes;
    for (int i = 0; i < 2; ++i) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(codes + 8 * i));
        lanes.in[i] = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
    }
    return lanes;
}

}  // namespace

}  // namespace oz

#include "layer_kernels.h"
#endif
