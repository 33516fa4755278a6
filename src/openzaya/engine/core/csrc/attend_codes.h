// Attention over a page of int8 keys and values, in integers; a part of layer_kernels.h.
//
// Queries, and the weights of places, become factors: integers of 16 bits with one scale. What they give with codes are
// integers of 32 bits, exact and so the same in any order and with any instruction. A file of instructions says how sixteen
// such sums are kept (Whole) and how four codes and their four factors join each of them.

// Bounds a factor, so that its upper byte is a signed one whatever the sign of the lower.
constexpr float kMostFactor = 127 * 256;

// The numbers of x as factors of the scale that is returned: NaN where one is not finite. Below 1e-30 all are 0.
OZ_INNER float factors_of(const float *x, int64_t count, int16_t *factors) {
    uint32_t highest = 0;
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
        highest = magnitude > highest ? magnitude : highest;
    }
    const float top = float_of(highest);
    const bool finite = highest < 0x7f800000u;
    const float inverse = finite && top > 1e-30f ? kMostFactor / top : 0.0f;
    for (int64_t i = 0; i < count; ++i) {
        const float ratio = finite ? x[i] * inverse : 0.0f;
        factors[i] = static_cast<int16_t>(bits_of(ratio + kRounder) - kRounderBits);
    }
    return finite ? top / kMostFactor : __builtin_nanf("");
}

OZ_TARGET void prepare(const oz_attention &a, const float *queries, PreparedQueries *prepared) {
    const int64_t width = padded_channels(a);
    for (int h = 0; h < a.query_heads / a.key_heads; ++h) {
        int16_t *factors = prepared->factors + h * width;
        std::memset(factors, 0, sizeof *factors * static_cast<size_t>(width));
        prepared->scales[h] = factors_of(queries + h * a.channels, a.channels, factors);
        prepared->offsets[h] = arrange_queries(factors, width);
    }
}

// As `score`, of HEADS queries from number `head` on.
template <int HEADS, int BLOCKS>
OZ_INNER void score_codes(const oz_attention &a, const PreparedQueries &queries, int head, const int8_t *keys,
                          const int8_t *ahead, int64_t first, float (*scores)[kMostPage]) {
    const int64_t width = padded_channels(a);
    const int16_t *factors = queries.factors + head * width;
    Whole sums[HEADS][BLOCKS];
    for (int h = 0; h < HEADS; ++h) {
        for (int i = 0; i < BLOCKS; ++i) sums[h][i] = started(queries.offsets[head + h]);
    }
    for (int64_t c = 0; c < width; c += 4) {
        for (int i = 0; i < BLOCKS; ++i) {
            const int64_t at = c * a.page_tokens + (first + i * kLanes) * 4;
            __builtin_prefetch(ahead + at, 0, 2);
            const Codes codes = codes_at(keys + at);
            for (int h = 0; h < HEADS; ++h) add_scored(sums[h][i], codes, factors + h * width + c);
        }
    }
    const auto *scales = reinterpret_cast<const char *>(keys) + width * a.page_tokens;
    for (int i = 0; i < BLOCKS; ++i) {
        float there[kLanes];
        std::memcpy(there, scales + (first + i * kLanes) * 4, sizeof there);
        const Lanes scale = load_lanes(there);
        for (int h = 0; h < HEADS; ++h) {
            store_some(scores[h] + first + i * kLanes, floats_of(sums[h][i]) * (scale * queries.scales[head + h]), kLanes);
        }
    }
}

// As `mix`, by the factors of the weights and their scales.
template <int HEADS, int BLOCKS>
OZ_INNER void mix_codes(const oz_attention &a, const int8_t *values, const int8_t *ahead, int64_t first, int low, int high,
                        const int16_t (*factors)[kMostPage], const float *scales, const float *fades, float *running) {
    const int64_t width = a.channels + 2;
    Whole sums[HEADS][BLOCKS];
    for (int h = 0; h < HEADS; ++h) {
        for (int i = 0; i < BLOCKS; ++i) sums[h][i] = started({0, 0});
    }
    for (int64_t place = low / 4 * 4; place < high; place += 4) {
        for (int i = 0; i < BLOCKS; ++i) {
            const int64_t at = place * padded_channels(a) + (first + i * kLanes) * 4;
            __builtin_prefetch(ahead + at, 0, 2);
            const Codes codes = codes_at(values + at);
            for (int h = 0; h < HEADS; ++h) add_mixed(sums[h][i], codes, factors[h] + place);
        }
    }
    for (int h = 0; h < HEADS; ++h) {
        for (int i = 0; i < BLOCKS; ++i) {
            float *to = running + h * width + first + i * kLanes;
            const int64_t rest = a.channels - first - i * kLanes, count = rest < kLanes ? rest : kLanes;
            store_some(to, load_some(to, count) * fades[h] + floats_of(sums[h][i]) * scales[h], count);
        }
    }
}

// The weights of the places `low` .. `high`, times the scales of their values, as factors.
OZ_INNER float weight_factors(const oz_attention &a, const int8_t *values, int low, int high, const float *weights,
                              int16_t *factors) {
    const auto *scales = reinterpret_cast<const char *>(values) + padded_channels(a) * a.page_tokens;
    const int first = low / kLanes * kLanes;
    const int count = (high - first + kLanes - 1) / kLanes * kLanes;
    float scaled[kMostPage], there[kMostPage];
    std::memcpy(there, scales + first * 4, sizeof(float) * static_cast<size_t>(count));
    for (int i = 0; i < count; ++i) {
        const int place = first + i;
        scaled[i] = (place >= low) & (place < high) ? weights[place] * there[i] : 0.0f;
    }
    const float scale = factors_of(scaled, count, factors + first);
    arrange_weights(factors + first, count);
    return scale;
}

template <int HEADS>
OZ_INNER void attend_codes(const oz_attention &a, const PreparedQueries &queries, int head, const int8_t *keys,
                           const int8_t *values, const int8_t *next, int low, int high, float *running) {
    alignas(64) int16_t factors[HEADS][kMostPage];
    float scores[HEADS][kMostPage], fades[HEADS], scales[HEADS];
    for (int64_t at = padded_channels(a) * a.page_tokens; at < vector_bytes(a) * a.page_tokens; at += 64) {
        __builtin_prefetch(values + at, 0, 2);
        __builtin_prefetch(next + at, 0, 2);
    }
    int64_t block = low / kLanes * kLanes;
    for (; block + kCoded * kLanes <= (high + kLanes - 1) / kLanes * kLanes; block += kCoded * kLanes) {
        score_codes<HEADS, kCoded>(a, queries, head, keys, values, block, scores);
    }
    for (; block < high; block += kLanes) score_codes<HEADS, 1>(a, queries, head, keys, values, block, scores);
    for (int h = 0; h < HEADS; ++h) {
        fades[h] = weigh(a, low, high, scores[h], running + h * (a.channels + 2));
        scales[h] = weight_factors(a, values, low, high, scores[h], factors[h]);
    }
    int64_t c = 0;
    for (; c + kCoded * kLanes <= a.channels; c += kCoded * kLanes) {
        mix_codes<HEADS, kCoded>(a, values, next, c, low, high, factors, scales, fades, running);
    }
    for (; c < a.channels; c += kLanes) {
        mix_codes<HEADS, 1>(a, values, next, c, low, high, factors, scales, fades, running);
    }
}

OZ_INNER void attend_page_of_codes(const oz_attention &a, const PreparedQueries &queries, const void *keys,
                                   const void *values, const void *next, int low, int high, float *running) {
    const auto *k = static_cast<const int8_t *>(keys), *v = static_cast<const int8_t *>(values);
    const auto *n = static_cast<const int8_t *>(next);
    const int group = a.query_heads / a.key_heads;
    int head = 0;
    for (; head + kCodedHeads <= group; head += kCodedHeads) {
        attend_codes<kCodedHeads>(a, queries, head, k, v, n, low, high, running + head * (a.channels + 2));
    }
    for (; head < group; ++head) {
        attend_codes<1>(a, queries, head, k, v, n, low, high, running + head * (a.channels + 2));
    }
}
