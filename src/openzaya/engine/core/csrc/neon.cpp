// Kernels for NEON with its dot products of bytes (Armv8.2's dotprod), and what all of 64-bit Arm has beside them.
#if defined(__aarch64__)

#include <arm_neon.h>

#include "elementwise.h"
#include "tile_rows.h"
#include "variants.h"

#if defined(__clang__)
#define OZ_TARGET __attribute__((target("dotprod")))
#else
#define OZ_TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

namespace oz {

namespace {

constexpr int kAhead = 2048;

OZ_TARGET inline int8x16_t load(const void *at) { return vld1q_s8(static_cast<const int8_t *>(at)); }

// The codes of four columns of a token, in each of four lanes.
OZ_TARGET inline int8x16_t load_codes(const int8_t *codes) {
    int32_t four;
    std::memcpy(&four, codes, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

// A plain multiplication and a plain addition: the fused one has other bits.
OZ_TARGET inline float32x4_t add_product(float32x4_t sum, float32x4_t a, float32x4_t b) {
    return vaddq_f32(sum, vmulq_f32(a, b));
}

// A step of 64 bytes is four quarters of four rows in the low nibbles and four in the high ones.
template <int ROWS>
OZ_TARGET void tile4_of(const uint8_t *codes, const uint16_t *scales, int64_t columns, int group,
                        const TileRows &rows) {
    const uint8x16_t low = vdupq_n_u8(15);
    const int8x16_t zero = vdupq_n_s8(8);
    float32x4_t total[ROWS][8];  // by four rows of the block, in order
    for (int r = 0; r < ROWS; ++r) {
        for (float32x4_t &sum : total[r]) sum = vdupq_n_f32(0);
    }
    for (int64_t g = 0; g < columns / group; ++g) {
        int32x4_t dot[ROWS][8];
        for (int r = 0; r < ROWS; ++r) {
            for (int32x4_t &sum : dot[r]) sum = vdupq_n_s32(0);
        }
        for (int step = 0; step < group / 4; ++step) {
            const int64_t column = g * group + 4 * step;
            __builtin_prefetch(codes + kAhead);
            int8x16_t weights[8];
            for (int i = 0; i < 4; ++i) {
                const uint8x16_t both = vld1q_u8(codes + 16 * i);
                weights[i] = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(both, low)), zero);
                weights[4 + i] = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(both, 4)), zero);
            }
            codes += 64;
            for (int r = 0; r < ROWS; ++r) {
                const int8x16_t value = load_codes(rows.codes[r] + column);
                for (int i = 0; i < 8; ++i) dot[r][i] = vdotq_s32(dot[r][i], weights[i], value);
            }
        }
        for (int i = 0; i < 8; ++i) {
            // Halves are widened by what every 64-bit Arm has.
            const float32x4_t scale = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(scales + 32 * g + 4 * i)));
            for (int r = 0; r < ROWS; ++r) total[r][i] = add_product(total[r][i], scale, vcvtq_f32_s32(dot[r][i]));
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        for (int i = 0; i < 8; ++i) vst1q_f32(rows.outputs[r] + 4 * i, vmulq_n_f32(total[r][i], rows.scales[r]));
    }
}

template <int ROWS>
OZ_TARGET void tile8_of(const int8_t *codes, const float *scales, int64_t columns, const TileRows &rows) {
    int32x4_t dot[ROWS][4];
    for (int r = 0; r < ROWS; ++r) {
        for (int32x4_t &sum : dot[r]) sum = vdupq_n_s32(0);
    }
    for (int64_t step = 0; step < columns / 4; ++step) {
        __builtin_prefetch(codes + 64 * step + kAhead);
        int8x16_t weights[4];
        for (int i = 0; i < 4; ++i) weights[i] = load(codes + 64 * step + 16 * i);
        for (int r = 0; r < ROWS; ++r) {
            const int8x16_t value = load_codes(rows.codes[r] + 4 * step);
            for (int i = 0; i < 4; ++i) dot[r][i] = vdotq_s32(dot[r][i], weights[i], value);
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        for (int i = 0; i < 4; ++i) {
            const float32x4_t sum = vmulq_f32(vld1q_f32(scales + 4 * i), vcvtq_f32_s32(dot[r][i]));
            vst1q_f32(rows.outputs[r] + 4 * i, vmulq_n_f32(sum, rows.scales[r]));
        }
    }
}

OZ_TILES

OZ_ELEMENTWISE(OZ_TARGET)

}  // namespace

// 32 registers: eight sums of a row and its eight weights, so two rows in 4 bits and six in 8 bits.
const Variant kNeonDot = {"neondot", 2, 6, tile4, tile8, quantise, swiglu, read, top, weight, &kLayerPortable};

}  // namespace oz

#endif
