// A tile's number of rows as a constant of its code: `OZ_FOR_ROWS(rows, call)` is `call<rows>(...)`.
#pragma once

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
