// The kernels that exist once for each instruction set, and the choice among them.
//
// All variants give the same bits: dot products are integers, and every float32 operation is a plain multiplication,
// addition or division in a fixed order (the build forbids the compiler to fuse them).
#pragma once

#include <cstdint>

namespace oz {

struct LayerKernels;
extern const LayerKernels kLayerPortable, kLayerAvx2, kLayerAvx512;

// Tokens that one tile multiplies at once, at most.
constexpr int kMostRows = 8;

struct TileRows {
    const int8_t *codes[kMostRows];   // (columns)
    const int32_t *sums[kMostRows];   // (columns / group)
    float scales[kMostRows];
    float *outputs[kMostRows];        // as many as a block has rows
};

struct Variant {
    const char *name;
    // Rows of a tile that suit the number of registers.
    int rows4, rows8;
    // One block of weights times `rows` tokens: 32 outputs each from 4 bits, 16 from 8 bits.
    void (*tile4)(int rows, const uint8_t *codes, const uint16_t *scales, int64_t columns, int group, const TileRows &);
    void (*tile8)(int rows, const int8_t *codes, const float *scales, int64_t columns, const TileRows &);
    void (*quantise)(const float *x, int64_t columns, int group, int8_t *codes, float *scale, int32_t *sums);
    // output = silu(gate) * up
    void (*swiglu)(const float *gate, const float *up, int64_t count, float *output);
    uint64_t (*read)(const void *memory, int64_t bytes);
    // The highest of at most a block of scores: NaN where one is that or positive infinity.
    float (*top)(const float *scores, int64_t count);
    // The sum of e^((score - highest) / temperature) over at most a block.
    double (*weight)(const float *scores, int64_t count, float highest, float temperature);
    const LayerKernels *layer;
};

extern const Variant kPortable;
#if defined(__x86_64__)
extern const Variant kAvx2, kAvxVnni, kAvx512Vnni256, kAvx512Vnni;
#elif defined(__aarch64__)
extern const Variant kNeonDot;
#endif

int variant_count();
const Variant &variant(int number);
uint32_t supported_variants();

}  // namespace oz
