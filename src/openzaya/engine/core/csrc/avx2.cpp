// Kernels for AVX2, which multiplies bytes into 16-bit sums that saturate: none of those below can reach that.
#if defined(__x86_64__)

#include <immintrin.h>

#define OZ_TARGET __attribute__((target("avx2,f16c")))

namespace oz {

namespace {

constexpr int kOffset8 = 0;

OZ_TARGET inline __m256i widened(__m256i sums) { return _mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }

// 16-bit sums of 8 steps: at most 8 x 2 x 15 x 127 = 30,480.
OZ_TARGET inline __m256i begin4(__m256i) { return _mm256_setzero_si256(); }
OZ_TARGET inline __m256i step4(__m256i part, __m256i w, __m256i x) {
    return _mm256_add_epi16(part, _mm256_maddubs_epi16(w, x));
}
OZ_TARGET inline __m256i end4(__m256i dot, __m256i part) { return _mm256_add_epi32(dot, widened(part)); }

// |w| is unsigned and its sign goes to x: at most 2 x 128 x 127 = 32,512.
OZ_TARGET inline __m256i step8(__m256i dot, __m256i w, __m256i x) {
    return _mm256_add_epi32(dot, widened(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w))));
}

}  // namespace

}  // namespace oz

#include "tiles256.h"

namespace oz {
const Variant kAvx2 = {"avx2", 3, 4, tile4, tile8, quantise, swiglu, read, top, weight, &kLayerAvx2};
}  // namespace oz

#endif
