// How the tiles of a variant, templates by their number of rows, become the functions of its table.
#pragma once

#include "variants.h"

// A tile's number of rows as a constant of its code: `OZ_FOR_ROWS(rows, call)` is `call<rows>(...)`.
#define OZ_FOR_ROWS(rows, function, ...)                                                                              \
    switch (rows) {                                                                                                   \
        case 1: return function<1>(__VA_ARGS__);                                                                      \
        case 2: return function<2>(__VA_ARGS__);                                                                      \
        case 3: return function<3>(__VA_ARGS__);                                                                      \
        case 4: return function<4>(__VA_ARGS__);                                                                      \
        case 5: return function<5>(__VA_ARGS__);                                                                      \
        case 6: return function<6>(__VA_ARGS__);                                                                      \
        case 7: return function<7>(__VA_ARGS__);                                                                      \
        default: return function<8>(__VA_ARGS__);                                                                     \
    }

// The tiles of a variant's table, from the templates `tile4_of` and `tile8_of` of its file.
#define OZ_TILES                                                                                                      \
    void tile4(int rows, const uint8_t *codes, const uint16_t *scales, int64_t columns, int group,                    \
               const TileRows &x) {                                                                                   \
        OZ_FOR_ROWS(rows, tile4_of, codes, scales, columns, group, x)                                                 \
    }                                                                                                                 \
    void tile8(int rows, const int8_t *codes, const float *scales, int64_t columns, const TileRows &x) {              \
        OZ_FOR_ROWS(rows, tile8_of, codes, scales, columns, x)                                                        \
    }
