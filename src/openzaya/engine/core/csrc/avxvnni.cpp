// Kernels for AVX-VNNI, which processors without AVX-512 have.
#if defined(__x86_64__)

#include <immintrin.h>

#define OZ_TARGET __attribute__((target("avx2,f16c,avxvnni")))

namespace oz {

namespace {

// Adding 128 makes signed weights unsigned.
constexpr int kOffset8 = 128;

OZ_TARGET inline __m256i begin4(__m256i dot) { return dot; }
OZ_TARGET inline __m256i step4(__m256i part, __m256i w, __m256i x) { return _mm256_dpbusd_avx_epi32(part, w, x); }
OZ_TARGET inline __m256i end4(__m256i, __m256i part) { return part; }
OZ_TARGET inline __m256i step8(__m256i dot, __m256i w, __m256i x) {
    return _mm256_dpbusd_avx_epi32(dot, _mm256_xor_si256(w, _mm256_set1_epi8(static_cast<char>(0x80))), x);
}

}  // namespace

}  // namespace oz

#include "tiles256.h"

namespace oz {
const Variant kAvxVnni = {"avxvnni", 3, 4, tile4, tile8, quantise, swiglu, read, &kLayerAvx2};
}  // namespace oz

#endif
