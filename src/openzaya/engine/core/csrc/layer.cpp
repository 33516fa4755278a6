// How the work of a layer beside its products is cut into chunks, and in which order it must come.
#include "layer.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core.h"
#include "kept.h"

namespace oz {

namespace {

constexpr int64_t kConvolvedAChunk = 16;
// Tokens that visit the pages of a section together: one that several of them share is read from memory once.
constexpr int64_t kTogether = 8;
// Pages whose attention is added up together. Fixed, so that the order of sums depends on a token's position alone.
constexpr int64_t kSection = 32;
// Bounds the sums under way, which a long prompt would otherwise have gigabytes of: 8 million floats.
constexpr int64_t kMostRunning = 1 << 23;
constexpr int64_t kRouterRows = 16, kRouterTokens = 64;

const LayerKernels &kernels(const oz_core *core) { return *core->variant.layer; }

// The last columns and the last delayed value of a sequence, for its next tokens.
void move_state_on(const oz_attention &a, const oz_batch &b, const float *projected, int64_t sequence) {
    const int64_t width = (a.query_heads + a.key_heads) * a.channels, half = a.key_heads * a.channels / 2;
    const int64_t stride = width + 2 * half;
    const int64_t past = a.taps0 + a.taps1 - 2, first = b.firsts[sequence], tokens = b.firsts[sequence + 1] - first;
    const size_t bytes = sizeof(float) * static_cast<size_t>(width);
    float *columns = a.columns + b.slots[sequence] * past * width;
    for (int64_t p = 0; p < past; ++p) {
        const int64_t token = tokens - past + p;
        if (token >= 0) std::memcpy(columns + p * width, projected + (first + token) * stride, bytes);
        else std::memcpy(columns + p * width, columns + (p + tokens) * width, bytes);
    }
    const float *last = projected + (first + tokens - 1) * stride + width + half;
    std::memcpy(a.delayed + b.slots[sequence] * half, last, sizeof(float) * static_cast<size_t>(half));
}

// Sums under way of one token: for each key-value head and section, its query heads' values, highest score and weight.
int64_t running_of_token(const oz_attention &a, int64_t pages) {
    return parts(pages, kSection) * a.query_heads * (a.channels + 2);
}

// Tokens whose sums are under way at once.
int64_t tokens_a_pass(const oz_attention &a, int64_t tokens, int64_t pages) {
    const int64_t fit = kMostRunning / running_of_token(a, pages) / kTogether * kTogether;
    return std::min(tokens, std::max(fit, kTogether));
}

// Attention of the tokens at places `first` .. `last` of the batch's order.
class AttentionPass {
  public:
    AttentionPass(const oz_core *core, const oz_attention &a, const oz_batch &b, int64_t first, int64_t last,
                  const float *queries, float *running)
        : core_(core), a_(a), b_(b), first_(first), last_(last), queries_(queries), running_(running),
          sections_(parts(b.pages, kSection)), groups_(parts(last - first, kTogether)),
          size_(a.query_heads / a.key_heads * (a.channels + 2)) {}

    int64_t chunks() const { return groups_ * sections_ * a_.key_heads; }

    // One section of one key-value head for kTogether tokens, page by page.
    void chunk(int64_t index) const {
        const int64_t first = first_ + index % groups_ * kTogether, last = std::min(first + kTogether, last_);
        const int64_t section = index / groups_ % sections_;
        const int head = static_cast<int>(index / groups_ / sections_);
        float *sums[kTogether];
        PreparedQueries prepared[kTogether];
        int64_t pages = 0;
        for (int64_t i = first; i < last; ++i) {
            sums[i - first] = cleared(i, head, section);
            if (a_.kept == OZ_INT8) kernels(core_).prepare(a_, own_queries(i, head), prepared + (i - first));
            pages = std::max(pages, b_.positions[b_.order[i]] / a_.page_tokens + 1);
        }
        const int64_t end = std::min((section + 1) * kSection, pages);
        for (int64_t page = section * kSection; page < end; ++page) {
            for (int64_t i = first; i < last; ++i) {
                const bool more = i + 1 < last;
                const void *next = keys(more ? i + 1 : first, more || page + 1 == end ? page : page + 1, head);
                kernels(core_).attend(a_, b_, own_queries(i, head), prepared + (i - first), head, b_.order[i], page,
                                      next, sums[i - first]);
            }
        }
    }

    // Joins the sections of the token at place `i`.
    void join(int64_t i, float *mixed) const {
        for (int head = 0; head < a_.key_heads; ++head) {
            float *out = mixed + head * (a_.query_heads / a_.key_heads) * a_.channels;
            kernels(core_).join(a_, sections_, running(i, head, 0), out);
        }
    }

  private:
    // Those of the token at place `i` in one of its pages. A table has room for the pages of the longest sequence, and
    // what it holds beyond its own is only asked for, not read.
    const void *keys(int64_t i, int64_t page, int head) const {
        const int64_t held = b_.tables[b_.slots[b_.sequence_of[b_.order[i]]] * b_.pages_a_slot + page];
        return vectors_of(a_, a_.keys, held, head);
    }

    const float *own_queries(int64_t i, int head) const {
        return queries_ + (b_.order[i] * a_.query_heads + head * (a_.query_heads / a_.key_heads)) * a_.channels;
    }

    float *running(int64_t i, int head, int64_t section) const {
        return running_ + (((i - first_) * a_.key_heads + head) * sections_ + section) * size_;
    }

    float *cleared(int64_t i, int head, int64_t section) const {
        float *sums = running(i, head, section);
        const int64_t width = a_.channels + 2;
        std::memset(sums, 0, sizeof(float) * static_cast<size_t>(size_));
        for (int64_t at = a_.channels; at < size_; at += width) sums[at] = -INFINITY;
        return sums;
    }

    const oz_core *const core_;
    const oz_attention &a_;
    const oz_batch &b_;
    const int64_t first_, last_;
    const float *const queries_;
    float *const running_;
    const int64_t sections_, groups_, size_;
};

}  // namespace

void merge_norm(oz_core *core, const oz_residual &residual, int64_t tokens, int64_t width, float epsilon, float *x,
                const float *output, const float *weights, float *normed, const oz_activations *quantised) {
    share(core, parts(tokens, kTokensAChunk), [&](int64_t chunk) {
        const int64_t first = chunk * kTokensAChunk;
        for (int64_t t = first; t < std::min(first + kTokensAChunk, tokens); ++t) {
            kernels(core).merge(residual, width, epsilon, output ? output + t * width : nullptr,
                                weights ? weights[t] : 1.0f, x + t * width, normed + t * width);
            if (quantised) quantise_token(core, *quantised, normed + t * width, t);
        }
    });
}

void attend(oz_core *core, const oz_attention &a, const oz_batch &b, const float *queries, float *running,
            float *mixed, const oz_activations *quantised) {
    const int64_t width = a.query_heads * a.channels, at_once = tokens_a_pass(a, b.tokens, b.pages);
    for (int64_t first = 0; first < b.tokens; first += at_once) {
        const int64_t last = std::min(first + at_once, b.tokens);
        const AttentionPass pass(core, a, b, first, last, queries, running);
        const auto visit = [&](int64_t chunk) { pass.chunk(chunk); };
        const auto join = [&](int64_t chunk) {
            const int64_t start = first + chunk * kTokensAChunk;
            for (int64_t i = start; i < std::min(start + kTokensAChunk, last); ++i) {
                const int64_t token = b.order[i];
                pass.join(i, mixed + token * width);
                if (quantised) quantise_token(core, *quantised, mixed + token * width, token);
            }
        };
        share(core, pass.chunks(), visit, parts(last - first, kTokensAChunk), join);
    }
}

}  // namespace oz

using namespace oz;

void oz_merge_norm(oz_core *core, const oz_residual *residual, int64_t tokens, int64_t width, float epsilon, float *x,
                   const float *output, const float *weights, float *normed) {
    merge_norm(core, *residual, tokens, width, epsilon, x, output, weights, normed, nullptr);
}

void oz_convolve(oz_core *core, const oz_attention *attention, const oz_batch *batch, const float *projected,
                 float *queries) {
    const oz_attention &a = *attention;
    const oz_batch &b = *batch;
    const int64_t chunks_a_head = parts(b.tokens, kConvolvedAChunk);
    const auto convolve = [&](int64_t chunk) {
        const int head = static_cast<int>(chunk / chunks_a_head);
        const int64_t first = chunk % chunks_a_head * kConvolvedAChunk;
        const int64_t last = std::min(first + kConvolvedAChunk, b.tokens);
        for (int64_t t = first; t < last; t += kConvolvedTokens) {
            const int tokens = static_cast<int>(std::min<int64_t>(kConvolvedTokens, last - t));
            kernels(core).convolve(a, b, projected, head, t, tokens, queries);
        }
    };
    // The state moves on only when no token needs what it was.
    const auto move = [&](int64_t sequence) { move_state_on(a, b, projected, sequence); };
    share(core, (a.query_heads + a.key_heads) * chunks_a_head, convolve, b.sequences, move);
}

void oz_attend(oz_core *core, const oz_attention *attention, const oz_batch *batch, const float *queries,
               float *running, float *mixed) {
    attend(core, *attention, *batch, queries, running, mixed, nullptr);
}

int64_t oz_running(const oz_attention *attention, int64_t tokens, int64_t pages) {
    return tokens_a_pass(*attention, tokens, pages) * running_of_token(*attention, pages);
}

void oz_route(oz_core *core, const oz_router *router, int64_t tokens, const float *x, float *states, int32_t *chosen,
              float *weights) {
    const oz_router &r = *router;
    const int64_t row_parts = parts(r.width, kRouterRows), chunks = row_parts * parts(tokens, kRouterTokens);
    const auto state = [&](int64_t index) {
        const int64_t chunk = in_stretches(core, index, chunks);
        const int64_t row = chunk % row_parts * kRouterRows, token = chunk / row_parts * kRouterTokens;
        const int64_t end = std::min<int64_t>(row + kRouterRows, r.width);
        const int64_t count = std::min(kRouterTokens, tokens - token);
        kernels(core).router_states(r, x + token * r.hidden, count, row, end, states + token * r.width);
    };
    const auto choose = [&](int64_t t) {
        kernels(core).choose(r, states + t * r.width, t > 0, chosen + t, weights + t);
    };
    share(core, chunks, state, tokens, choose);
}
