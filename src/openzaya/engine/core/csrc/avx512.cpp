// Kernels for AVX-512 with VNNI. One step of the packed weights is one register: 16 (or 2 x 16) rows of 4 columns.
#if defined(__x86_64__)

#include "tiles.h"

#define OZ_TARGET __attribute__((target("avx2,f16c,avx512f,avx512bw,avx512vl,avx512vnni")))

namespace oz {

namespace {

OZ_TARGET inline __m512i load_codes(const int8_t *codes) { return _mm512_set1_epi32(four_codes(codes)); }

template <int ROWS>
OZ_TARGET void tile4_of(const uint8_t *codes, const uint16_t *scales, int64_t columns, int group,
                        const TileRows &rows) {
    // With one row a sum would wait for the one before; two of them, of even and odd steps, keep the reads going.
    constexpr int CHAINS = ROWS == 1 ? 2 : 1;
    const __m512i low = _mm512_set1_epi8(15);
    const int8_t *x[ROWS];
    __m512 total[ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        x[r] = rows.codes[r];
        total[r][0] = total[r][1] = _mm512_setzero_ps();
    }
    for (int64_t g = 0; g < columns / group; ++g) {
        __m512i dot[ROWS][2 * CHAINS];
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            // Nibbles are q + 8, so that they are unsigned, as VNNI wants one side to be.
            dot[r][0] = dot[r][1] = _mm512_set1_epi32(-8 * rows.sums[r][g]);
            if (CHAINS == 2) dot[r][2 * CHAINS - 2] = dot[r][2 * CHAINS - 1] = _mm512_setzero_si512();
        }
        for (int step = 0; step < group / 4; step += CHAINS) {
#pragma GCC unroll 2
            for (int c = 0; c < CHAINS; ++c) {
                const __m512i both = _mm512_loadu_si512(codes);
                prefetch(codes);
                codes += 64;
                const __m512i first = _mm512_and_si512(both, low);
                const __m512i second = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) {
                    const __m512i value = load_codes(x[r]);
                    x[r] += 4;
                    dot[r][2 * c] = _mm512_dpbusd_epi32(dot[r][2 * c], first, value);
                    dot[r][2 * c + 1] = _mm512_dpbusd_epi32(dot[r][2 * c + 1], second, value);
                }
            }
        }
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) {
            const __m512 scale = _mm512_cvtph_ps(
                _mm256_loadu_si256(reinterpret_cast<const __m256i *>(scales + 32 * g + 16 * half)));
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; ++r) {
                __m512i sum = dot[r][half];
                if (CHAINS == 2) sum = _mm512_add_epi32(sum, dot[r][2 * CHAINS - 2 + half]);
                total[r][half] = _mm512_add_ps(total[r][half], _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sum)));
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        const __m512 scale = _mm512_set1_ps(rows.scales[r]);
        _mm512_storeu_ps(rows.outputs[r], _mm512_mul_ps(scale, total[r][0]));
        _mm512_storeu_ps(rows.outputs[r] + 16, _mm512_mul_ps(scale, total[r][1]));
    }
}

template <int ROWS>
OZ_TARGET void tile8_of(const int8_t *codes, const float *scales, int64_t columns, const TileRows &rows) {
    // Adding 128 makes the weights unsigned; 128 times the sum of the token's codes comes off again.
    const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
    const int8_t *x[ROWS];
    __m512i dot[ROWS], odd[ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        x[r] = rows.codes[r];
        dot[r] = _mm512_set1_epi32(-128 * rows.sums[r][0]);
        odd[r] = _mm512_setzero_si512();
    }
    int64_t step = 0;
    for (; step + 2 <= columns / 4; step += 2, codes += 128) {
        const __m512i first = _mm512_xor_si512(_mm512_loadu_si512(codes), flip);
        const __m512i second = _mm512_xor_si512(_mm512_loadu_si512(codes + 64), flip);
        prefetch(codes);
        prefetch(codes + 64);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            dot[r] = _mm512_dpbusd_epi32(dot[r], first, load_codes(x[r]));
            odd[r] = _mm512_dpbusd_epi32(odd[r], second, load_codes(x[r] + 4));
            x[r] += 8;
        }
    }
    if (step < columns / 4) {
        const __m512i last = _mm512_xor_si512(_mm512_loadu_si512(codes), flip);
        for (int r = 0; r < ROWS; ++r) dot[r] = _mm512_dpbusd_epi32(dot[r], last, load_codes(x[r]));
    }
    const __m512 scale = _mm512_loadu_ps(scales);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
        const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(dot[r], odd[r]));
        _mm512_storeu_ps(rows.outputs[r], _mm512_mul_ps(_mm512_set1_ps(rows.scales[r]), _mm512_mul_ps(scale, sum)));
    }
}

OZ_TILES

OZ_ELEMENTWISE(OZ_TARGET)

}  // namespace

const Variant kAvx512Vnni = {"avx512vnni", 6, 8, tile4, tile8, quantise, swiglu, read, top, weight, &kLayerAvx512};

}  // namespace oz

#endif
