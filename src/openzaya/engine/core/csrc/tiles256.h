// Kernels in registers of 32 bytes, the same for AVX2 and for both encodings of 256-bit VNNI. The file that includes
// this defines OZ_TARGET and, with that target, what multiplies bytes:
//   begin4(dot), step4(part, w, x), end4(dot, part)   runs of 8 steps: dot + unsigned w times signed x
//   step8(dot, w, x)                                  signed w times signed x, short of kOffset8 times the sum of x
#pragma once

#include "tiles.h"

namespace oz {

namespace {

constexpr int kRun = 8;

OZ_TARGET inline __m256i load(const void *at) { return _mm256_loadu_si256(static_cast<const __m256i *>(at)); }

OZ_TARGET inline __m256i load_codes(const int8_t *codes) { return _mm256_set1_epi32(four_codes(codes)); }

// A step of 64 bytes is two halves: rows 0-7 and 16-23 of the block, rows 8-15 and 24-31. With one row of tokens both
// are done at once, so that more sums are under way; with several, one after the other, so that all fit the registers.
template <int ROWS>
OZ_TARGET void tile4_of(const uint8_t *codes, const uint16_t *scales, int64_t columns, int group,
                        const TileRows &rows) {
    constexpr int HALVES = ROWS == 1 ? 2 : 1;
    const __m256i low = _mm256_set1_epi8(15);
    __m256 total[ROWS][4];  // by eight rows of the block, in order
    for (int r = 0; r < ROWS; ++r) {
        for (__m256 &sum : total[r]) sum = _mm256_setzero_ps();
    }
    for (int64_t g = 0; g < columns / group; ++g) {
        for (int first_half = 0; first_half < 2; first_half += HALVES) {
            __m256i dot[ROWS][2 * HALVES];
            for (int r = 0; r < ROWS; ++r) {
                // Nibbles are q + 8, so that they are unsigned.
                for (__m256i &sum : dot[r]) sum = _mm256_set1_epi32(-8 * rows.sums[r][g]);
            }
            for (int64_t step = g * group / 4; step < (g + 1) * group / 4; step += kRun) {
                __m256i part[ROWS][2 * HALVES];
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
                    for (int i = 0; i < 2 * HALVES; ++i) part[r][i] = begin4(dot[r][i]);
                }
                for (int64_t s = step; s < step + kRun; ++s) {
                    prefetch(codes + 64 * s);
                    __m256i weights[2 * HALVES];
#pragma GCC unroll 2
                    for (int h = 0; h < HALVES; ++h) {
                        const __m256i both = load(codes + 64 * s + 32 * (first_half + h));
                        weights[2 * h] = _mm256_and_si256(both, low);
                        weights[2 * h + 1] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
                    }
#pragma GCC unroll 8
                    for (int r = 0; r < ROWS; ++r) {
                        const __m256i value = load_codes(rows.codes[r] + 4 * s);
#pragma GCC unroll 4
                        for (int i = 0; i < 2 * HALVES; ++i) part[r][i] = step4(part[r][i], weights[i], value);
                    }
                }
#pragma GCC unroll 8
                for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
                    for (int i = 0; i < 2 * HALVES; ++i) dot[r][i] = end4(dot[r][i], part[r][i]);
                }
            }
#pragma GCC unroll 4
            for (int i = 0; i < 2 * HALVES; ++i) {
                const int eight = first_half + i / 2 + 2 * (i % 2);
                const __m256 scale = _mm256_cvtph_ps(
                    _mm_loadu_si128(reinterpret_cast<const __m128i *>(scales + 32 * g + 8 * eight)));
                for (int r = 0; r < ROWS; ++r) {
                    const __m256 scaled = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(dot[r][i]));
                    total[r][eight] = _mm256_add_ps(total[r][eight], scaled);
                }
            }
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        const __m256 scale = _mm256_set1_ps(rows.scales[r]);
        for (int i = 0; i < 4; ++i) _mm256_storeu_ps(rows.outputs[r] + 8 * i, _mm256_mul_ps(scale, total[r][i]));
    }
}

template <int ROWS>
OZ_TARGET void tile8_of(const int8_t *codes, const float *scales, int64_t columns, const TileRows &rows) {
    __m256i dot[ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) dot[r][0] = dot[r][1] = _mm256_set1_epi32(-kOffset8 * rows.sums[r][0]);
    for (int64_t step = 0; step < columns / 4; ++step) {
        prefetch(codes + 64 * step);
        const __m256i first = load(codes + 64 * step), second = load(codes + 64 * step + 32);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) {
            const __m256i value = load_codes(rows.codes[r] + 4 * step);
            dot[r][0] = step8(dot[r][0], first, value);
            dot[r][1] = step8(dot[r][1], second, value);
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        const __m256 scale = _mm256_set1_ps(rows.scales[r]);
        for (int i = 0; i < 2; ++i) {
            const __m256 sum = _mm256_mul_ps(_mm256_loadu_ps(scales + 8 * i), _mm256_cvtepi32_ps(dot[r][i]));
            _mm256_storeu_ps(rows.outputs[r] + 8 * i, _mm256_mul_ps(scale, sum));
        }
    }
}

OZ_TILES

OZ_ELEMENTWISE(OZ_TARGET)

}  // namespace

}  // namespace oz
