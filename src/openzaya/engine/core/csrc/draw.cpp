// Tokens drawn from scores, as openzaya.engine.sampling draws them. Its weights are rounded by torch, in ways that
// differ between machines, so a token is only given where no such rounding could change it; other rows get -1.
#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "core.h"
#include "elementwise.h"
#include "layer.h"

namespace oz {

namespace {

constexpr int64_t kBlock = 512, kBlocksAChunk = 64;
// Relative, on sums of float32 exponentials: 2 units in the last place here and as many there, twice over.
constexpr double kFloatSlack = 1e-6;
// The same for sums of float64 exponentials.
constexpr double kDoubleSlack = 1e-12;
constexpr int64_t kUnsure = -1;

// ---- passes over a whole row, compiled twice ----

// NaN where a score is NaN or positive infinity. In lanes, as the compiler does not find them by itself.
OZ_INLINE float highest_of(const float *logits, int64_t count) {
    constexpr int lanes = 16;
    float tops[lanes];
    int wrong[lanes] = {};
    for (float &top : tops) top = -INFINITY;
    const auto look = [&](const float *at) __attribute__((always_inline)) {
        for (int i = 0; i < lanes; ++i) {
            wrong[i] |= !(at[i] < INFINITY);
            tops[i] = at[i] > tops[i] ? at[i] : tops[i];
        }
    };
    int64_t first = 0;
    for (; first + lanes <= count; first += lanes) look(logits + first);
    float rest[lanes];
    for (int i = 0; i < lanes; ++i) rest[i] = first + i < count ? logits[first + i] : -INFINITY;
    look(rest);
    int any = 0;
    for (int i = 0; i < lanes; ++i) any |= wrong[i];
    return any ? NAN : *std::max_element(tops, tops + lanes);
}

// The sum of e^((logit - highest) / temperature) over at most a block.
OZ_INLINE double weight_of(const float *logits, int64_t count, float highest, float temperature) {
    float weights[kBlock] = {};
    for (int64_t i = 0; i < count; ++i) weights[i] = exponential((logits[i] - highest) / temperature);
    double sums[8] = {};
    for (int64_t first = 0; first < kBlock; first += 8) {
        for (int i = 0; i < 8; ++i) sums[i] += static_cast<double>(weights[first + i]);
    }
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

struct Passes {
    float (*highest)(const float *, int64_t);
    double (*weight)(const float *, int64_t, float, float);
};

float highest_plain(const float *logits, int64_t count) { return highest_of(logits, count); }
double weight_plain(const float *logits, int64_t count, float highest, float temperature) {
    return weight_of(logits, count, highest, temperature);
}
constexpr Passes kPlain = {highest_plain, weight_plain};

#if defined(__x86_64__)
__attribute__((target("avx2"))) float highest_avx2(const float *logits, int64_t count) {
    return highest_of(logits, count);
}
__attribute__((target("avx2"))) double weight_avx2(const float *logits, int64_t count, float highest,
                                                   float temperature) {
    return weight_of(logits, count, highest, temperature);
}
constexpr Passes kAvx2Passes = {highest_avx2, weight_avx2};
const Passes &passes_of(const Variant &variant) { return variant.layer == &kLayerPortable ? kPlain : kAvx2Passes; }
#else
const Passes &passes_of(const Variant &) { return kPlain; }
#endif

// ---- one row ----

// Whether the weights of all of the vocabulary are needed, and not only those of some candidates.
bool wants_weights(const oz_draw &draw) { return draw.temperature > 0 && !draw.top_k && (draw.top_p < 1 || !(draw.min_p > 0)); }

class Row {
  public:
    // `weights` has the sum of every block, where they are wanted.
    Row(const float *logits, int64_t vocabulary, const oz_draw &draw, float highest, const double *weights)
        : logits_(logits), vocabulary_(vocabulary), draw_(draw), highest_(highest), weights_(weights) {}

    int64_t token() const {
        if (!(draw_.temperature >= 0) || std::isnan(highest_)) return kUnsure;
        if (draw_.temperature == 0) return std::find(logits_, logits_ + vocabulary_, highest_) - logits_;
        return draw_.top_k || draw_.top_p < 1 || draw_.min_p > 0 ? filtered() : by_inverse();
    }

  private:
    struct Candidate {
        float score;
        int32_t id;
        // From likely to unlikely, equal ones by id.
        bool operator<(const Candidate &other) const {
            return score != other.score ? score > other.score : id < other.id;
        }
    };

    float score(int64_t i) const { return (logits_[i] - highest_) / draw_.temperature; }

    double total() const {
        double sum = 0;
        for (int64_t block = 0; block < parts(vocabulary_, kBlock); ++block) sum += weights_[block];
        return sum;
    }

    // The first token at which the cumulative weight, in the order of the vocabulary, passes the target.
    int64_t by_inverse() const {
        const double target = draw_.chance * total();
        double before = 0;
        int64_t first = 0;
        for (; first < vocabulary_; first += kBlock) {
            const double next = before + weights_[first / kBlock];
            if (next > target) break;
            before = next;
        }
        for (int64_t i = first; i < vocabulary_; ++i) {
            const double after = before + static_cast<double>(exponential(score(i)));
            if (after > target) return sure(before, target, after, kFloatSlack) ? i : kUnsure;
            before = after;
        }
        return kUnsure;
    }

    static bool sure(double before, double target, double after, double slack) {
        return before <= target * (1 - slack) && after >= target * (1 + slack);
    }

    // Candidates are looked for further and further below the highest score, until what is kept ends among them.
    int64_t filtered() const {
        const double all = draw_.top_p < 1 && !draw_.top_k ? total() : 0;
        for (const float depth : {6.0f, 12.0f, 24.0f, INFINITY}) {
            const float lowest = highest_ - depth * draw_.temperature * 1.001f;
            const int64_t count = std::count_if(logits_, logits_ + vocabulary_, [&](float x) { return x >= lowest; });
            if (depth < INFINITY && count <= draw_.top_k) continue;
            auto *candidates = static_cast<Candidate *>(std::malloc(sizeof(Candidate) * static_cast<size_t>(count)));
            if (!candidates) return kUnsure;
            int64_t at = 0;
            for (int64_t i = 0; i < vocabulary_; ++i) {
                if (logits_[i] >= lowest) candidates[at++] = {score(i), static_cast<int32_t>(i)};
            }
            bool ended = count == vocabulary_;
            const int64_t token = among(candidates, count, all, &ended);
            std::free(candidates);
            if (ended) return token;
        }
        return kUnsure;
    }

    // `ended` becomes true where what is kept ends before the last candidate.
    int64_t among(Candidate *candidates, int64_t count, double all, bool *ended) const {
        const int64_t limit = draw_.top_k ? std::min(draw_.top_k, count) : count;
        const int64_t sorted = std::min(limit + 1, count);
        if (sorted < count) std::partial_sort(candidates, candidates + sorted, candidates + count);
        else std::sort(candidates, candidates + count);
        double mass = INFINITY, slack = kDoubleSlack;
        if (draw_.top_p < 1) {
            double within = all;
            if (draw_.top_k) within = sum_of(candidates, limit);
            else slack = kFloatSlack;
            mass = draw_.top_p * within;
        }
        double sum = 0;
        int64_t kept = 0;
        for (; kept < limit; ++kept) {
            const double weight = weight_of_candidate(candidates[kept]);
            if (unclear(sum, mass, slack) || unclear(weight, draw_.min_p, kDoubleSlack)) {
                *ended = true;
                return kUnsure;
            }
            if (!(sum < mass && weight >= draw_.min_p)) break;
            sum += weight;
        }
        if (kept < count) *ended = true;
        // torch may choose among equals at the end of what it keeps.
        if (kept < count && candidates[kept].score == candidates[kept - 1].score) return kUnsure;
        return place_of_chance(candidates, kept, draw_.chance * sum);
    }

    static bool unclear(double value, double bound, double slack) {
        return bound > 0 && std::isfinite(bound) && std::fabs(value - bound) <= slack * bound;
    }

    static double weight_of_candidate(const Candidate &candidate) {
        return std::exp(static_cast<double>(candidate.score));
    }

    static double sum_of(const Candidate *candidates, int64_t count) {
        double sum = 0;
        for (int64_t i = 0; i < count; ++i) sum += weight_of_candidate(candidates[i]);
        return sum;
    }

    static int64_t place_of_chance(const Candidate *candidates, int64_t kept, double target) {
        double before = 0;
        for (int64_t i = 0; i < kept; ++i) {
            const double after = before + weight_of_candidate(candidates[i]);
            if (i + 1 == kept) return before <= target * (1 - kDoubleSlack) ? candidates[i].id : kUnsure;
            if (after > target) return sure(before, target, after, kDoubleSlack) ? candidates[i].id : kUnsure;
            before = after;
        }
        return kUnsure;
    }

    const float *const logits_;
    const int64_t vocabulary_;
    const oz_draw &draw_;
    const float highest_;
    const double *const weights_;
};

// What all threads find out about the rows before each row's token is drawn: the highest score of every chunk, then the
// weight of every block.
class Survey {
  public:
    Survey(const Passes &passes, const float *logits, int64_t rows, int64_t vocabulary, const oz_draw *draws)
        : passes_(passes), logits_(logits), vocabulary_(vocabulary), draws_(draws),
          blocks_(parts(vocabulary, kBlock)), chunks_(parts(blocks_, kBlocksAChunk)),
          weights_(static_cast<double *>(std::malloc(sizeof(double) * static_cast<size_t>(rows * blocks_)))),
          highest_(static_cast<float *>(std::malloc(sizeof(float) * static_cast<size_t>(rows * chunks_)))) {}

    ~Survey() {
        std::free(weights_);
        std::free(highest_);
    }

    Survey(const Survey &) = delete;
    Survey &operator=(const Survey &) = delete;

    bool has_memory() const { return weights_ && highest_; }
    int64_t chunks_a_row() const { return chunks_; }

    void find_highest(int64_t chunk) {
        const int64_t row = chunk / chunks_, first = chunk % chunks_ * kBlocksAChunk * kBlock;
        const int64_t count = std::min(kBlocksAChunk * kBlock, vocabulary_ - first);
        highest_[chunk] = passes_.highest(logits_ + row * vocabulary_ + first, count);
    }

    void weigh(int64_t chunk) {
        const int64_t row = chunk / chunks_, first = chunk % chunks_ * kBlocksAChunk;
        const float highest = highest_of_row(row);
        if (std::isnan(highest) || !wants_weights(draws_[row])) return;
        for (int64_t block = first; block < std::min(first + kBlocksAChunk, blocks_); ++block) {
            const int64_t count = std::min(kBlock, vocabulary_ - block * kBlock);
            weights_[row * blocks_ + block] = passes_.weight(logits_ + row * vocabulary_ + block * kBlock, count,
                                                             highest, draws_[row].temperature);
        }
    }

    int64_t token(int64_t row) const {
        return Row(logits_ + row * vocabulary_, vocabulary_, draws_[row], highest_of_row(row),
                   weights_ + row * blocks_).token();
    }

  private:
    // NaN where a score is none, or all are negative infinities.
    float highest_of_row(int64_t row) const {
        float highest = -INFINITY;
        for (int64_t c = row * chunks_; c < (row + 1) * chunks_; ++c) {
            if (std::isnan(highest_[c])) return NAN;
            highest = std::max(highest, highest_[c]);
        }
        return highest == -INFINITY ? NAN : highest;
    }

    const Passes &passes_;
    const float *const logits_;
    const int64_t vocabulary_;
    const oz_draw *const draws_;
    const int64_t blocks_, chunks_;
    double *const weights_;
    float *const highest_;
};

}  // namespace

}  // namespace oz

void oz_draw_tokens(oz_core *core, const float *logits, int64_t rows, int64_t vocabulary, const oz_draw *draws,
                    int64_t *tokens) {
    using namespace oz;
    Survey survey(passes_of(core->variant), logits, rows, vocabulary, draws);
    if (!survey.has_memory()) {
        std::fill(tokens, tokens + rows, kUnsure);
        return;
    }
    const int64_t chunks = rows * survey.chunks_a_row();
    share(core, chunks, [&](int64_t c) { survey.find_highest(c); }, chunks, [&](int64_t c) { survey.weigh(c); });
    share(core, rows, [&](int64_t r) { tokens[r] = survey.token(r); });
}
