#if defined(__x86_64__)
#include <immintrin.h>

#define OZ_TARGET __attribute__((target("avx2,f16c,avx512f,avx512bw,avx512vl")))
#define OZ_REGISTER 64
#define OZ_LAYER kLayerAvx512
#include "lanes.h"

namespace oz {

namespace {

constexpr int kScored = 2, kMixed = 4, kRouted = 4, kRoutedRows = 4;

OZ_INNER Lanes all_widened(const uint16_t *halves) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(halves)))};
}

OZ_INNER Lanes all_widened(const int8_t *codes) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(codes));
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes))};
}

}  // namespace

}  // namespace oz

#include "layer_kernels.h"
#endif
