// The flat C interface of the compiled core. Every function may be called from any thread; calls on one core wait for
// each other. Sizes are in elements unless they say otherwise. Nothing is checked here: openzaya.engine.core.products
// refuses what does not fit, in words.
#pragma once

#include <cstdint>

#define OZ_API extern "C" __attribute__((visibility("default")))

struct oz_core;

// A quantised matrix W[rows, columns], or a stack of `experts` such matrices one after the other.
//   bits 4: codes uint8 (blocks, columns / 4, 64), scales float16 (blocks, columns / group, 32), blocks of 32 rows
//   bits 8: codes int8 (blocks, columns / 4, 64), scales float32 (blocks, 16), blocks of 16 rows; group is columns
// The last block is padded with rows of zeros, which no product writes.
struct oz_matrix {
    const void *codes;
    const void *scales;
    int64_t rows;
    int64_t columns;
    int32_t bits;
    int32_t group;
    int32_t experts;
};

// Tokens quantised to int8, each with a scale of its own.
struct oz_activations {
    const int8_t *codes;   // (tokens, columns)
    const float *scales;   // (tokens)
    const int32_t *sums;   // (tokens, columns / group): sums of the codes
    int64_t tokens;
    int64_t columns;
    int32_t group;
};

// Which tokens each matrix of a stack multiplies: places[ends[e - 1] .. ends[e]) for matrix e.
struct oz_grouping {
    const int32_t *places;
    const int32_t *ends;
};

OZ_API const char *oz_fingerprint(void);

// Instruction sets, best last; `oz_supported` has bit v set where this machine runs variant v.
OZ_API int oz_variant_count(void);
OZ_API const char *oz_variant_name(int variant);
OZ_API uint32_t oz_supported(void);

// A core is a variant and a pool of threads, the caller's own thread among them. Null where memory or threads run out.
OZ_API oz_core *oz_open(int variant, int threads);
OZ_API void oz_close(oz_core *core);

OZ_API void oz_quantise(oz_core *core, const float *x, int64_t tokens, int64_t columns, int32_t group, int8_t *codes,
                        float *scales, int32_t *sums);

// output[t, n] = scale_t * sum over groups of scale_ng * dot, for the tokens t of `grouping` (all of them, with the
// first matrix, where `grouping` is null); other rows of `output` (tokens, stride) are left as they are.
OZ_API void oz_product(oz_core *core, const oz_matrix *matrix, const oz_activations *x, const oz_grouping *grouping,
                       float *output, int64_t stride);

// The same for rows that alternate between a block of gate and the matching block of up: output (tokens, stride) gets
// silu(gate) * up, half as many columns as the matrix has rows.
OZ_API void oz_product_swiglu(oz_core *core, const oz_matrix *matrix, const oz_activations *x,
                              const oz_grouping *grouping, float *output, int64_t stride);

// Reads `bytes` of memory with all threads of the pool, for measuring how fast that goes; returns a sum of them.
OZ_API uint64_t oz_read(oz_core *core, const void *memory, int64_t bytes);
