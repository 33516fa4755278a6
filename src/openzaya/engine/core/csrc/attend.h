// Attention of one token over one page, for a key-value head and the query heads that belong to it; a part of
// layer_kernels.h.

// Sixteen kept numbers as float32, of which `count` are there and the others are 0.
OZ_INNER Lanes widened(const float *at, int64_t count) { return load_some(at, count); }

template <class Kept>
OZ_INNER Lanes widened(const Kept *at, int64_t count) {
    if (count == kLanes) return all_widened(at);
    Kept there[kLanes] = {};
    std::memcpy(there, at, static_cast<size_t>(count) * sizeof *at);
    return all_widened(there);
}

// Has the line of a sixteen that is number `i` in a row brought to the second cache, unless the one before has.
template <class Kept>
OZ_INNER void ask_for(const Kept *at, int i) {
    if (i * kLanes * sizeof(Kept) % 64 == 0) __builtin_prefetch(at, 0, 2);
}

// Scores of HEADS queries (channels) at BLOCKS sixteens of places from `first` on: (HEADS, kMostPage). What is `ahead`
// is asked for from memory meanwhile, as far as the keys of these places reach.
template <int HEADS, int BLOCKS, class Kept>
OZ_INNER void score(const oz_attention &a, const float *queries, const Kept *keys, const Kept *ahead, int64_t first,
                    float (*scores)[kMostPage]) {
    Lanes sums[HEADS][BLOCKS];
    for (int h = 0; h < HEADS; ++h) {
        for (int i = 0; i < BLOCKS; ++i) sums[h][i] = zeros();
    }
    for (int64_t c = 0; c < a.channels; ++c) {
        for (int i = 0; i < BLOCKS; ++i) {
            const int64_t at = c * a.page_tokens + first + i * kLanes;
            ask_for<Kept>(ahead + at, i);
            const Lanes key = widened(keys + at, kLanes);
            for (int h = 0; h < HEADS; ++h) sums[h][i] += key * queries[h * a.channels + c];
        }
    }
    for (int h = 0; h < HEADS; ++h) std::memcpy(scores[h] + first, sums[h], sizeof sums[h]);
}

// Turns the scores of one query at the places `low` .. `high` into weights, 0 at the others of their sixteens, and moves
// the highest score and the sum of weights of `running` on; how far what was mixed before has faded.
OZ_INNER float weigh(const oz_attention &a, int low, int high, float *scores, float *running) {
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(a.channels));
    const int first = low / kLanes * kLanes;
    const float before = running[a.channels];
    float tops[kLanes], sums[kLanes] = {};
    for (float &top : tops) top = before;
    for (int block = first; block < high; block += kLanes) {
        for (int i = 0; i < kLanes; ++i) {
            const float score = scores[block + i] * scale;
            scores[block + i] = score;
            tops[i] = (block + i >= low) & (block + i < high) & (score > tops[i]) ? score : tops[i];
        }
    }
    for (int half = kLanes / 2; half; half /= 2) {
        for (int i = 0; i < half; ++i) tops[i] = tops[i + half] > tops[i] ? tops[i + half] : tops[i];
    }
    const float highest = tops[0];
    for (int block = first; block < high; block += kLanes) {
        for (int i = 0; i < kLanes; ++i) {
            const float weight = exponential(scores[block + i] - highest);
            scores[block + i] = (block + i >= low) & (block + i < high) ? weight : 0.0f;
            sums[i] += scores[block + i];
        }
    }
    const float fade = before == -INFINITY ? 0.0f : exponential(before - highest);
    running[a.channels] = highest;
    running[a.channels + 1] = running[a.channels + 1] * fade + sum_of(load_lanes(sums));
    return fade;
}

// COUNT channels from `first` on, in sixteens, or the `rest` of fewer than sixteen where COUNT is 0: what was mixed before
// fades, and the values of the places `low` .. `high` join by their weights. What is `ahead` is asked for as in `score`.
template <int HEADS, int COUNT, class Kept>
OZ_INNER void mix(const oz_attention &a, const Kept *values, const Kept *ahead, int64_t first, int low, int high,
                  const float (*weights)[kMostPage], const float *fades, float *running) {
    constexpr int blocks = COUNT ? COUNT / kLanes : 1;
    const int64_t width = a.channels + 2, count = COUNT ? kLanes : a.channels - first;
    Lanes mixed[HEADS][blocks];
    for (int h = 0; h < HEADS; ++h) {
        for (int i = 0; i < blocks; ++i) {
            mixed[h][i] = load_some(running + h * width + first + i * kLanes, count) * fades[h];
        }
    }
    for (int place = low; place < high; ++place) {
        for (int i = 0; i < blocks; ++i) {
            const int64_t at = place * a.channels + first + i * kLanes;
            ask_for<Kept>(ahead + at, i);
            const Lanes value = widened(values + at, count);
            for (int h = 0; h < HEADS; ++h) mixed[h][i] += value * weights[h][place];
        }
    }
    for (int h = 0; h < HEADS; ++h) {
        for (int i = 0; i < blocks; ++i) store_some(running + h * width + first + i * kLanes, mixed[h][i], count);
    }
}

template <int HEADS, class Kept>
OZ_INNER void attend_heads(const oz_attention &a, const float *queries, const Kept *keys, const Kept *values, const Kept *next,
                           int low, int high, float *running) {
    float scores[HEADS][kMostPage], fades[HEADS];
    int64_t block = low / kLanes * kLanes;
    for (; block + kScored * kLanes <= (high + kLanes - 1) / kLanes * kLanes; block += kScored * kLanes) {
        score<HEADS, kScored>(a, queries, keys, values, block, scores);
    }
    for (; block < high; block += kLanes) score<HEADS, 1>(a, queries, keys, values, block, scores);
    for (int h = 0; h < HEADS; ++h) fades[h] = weigh(a, low, high, scores[h], running + h * (a.channels + 2));
    int64_t c = 0;
    for (; c + kMixed * kLanes <= a.channels; c += kMixed * kLanes) {
        mix<HEADS, kMixed * kLanes>(a, values, next, c, low, high, scores, fades, running);
    }
    for (; c + kLanes <= a.channels; c += kLanes) {
        mix<HEADS, kLanes>(a, values, next, c, low, high, scores, fades, running);
    }
    if (c < a.channels) mix<HEADS, 0>(a, values, next, c, low, high, scores, fades, running);
}

template <class Kept>
OZ_INNER void attend_page(const oz_attention &a, const float *queries, const void *keys, const void *values, const void *next,
                          int low, int high, float *running) {
    const auto *k = static_cast<const Kept *>(keys), *v = static_cast<const Kept *>(values);
    const auto *n = static_cast<const Kept *>(next);
    const int group = a.query_heads / a.key_heads;
    int head = 0;
    for (; head + 4 <= group; head += 4) {
        attend_heads<4>(a, queries + head * a.channels, k, v, n, low, high, running + head * (a.channels + 2));
    }
    for (; head < group; ++head) {
        attend_heads<1>(a, queries + head * a.channels, k, v, n, low, high, running + head * (a.channels + 2));
    }
}

#include "attend_codes.h"

OZ_TARGET void attend(const oz_attention &a, const oz_batch &b, const float *queries, const PreparedQueries *prepared,
                      int head, int64_t token, int64_t page, const void *next, float *running) {
    const int64_t position = b.positions[token], start = page * a.page_tokens;
    const int64_t first = a.window && position - a.window + 1 > start ? position - a.window + 1 - start : 0;
    const int64_t last = position - start + 1 < a.page_tokens ? position - start + 1 : a.page_tokens;
    if (first >= last) return;
    const int64_t held = b.tables[b.slots[b.sequence_of[token]] * b.pages_a_slot + page];
    const void *keys = vectors_of(a, a.keys, held, head), *values = vectors_of(a, a.values, held, head);
    const int low = static_cast<int>(first), high = static_cast<int>(last);
    if (a.kept == OZ_FLOAT32) attend_page<float>(a, queries, keys, values, next, low, high, running);
    else if (a.kept == OZ_FLOAT16) attend_page<uint16_t>(a, queries, keys, values, next, low, high, running);
    else attend_page_of_codes(a, *prepared, keys, values, next, low, high, running);
}
