// Kernels for any processor, and what the others are written after.
#include "elementwise.h"
#include "variants.h"

namespace oz {

namespace {

void tile4(int rows, const uint8_t *codes, const uint16_t *scales, int64_t columns, int group, const TileRows &x) {
    for (int r = 0; r < rows; ++r) {
        float total[32] = {};
        for (int64_t g = 0; g < columns / group; ++g) {
            int32_t dot[32];
            for (int32_t &sum : dot) sum = -8 * x.sums[r][g];
            for (int64_t step = g * group / 4; step < (g + 1) * group / 4; ++step) {
                for (int i = 0; i < 16; ++i) {
                    for (int j = 0; j < 4; ++j) {
                        const int both = codes[64 * step + 4 * i + j], value = x.codes[r][4 * step + j];
                        dot[i] += (both & 15) * value;
                        dot[16 + i] += (both >> 4) * value;
                    }
                }
            }
            for (int i = 0; i < 32; ++i) total[i] += from_half(scales[32 * g + i]) * static_cast<float>(dot[i]);
        }
        for (int i = 0; i < 32; ++i) x.outputs[r][i] = x.scales[r] * total[i];
    }
}

void tile8(int rows, const int8_t *codes, const float *scales, int64_t columns, const TileRows &x) {
    for (int r = 0; r < rows; ++r) {
        int32_t dot[16] = {};
        for (int64_t step = 0; step < columns / 4; ++step) {
            for (int i = 0; i < 16; ++i) {
                for (int j = 0; j < 4; ++j) dot[i] += codes[64 * step + 4 * i + j] * x.codes[r][4 * step + j];
            }
        }
        for (int i = 0; i < 16; ++i) x.outputs[r][i] = x.scales[r] * (scales[i] * static_cast<float>(dot[i]));
    }
}

OZ_ELEMENTWISE()

}  // namespace

const Variant kPortable = {"portable", 8, 8, tile4, tile8, quantise, swiglu, read, top, weight, &kLayerPortable};

}  // namespace oz
