// The interface's functions for a layer beside its products: how their work is cut and in which order it must come.
#include "layer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core.h"

using namespace oz;

namespace {

constexpr int64_t kTokensAChunk = 4;
constexpr int64_t kConvolvedAChunk = 16;
// Tokens that visit the pages of a section together: one that several of them share is read from memory once.
constexpr int64_t kTogether = 8;
constexpr int64_t kRouterRows = 16, kRouterTokens = 64;

const LayerKernels &kernels(const oz_core *core) { return *core->variant.layer; }

// The last columns and the last delayed value of a sequence, for its next tokens.
void move_state_on(const oz_attention &a, const oz_batch &b, const oz_cca &step, int64_t sequence) {
    const int64_t width = (a.query_heads + a.key_heads) * a.channels, half = a.key_heads * a.channels / 2;
    const int64_t past = a.taps0 + a.taps1 - 2, first = b.firsts[sequence], tokens = b.firsts[sequence + 1] - first;
    const size_t bytes = sizeof(float) * static_cast<size_t>(width);
    float *columns = a.columns + b.slots[sequence] * past * width;
    for (int64_t p = 0; p < past; ++p) {
        const int64_t token = tokens - past + p;
        if (token >= 0) std::memcpy(columns + p * width, step.projected + (first + token) * step.stride, bytes);
        else std::memcpy(columns + p * width, columns + (p + tokens) * width, bytes);
    }
    const float *last = step.projected + (first + tokens - 1) * step.stride + width + half;
    std::memcpy(a.delayed + b.slots[sequence] * half, last, sizeof(float) * static_cast<size_t>(half));
}

// One section of one key-value head for the tokens at `first` and after in `order`, page by page.
void attend_section(const oz_core *core, const oz_attention &a, const oz_batch &b, const float *queries, int64_t window,
                    const int32_t *order, int64_t first, int64_t last, int64_t section, int64_t sections, int head,
                    float *running) {
    const int64_t group = a.query_heads / a.key_heads, width = a.channels + 2;
    float *parts_of[kTogether];
    int64_t pages = 0;
    for (int64_t i = first; i < last; ++i) {
        float *part = running + ((order[i] * int64_t{a.key_heads} + head) * sections + section) * group * width;
        std::memset(part, 0, sizeof(float) * static_cast<size_t>(group * width));
        for (int64_t g = 0; g < group; ++g) part[g * width + a.channels] = -INFINITY;
        parts_of[i - first] = part;
        pages = std::max(pages, b.positions[order[i]] / a.page_tokens + 1);
    }
    for (int64_t page = section * OZ_SECTION; page < std::min((section + 1) * OZ_SECTION, pages); ++page) {
        for (int64_t i = first; i < last; ++i) {
            kernels(core).attend(a, b, queries, window, head, order[i], page, parts_of[i - first]);
        }
    }
}

}  // namespace

void oz_merge_norm(oz_core *core, const oz_merge *merge) {
    share(core, parts(merge->tokens, kTokensAChunk), [&](int64_t chunk) {
        const int64_t first = chunk * kTokensAChunk;
        for (int64_t t = first; t < std::min(first + kTokensAChunk, merge->tokens); ++t) kernels(core).merge(*merge, t);
    });
}

void oz_convolve(oz_core *core, const oz_attention *attention, const oz_batch *batch, const oz_cca *step) {
    const oz_attention &a = *attention;
    const oz_batch &b = *batch;
    const int64_t chunks_a_head = parts(b.tokens, kConvolvedAChunk);
    const auto convolve = [&](int64_t chunk) {
        const int head = static_cast<int>(chunk / chunks_a_head);
        const int64_t first = chunk % chunks_a_head * kConvolvedAChunk;
        const int64_t last = std::min(first + kConvolvedAChunk, b.tokens);
        for (int64_t t = first; t < last; t += kConvolvedTokens) {
            const int tokens = static_cast<int>(std::min<int64_t>(kConvolvedTokens, last - t));
            kernels(core).convolve(a, b, *step, head, t, tokens);
        }
    };
    // The state moves on only when no token needs what it was.
    const auto move = [&](int64_t sequence) { move_state_on(a, b, *step, sequence); };
    share(core, (a.query_heads + a.key_heads) * chunks_a_head, convolve, b.sequences, move);
}

void oz_attend(oz_core *core, const oz_attention *attention, const oz_batch *batch, const float *queries,
               int64_t window, const int32_t *order, float *running, float *mixed) {
    const oz_attention &a = *attention;
    const oz_batch &b = *batch;
    int64_t pages = 0;
    for (int64_t t = 0; t < b.tokens; ++t) pages = std::max(pages, b.positions[t] / a.page_tokens + 1);
    // Sections are of a fixed length, so that the order of sums depends on a token's position alone.
    const int64_t sections = parts(pages, OZ_SECTION), groups = parts(b.tokens, kTogether);
    const int64_t size = a.query_heads / a.key_heads * (a.channels + 2);
    const auto attend = [&](int64_t chunk) {
        const int64_t first = chunk % groups * kTogether, section = chunk / groups % sections;
        attend_section(core, a, b, queries, window, order, first, std::min(first + kTogether, b.tokens), section,
                       sections, static_cast<int>(chunk / groups / sections), running);
    };
    const auto join = [&](int64_t chunk) {
        const int64_t first = chunk * kTokensAChunk * a.key_heads;
        const int64_t last = std::min(first + kTokensAChunk * a.key_heads, b.tokens * a.key_heads);
        for (int64_t i = first; i < last; ++i) {
            const int64_t width = a.query_heads / a.key_heads * a.channels;
            kernels(core).join(a, sections, running + i * sections * size, mixed + i * width);
        }
    };
    share(core, groups * sections * a.key_heads, attend, parts(b.tokens, kTokensAChunk), join);
}

void oz_route(oz_core *core, const oz_router *router, const oz_routing *routing) {
    const int64_t row_parts = parts(router->width, kRouterRows);
    const auto state = [&](int64_t chunk) {
        const int64_t row = chunk % row_parts * kRouterRows, token = chunk / row_parts * kRouterTokens;
        for (int64_t t = token; t < std::min(token + kRouterTokens, routing->tokens); ++t) {
            kernels(core).router_state(*router, *routing, t, row, std::min<int64_t>(row + kRouterRows, router->width));
        }
    };
    const auto choose = [&](int64_t token) { kernels(core).choose(*router, *routing, token); };
    share(core, row_parts * parts(routing->tokens, kRouterTokens), state, routing->tokens, choose);
}
