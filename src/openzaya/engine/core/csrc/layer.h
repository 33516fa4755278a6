// What a layer of the model does beside its products with quantised weights, one token (or few) at a time, in float32.
// Compiled once for each kind of register.
#pragma once

#include "abi.h"
#include "variants.h"

namespace oz {

struct LayerKernels {
    // normed = x / rms(x) * weight, after x = (output * output_weight + b) * s + (x + b') * s' where `output` is given.
    void (*merge)(const oz_merge &merge, int64_t token);
    // One head (queries first) of at most kConvolvedTokens tokens: convolutions, mean, norm, temperature, rotation.
    // Writes queries, or the keys and values of their pages.
    void (*convolve)(const oz_attention &attention, const oz_batch &batch, const oz_cca &step, int head, int64_t first,
                     int tokens);
    // One key-value head of one token over its pages first_page .. last_page: adds to `running` (group, channels + 2).
    void (*attend)(const oz_attention &attention, const oz_batch &batch, const float *queries, int64_t window, int head,
                   int64_t token, int64_t page, float *running);
    // Joins the sections of one key-value head of one token.
    void (*join)(const oz_attention &attention, int64_t sections, const float *running, float *mixed);
    // Rows `first` .. `last` of the router's states of one token.
    void (*router_state)(const oz_router &router, const oz_routing &routing, int64_t token, int64_t first,
                         int64_t last);
    void (*choose)(const oz_router &router, const oz_routing &routing, int64_t token);
};

constexpr int kConvolvedTokens = 4;
constexpr int kMostChannels = 256, kMostTaps = 4, kMostGroup = 16, kMostRouter = 1024, kMostClasses = 256;

}  // namespace oz
