// What a layer of the model does beside its products with quantised weights, in float32.
#pragma once

#include "abi.h"
#include "variants.h"

namespace oz {

constexpr int kConvolvedTokens = 4;
constexpr int kMostChannels = 256, kMostTaps = 4, kMostGroup = 16, kMostRouter = 1024, kMostClasses = 256;
constexpr int kMostPage = 64;

// The queries of one token for one key-value head, as attention over int8 keys wants them (attend_codes.h).
struct PreparedQueries {
    int16_t factors[kMostGroup * kMostChannels];  // (group, channels)
    float scales[kMostGroup];
    struct Offsets {
        int32_t high, low;
    } offsets[kMostGroup];                        // where sums of products begin
};

// The loops over numbers, one token (or few) at a time, compiled once for each kind of register.
struct LayerKernels {
    // normed = x / rms(x) * norm, after `output` times `weight` has joined x, where it is given.
    void (*merge)(const oz_residual &residual, int64_t width, float epsilon, const float *output, float weight,
                  float *x, float *normed);
    // One head (queries first) of at most kConvolvedTokens tokens: convolutions, mean, norm, temperature, rotation.
    // Writes queries, or the keys and values of their pages.
    void (*convolve)(const oz_attention &attention, const oz_batch &batch, const float *projected, int head,
                     int64_t first, int tokens, float *queries);
    // The queries (group, channels) of one token for one key-value head, where pages are int8.
    void (*prepare)(const oz_attention &attention, const float *queries, PreparedQueries *prepared);
    // One key-value head of one token over one of its pages: adds to `running` (group, channels + 2). `prepared` are the
    // same queries, read where pages are int8; `next` are the keys that will be wanted next.
    void (*attend)(const oz_attention &attention, const oz_batch &batch, const float *queries,
                   const PreparedQueries *prepared, int head, int64_t token, int64_t page, const void *next,
                   float *running);
    // Joins the sections of one key-value head of one token.
    void (*join)(const oz_attention &attention, int64_t sections, const float *running, float *mixed);
    // Rows `first` .. `last` of the router's states (tokens, width).
    void (*router_states)(const oz_router &router, const float *x, int64_t tokens, int64_t first, int64_t last,
                          float *states);
    // Whether the weights are in the cache, because another token has just read them, is a matter of speed alone.
    void (*choose)(const oz_router &router, const float *state, bool in_cache, int32_t *chosen, float *weight);
};

// The same for all tokens of a batch, shared among the threads: the functions of abi.h but for `quantised`, which gets
// the result as int8 for the product that follows, where it is not null.
void merge_norm(oz_core *core, const oz_residual &residual, int64_t tokens, int64_t width, float epsilon, float *x,
                const float *output, const float *weights, float *normed, const oz_activations *quantised);
void attend(oz_core *core, const oz_attention &attention, const oz_batch &batch, const float *queries, float *running,
            float *mixed, const oz_activations *quantised);

}  // namespace oz
