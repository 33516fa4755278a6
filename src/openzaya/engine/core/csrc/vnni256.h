// The kernels of 256-bit VNNI, to be included by a file for each of its two encodings, which defines OZ_TARGET, the
// product of unsigned with signed bytes OZ_PRODUCT(sum, w, x), and the variant OZ_VARIANT of the name OZ_NAME.
#pragma once

#include <immintrin.h>

namespace oz {

namespace {

// Adding 128 makes signed weights unsigned.
constexpr int kOffset8 = 128;

OZ_TARGET inline __m256i begin4(__m256i dot) { return dot; }
OZ_TARGET inline __m256i step4(__m256i part, __m256i w, __m256i x) { return OZ_PRODUCT(part, w, x); }
OZ_TARGET inline __m256i end4(__m256i, __m256i part) { return part; }
OZ_TARGET inline __m256i step8(__m256i dot, __m256i w, __m256i x) {
    return OZ_PRODUCT(dot, _mm256_xor_si256(w, _mm256_set1_epi8(static_cast<char>(0x80))), x);
}

}  // namespace

}  // namespace oz

#include "tiles256.h"

namespace oz {
const Variant OZ_VARIANT = {OZ_NAME, 3, 4, tile4, tile8, quantise, swiglu, read, top, weight, &kLayerAvx2};
}  // namespace oz
