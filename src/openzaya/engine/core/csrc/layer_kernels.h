// The kernels of layer.h in plain C++, to be included by a file for each kind of register, which defines OZ_TARGET, names
// the table OZ_LAYER, says how halves are widened and how codes are multiplied (attend_codes.h), and how much its registers
// hold: sixteens of places (kScored) and of channels (kMixed) for four query heads, of either (kCoded) for kCodedHeads of
// them over codes, tokens (kRouted) times rows (kRoutedRows) of the router.
#pragma once

#include <cmath>

#include "kept.h"
#include "lanes.h"
#include "layer.h"

namespace oz {

namespace {

// ---- residual stream ----

OZ_TARGET void merge(const oz_residual &r, int64_t width, float epsilon, const float *output, float weight, float *x,
                     float *normed) {
    if (output) {
        for (int64_t i = 0; i < width; ++i) {
            x[i] = (output[i] * weight + r.output_bias[i]) * r.output_scale[i] +
                   (x[i] + r.residual_bias[i]) * r.residual_scale[i];
        }
    }
    const float mean = dot(x, x, width) / static_cast<float>(width);
    const float inverse = 1.0f / __builtin_sqrtf(mean + epsilon);
    for (int64_t i = 0; i < width; ++i) normed[i] = r.norm[i] * (x[i] * inverse);
}

// ---- compressed convolutional attention ----

// Numbers of a token in `projected`: queries, keys, current values, delayed values.
OZ_INLINE int64_t projected_width(const oz_attention &a) {
    return static_cast<int64_t>(a.query_heads + 2 * a.key_heads) * a.channels;
}

// The columns of one head, `back` places before a token: of this step, or of the state that the sequence keeps.
OZ_INLINE const float *column(const oz_attention &a, const oz_batch &b, const float *projected, int head, int64_t token,
                              int back) {
    const int32_t sequence = b.sequence_of[token];
    const int64_t place = token - b.firsts[sequence] - back;
    if (place >= 0) return projected + (token - back) * projected_width(a) + head * a.channels;
    const int64_t past = a.taps0 + a.taps1 - 2, width = (a.query_heads + a.key_heads) * a.channels;
    return a.columns + (b.slots[sequence] * past + past + place) * width + head * a.channels;
}

// Output of the depthwise convolution at the places that the head-wise one reads, oldest first: (taps1, channels).
OZ_INLINE void mix_depthwise(const oz_attention &a, const oz_batch &b, const float *projected, int head, int64_t token,
                             float *mixed) {
    const int64_t width = (a.query_heads + a.key_heads) * a.channels;
    for (int tap1 = 0; tap1 < a.taps1; ++tap1) {
        float *out = mixed + tap1 * a.channels;
        std::memcpy(out, a.depthwise_bias + head * a.channels, sizeof(float) * static_cast<size_t>(a.channels));
        for (int tap0 = 0; tap0 < a.taps0; ++tap0) {
            const float *in = column(a, b, projected, head, token, a.taps1 - 1 - tap1 + a.taps0 - 1 - tap0);
            const float *weight = a.depthwise + tap0 * width + head * a.channels;
            for (int c = 0; c < a.channels; ++c) out[c] += in[c] * weight[c];
        }
    }
}

// BLOCKS times sixteen channels of the head-wise convolution of TOKENS tokens: each weight is read once for all of them,
// and the sums wait for none of the others.
template <int TOKENS, int BLOCKS, class Number>
OZ_INLINE void mix_blocks(const Number *weights, const float *bias, int64_t inputs,
                          const float (*mixed)[kMostTaps * kMostChannels], int64_t first, float (*out)[kMostChannels]) {
    Lanes sums[TOKENS][BLOCKS];
    for (int t = 0; t < TOKENS; ++t) {
        for (int i = 0; i < BLOCKS; ++i) sums[t][i] = load_lanes(bias + i * kLanes);
    }
    int64_t k = 0;
    for (; k + 2 <= inputs; k += 2) {
        for (int i = 0; i < BLOCKS; ++i) {
            const TwoLanes weight = load_two(weights + (i * inputs + k) * kLanes / kNumbersIn<Number>);
            for (int t = 0; t < TOKENS; ++t) {
                sums[t][i] += weight.first * mixed[t][k];
                sums[t][i] += weight.second * mixed[t][k + 1];
            }
        }
    }
    if constexpr (kNumbersIn<Number> == 1) {
        for (int i = 0; k < inputs && i < BLOCKS; ++i) {
            const Lanes weight = load_lanes(weights + (i * inputs + k) * kLanes);
            for (int t = 0; t < TOKENS; ++t) sums[t][i] += weight * mixed[t][k];
        }
    }
    for (int t = 0; t < TOKENS; ++t) std::memcpy(out[t] + first, sums[t], sizeof sums[t]);
}

template <class Number>
OZ_INLINE void mix_grouped(const oz_attention &a, const Number *grouped, int head, int tokens,
                           const float (*mixed)[kMostTaps * kMostChannels], float (*out)[kMostChannels]) {
    const int64_t blocks = (a.channels + kLanes - 1) / kLanes, inputs = a.taps1 * a.channels;
    const int64_t block_size = inputs * kLanes / kNumbersIn<Number>;
    const Number *weights = grouped + head * blocks * block_size;
    const float *bias = a.grouped_bias + head * blocks * kLanes;
    int64_t block = 0;
    if (tokens == 1) {
        for (; block + 4 <= blocks; block += 4) {
            mix_blocks<1, 4>(weights + block * block_size, bias + block * kLanes, inputs, mixed, block * kLanes, out);
        }
    }
    for (; block < blocks; ++block) {
        mix_blocks<kConvolvedTokens, 1>(weights + block * block_size, bias + block * kLanes, inputs, mixed, block * kLanes, out);
    }
}

// Adds the mean of queries and keys: for a query head its own with its key head, for a key head the mean of those.
OZ_INLINE void add_mean(const oz_attention &a, const float *projected, int head, float *out) {
    const int group = a.query_heads / a.key_heads;
    const bool query = head < a.query_heads;
    const int key = query ? head / group : head - a.query_heads;
    const float *key_column = projected + (a.query_heads + key) * a.channels;
    for (int c = 0; c < a.channels; ++c) {
        float mean = 0.0f;
        if (query) {
            mean = (projected[head * a.channels + c] + key_column[c]) * 0.5f;
        } else {
            for (int j = 0; j < group; ++j) {
                mean += (projected[(key * group + j) * a.channels + c] + key_column[c]) * 0.5f;
            }
            mean /= static_cast<float>(group);
        }
        out[c] += mean;
    }
}

// To length sqrt(channels) times `temperature`, then rotated in its first channels.
OZ_INLINE void norm_and_rotate(const oz_attention &a, int64_t position, float temperature, float *x) {
    float length = __builtin_sqrtf(dot(x, x, a.channels));
    length = length > 1.1920929e-7f ? length : 1.1920929e-7f;
    const float scale = __builtin_sqrtf(static_cast<float>(a.channels)) / length;
    for (int c = 0; c < a.channels; ++c) x[c] = x[c] * scale * temperature;
    const float *cosine = a.cosine + position * a.rotary, *sine = a.sine + position * a.rotary;
    for (int c = 0; c < a.rotary / 2; ++c) {
        const float first = x[c], second = x[c + a.rotary / 2];
        x[c] = first * cosine[c] - second * sine[c];
        x[c + a.rotary / 2] = second * cosine[c + a.rotary / 2] + first * sine[c + a.rotary / 2];
    }
}

// Where the key and the value of a token go.
struct Place {
    int64_t page, place;
};

OZ_INLINE Place place_of(const oz_attention &a, const oz_batch &b, int64_t token) {
    const int64_t position = b.positions[token];
    const int64_t slot = b.slots[b.sequence_of[token]];
    return {b.tables[slot * b.pages_a_slot + position / a.page_tokens], position % a.page_tokens};
}

// Half of all value channels are the token's own, half those of the token before; heads divide them in this order.
OZ_INLINE void store_value(const oz_attention &a, const oz_batch &b, const float *projected, int key, int64_t token) {
    const int64_t half = a.key_heads * a.channels / 2, width = (a.query_heads + a.key_heads) * a.channels;
    const int32_t sequence = b.sequence_of[token];
    const float *own = projected + token * projected_width(a) + width;
    const float *before = token > b.firsts[sequence] ? own - projected_width(a) + half
                                                     : a.delayed + b.slots[sequence] * half;
    float value[kMostChannels];
    for (int64_t c = 0; c < a.channels; ++c) {
        const int64_t channel = key * a.channels + c;
        value[c] = channel < half ? own[channel] : before[channel - half];
    }
    const Place to = place_of(a, b, token);
    keep_value(a, value, to.page, key, to.place);
}

OZ_TARGET void convolve(const oz_attention &a, const oz_batch &b, const float *projected, int head, int64_t first,
                        int tokens, float *queries) {
    float mixed[kConvolvedTokens][kMostTaps * kMostChannels], out[kConvolvedTokens][kMostChannels];
    for (int t = 0; t < kConvolvedTokens; ++t) {
        if (t < tokens) mix_depthwise(a, b, projected, head, first + t, mixed[t]);
        else std::memset(mixed[t], 0, sizeof(float) * static_cast<size_t>(a.taps1 * a.channels));
    }
    if (a.bfloat16) mix_grouped(a, static_cast<const Bfloat16 *>(a.grouped), head, tokens, mixed, out);
    else mix_grouped(a, static_cast<const float *>(a.grouped), head, tokens, mixed, out);
    for (int t = 0; t < tokens; ++t) {
        const int64_t token = first + t;
        const bool query = head < a.query_heads;
        const int key = head - a.query_heads;
        add_mean(a, projected + token * projected_width(a), head, out[t]);
        norm_and_rotate(a, b.positions[token], query ? 1.0f : a.temperature[key], out[t]);
        if (query) {
            float *to = queries + (token * a.query_heads + head) * a.channels;
            std::memcpy(to, out[t], sizeof(float) * static_cast<size_t>(a.channels));
        } else {
            const Place to = place_of(a, b, token);
            keep_key(a, out[t], to.page, key, to.place);
            store_value(a, b, projected, key, token);
        }
    }
}

#include "attend.h"

OZ_TARGET void join(const oz_attention &a, int64_t sections, const float *running, float *mixed) {
    const int64_t group = a.query_heads / a.key_heads, channels = a.channels, width = channels + 2;
    for (int64_t g = 0; g < group; ++g) {
        float highest = -INFINITY, sum = 0.0f;
        float *out = mixed + g * channels;
        for (int64_t s = 0; s < sections; ++s) {
            const float own = running[(s * group + g) * width + channels];
            highest = own > highest ? own : highest;
        }
        std::memset(out, 0, sizeof(float) * static_cast<size_t>(channels));
        for (int64_t s = 0; s < sections; ++s) {
            const float *part = running + (s * group + g) * width;
            if (part[channels] == -INFINITY) continue;
            const float weight = exponential(part[channels] - highest);
            sum += part[channels + 1] * weight;
            for (int64_t c = 0; c < channels; ++c) out[c] += part[c] * weight;
        }
        for (int64_t c = 0; c < channels; ++c) out[c] /= sum;
    }
}

// ---- router ----

// erf within 3e-7: a rational function of x, which is +-1 to float32 beyond 4.
OZ_INLINE float error_function(float x) {
    x = x < -4.0f ? -4.0f : x;
    x = x > 4.0f ? 4.0f : x;
    const float y = x * x;
    float above = -2.72614225801306e-10f;
    above = above * y + 2.77068142495902e-08f;
    above = above * y + -2.10102402082508e-06f;
    above = above * y + -5.69250639462346e-05f;
    above = above * y + -7.34990630326855e-04f;
    above = above * y + -2.95459980854025e-03f;
    above = above * y + -1.60960333262415e-02f;
    float below = -1.45660718464996e-05f;
    below = below * y + -2.13374055278905e-04f;
    below = below * y + -1.68282697438203e-03f;
    below = below * y + -7.37332916720468e-03f;
    below = below * y + -1.42647390514189e-02f;
    return x * above / below;
}

OZ_INLINE void gelu(float *x, int64_t count) {
    for (int64_t i = 0; i < count; ++i) x[i] = 0.5f * x[i] * (1.0f + error_function(x[i] * 0.70710678f));
}

// Rows `first` .. `last` of one of the router's matrices times x.
OZ_INLINE void router_linear(const oz_router &r, const float *x, const void *matrix, const float *bias, int64_t first,
                             int64_t last, int64_t columns, bool in_cache, float *result) {
    if (bias) bias += first;
    const int64_t rows = last - first;
    if (r.bfloat16) {
        linear(x, static_cast<const Bfloat16 *>(matrix) + first * columns / 2, bias, rows, columns, in_cache, result);
    } else {
        linear(x, static_cast<const float *>(matrix) + first * columns, bias, rows, columns, in_cache, result);
    }
}

// Values of kRouted tokens, each weight that is read and widened for all of them: (tokens, kMostRouter).
template <class Number>
OZ_INNER void router_rows(const oz_router &r, const float *x, const Number *matrix, int64_t first, int64_t last,
                          float (*values)[kMostRouter]) {
    matrix += first * r.hidden / kNumbersIn<Number>;
    for (int64_t n = first; n + kRoutedRows <= last; n += kRoutedRows) {
        dots_of_many<kRouted, kRoutedRows>(x, matrix, r.hidden, r.hidden, values[0] + n, kMostRouter);
        matrix += kRoutedRows * r.hidden / kNumbersIn<Number>;
    }
    for (int t = 0; r.down_bias && t < kRouted; ++t) {
        for (int64_t n = first; n < last; ++n) values[t][n] += r.down_bias[n];
    }
}

OZ_INNER void move_state_on(const oz_router &r, const float *values, int64_t first, int64_t last, float *states) {
    for (int64_t i = first; i < last; ++i) states[i] = values[i] + (r.depth_scale ? states[i] * r.depth_scale[i] : 0.0f);
}

OZ_TARGET void router_states(const oz_router &r, const float *x, int64_t tokens, int64_t first, int64_t last,
                             float *states) {
    float values[kRouted][kMostRouter];
    int64_t t = 0;
    // Bits do not depend on how many tokens go together: each sum is over the same lanes in the same order.
    const bool whole = (last - first) % kRoutedRows == 0 && r.hidden % (2 * kLanes) == 0;
    for (; whole && t + kRouted <= tokens; t += kRouted) {
        if (r.bfloat16) router_rows(r, x + t * r.hidden, static_cast<const Bfloat16 *>(r.down), first, last, values);
        else router_rows(r, x + t * r.hidden, static_cast<const float *>(r.down), first, last, values);
        for (int i = 0; i < kRouted; ++i) move_state_on(r, values[i], first, last, states + (t + i) * r.width);
    }
    for (; t < tokens; ++t) {
        router_linear(r, x + t * r.hidden, r.down, r.down_bias, first, last, r.hidden, t > 0, values[0] + first);
        move_state_on(r, values[0], first, last, states + t * r.width);
    }
}

OZ_TARGET void choose(const oz_router &r, const float *state, bool in_cache, int32_t *chosen, float *weight) {
    float hidden[kMostRouter], next[kMostRouter], p[kMostClasses];
    const float mean = dot(state, state, r.width) / static_cast<float>(r.width);
    const float inverse = 1.0f / __builtin_sqrtf(mean + r.epsilon);
    for (int64_t i = 0; i < r.width; ++i) hidden[i] = r.norm[i] * (state[i] * inverse);
    router_linear(r, hidden, r.fc1, r.fc1_bias, 0, r.width, r.width, in_cache, next);
    gelu(next, r.width);
    router_linear(r, next, r.fc2, r.fc2_bias, 0, r.width, r.width, in_cache, hidden);
    gelu(hidden, r.width);
    router_linear(r, hidden, r.out, nullptr, 0, r.classes, r.width, in_cache, p);
    float highest = p[0], sum = 0.0f;
    for (int i = 1; i < r.classes; ++i) highest = p[i] > highest ? p[i] : highest;
    for (int i = 0; i < r.classes; ++i) sum += p[i] = exponential(p[i] - highest);
    int best = 0;
    for (int i = 0; i < r.classes; ++i) {
        p[i] /= sum;
        if (p[i] + r.balancing[i] > p[best] + r.balancing[best]) best = i;
    }
    *chosen = best;
    *weight = p[best];
}

}  // namespace

const LayerKernels OZ_LAYER = {merge, convolve, prepare, attend, join, router_states, choose};

}  // namespace oz
