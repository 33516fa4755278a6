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

constexpr int64_t kBlocksAChunk = 64;
// Relative, on sums of float32 exponentials: 2 units in the last place here and as many there, twice over.
constexpr double kFloatSlack = 1e-6;
// The same for sums of float64 exponentials.
constexpr double kDoubleSlack = 1e-12;
constexpr int64_t kUnsure = -1;

// ---- one row ----

// Scores of one row, and what is known of its blocks.
struct Scores {
    const float *at, *tops;
    int64_t count;

    int64_t blocks() const { return parts(count, OZ_BLOCK); }
    int64_t end(int64_t block) const { return std::min((block + 1) * OZ_BLOCK, count); }

    // NaN where a score is none, or all are negative infinities.
    float highest() const {
        float highest = -INFINITY;
        for (int64_t block = 0; block < blocks(); ++block) {
            if (std::isnan(tops[block])) return NAN;
            highest = std::max(highest, tops[block]);
        }
        return highest == -INFINITY ? NAN : highest;
    }

    int64_t first_at_least(float lowest) const {
        int64_t block = 0;
        while (tops[block] < lowest) ++block;
        return std::find_if(at + block * OZ_BLOCK, at + end(block), [&](float x) { return x >= lowest; }) - at;
    }

    // Calls `take` with the place of every score that is not below `lowest`, in order; most blocks are passed over.
    template <class Take>
    void each_at_least(float lowest, const Take &take) const {
        for (int64_t block = 0; block < blocks(); ++block) {
            if (tops[block] < lowest) continue;
            for (int64_t i = block * OZ_BLOCK; i < end(block); ++i) {
                if (at[i] >= lowest) take(i);
            }
        }
    }

    int64_t count_at_least(float lowest) const {
        int64_t count = 0;
        each_at_least(lowest, [&](int64_t) { ++count; });
        return count;
    }
};

struct Candidate {
    float score;
    int32_t id;
    // From likely to unlikely, equal ones by id.
    bool operator<(const Candidate &other) const { return score != other.score ? score > other.score : id < other.id; }
};

// Memory without exceptions; null where there is none.
template <class T>
struct Room {
    explicit Room(int64_t count) : at(static_cast<T *>(std::malloc(sizeof(T) * static_cast<size_t>(count)))) {}
    ~Room() { std::free(at); }
    Room(const Room &) = delete;
    Room &operator=(const Room &) = delete;
    T *const at;
};

// Whether the weights of all of the vocabulary are needed, and not only those of some candidates.
bool wants_weights(const oz_draw &draw) { return draw.temperature > 0 && !draw.top_k && (draw.top_p < 1 || !(draw.min_p > 0)); }

class Row {
  public:
    // `weights` has the sum of every block, where they are wanted.
    Row(const Scores &scores, const oz_draw &draw, float highest, const double *weights)
        : scores_(scores), draw_(draw), highest_(highest), weights_(weights) {}

    int64_t token() const {
        if (!(draw_.temperature >= 0) || std::isnan(highest_)) return kUnsure;
        if (draw_.temperature == 0) return scores_.first_at_least(highest_);
        return draw_.top_k || draw_.top_p < 1 || draw_.min_p > 0 ? filtered() : by_inverse();
    }

  private:
    float score(int64_t i) const { return (scores_.at[i] - highest_) / draw_.temperature; }

    double total() const {
        double sum = 0;
        for (int64_t block = 0; block < scores_.blocks(); ++block) sum += weights_[block];
        return sum;
    }

    // The first token at which the cumulative weight, in the order of the vocabulary, passes the target.
    int64_t by_inverse() const {
        const double target = draw_.chance * total();
        double before = 0;
        int64_t first = 0;
        for (; first < scores_.count; first += OZ_BLOCK) {
            const double next = before + weights_[first / OZ_BLOCK];
            if (next > target) break;
            before = next;
        }
        for (int64_t i = first; i < scores_.count; ++i) {
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
            const int64_t count = scores_.count_at_least(lowest);
            if (depth < INFINITY && count <= draw_.top_k) continue;
            const Room<Candidate> candidates(count);
            if (!candidates.at) return kUnsure;
            int64_t at = 0;
            scores_.each_at_least(lowest, [&](int64_t i) { candidates.at[at++] = {score(i), static_cast<int32_t>(i)}; });
            bool ended = count == scores_.count;
            const int64_t token = among(candidates.at, count, all, &ended);
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

    const Scores scores_;
    const oz_draw &draw_;
    const float highest_;
    const double *const weights_;
};

// ---- all rows ----

// What all threads find out about the rows: the tops of blocks, where no step has found them, and sums of weights.
class Survey {
  public:
    Survey(oz_core *core, const float *logits, const float *tops, int64_t rows, int64_t vocabulary)
        : core_(core), logits_(logits), vocabulary_(vocabulary), rows_(rows), blocks_(parts(vocabulary, OZ_BLOCK)),
          chunks_(parts(blocks_, kBlocksAChunk)), own_tops_(tops ? 1 : rows * blocks_), weights_(rows * blocks_),
          highest_(rows), tops_(tops ? tops : own_tops_.at), found_(tops) {}

    bool has_memory() const { return own_tops_.at && weights_.at && highest_.at; }

    // Weights of the rows for which `temperature(row)` is not negative.
    template <class Temperature>
    void run(const Temperature &temperature) {
        if (!found_) {
            share(core_, rows_ * chunks_, [&](int64_t chunk) {
                const int64_t row = chunk / chunks_, first = chunk % chunks_ * kBlocksAChunk * OZ_BLOCK;
                find_tops(core_->variant, logits_ + row * vocabulary_, first,
                          std::min(first + kBlocksAChunk * OZ_BLOCK, vocabulary_), own_tops_.at + row * blocks_);
            });
        }
        for (int64_t row = 0; row < rows_; ++row) highest_.at[row] = scores(row).highest();
        share(core_, rows_ * chunks_, [&](int64_t chunk) {
            const int64_t row = chunk / chunks_, first = chunk % chunks_ * kBlocksAChunk;
            const float own = temperature(row);
            if (std::isnan(highest(row)) || !(own >= 0)) return;
            for (int64_t block = first; block < std::min(first + kBlocksAChunk, blocks_); ++block) {
                const int64_t at = block * OZ_BLOCK;
                weights_.at[row * blocks_ + block] = core_->variant.weight(
                    logits_ + row * vocabulary_ + at, scores(row).end(block) - at, highest(row), own);
            }
        });
    }

    Scores scores(int64_t row) const { return {logits_ + row * vocabulary_, tops_ + row * blocks_, vocabulary_}; }
    float highest(int64_t row) const { return highest_.at[row]; }
    const double *weights(int64_t row) const { return weights_.at + row * blocks_; }

  private:
    oz_core *const core_;
    const float *const logits_;
    const int64_t vocabulary_, rows_, blocks_, chunks_;
    const Room<float> own_tops_;
    const Room<double> weights_;
    const Room<float> highest_;
    const float *const tops_;
    const bool found_;
};

// The `count` highest scores of a row, by looking further and further below the highest; false without memory.
bool likeliest(const Scores &scores, float highest, int64_t count, float *found, int64_t *ids) {
    float lowest = highest;
    for (float depth = 4.0f; scores.count_at_least(lowest) < count; depth *= 2) {
        lowest = depth < 1e6f ? highest - depth : -INFINITY;
    }
    const int64_t many = scores.count_at_least(lowest);
    const Room<Candidate> candidates(many);
    if (!candidates.at) return false;
    int64_t at = 0;
    scores.each_at_least(lowest, [&](int64_t i) { candidates.at[at++] = {scores.at[i], static_cast<int32_t>(i)}; });
    std::partial_sort(candidates.at, candidates.at + count, candidates.at + many);
    for (int64_t i = 0; i < count; ++i) {
        found[i] = candidates.at[i].score;
        ids[i] = candidates.at[i].id;
    }
    return true;
}

}  // namespace

}  // namespace oz

using namespace oz;

void oz_draw_tokens(oz_core *core, const float *logits, const float *tops, int64_t rows, int64_t vocabulary,
                    const oz_draw *draws, int64_t *tokens) {
    Survey survey(core, logits, tops, rows, vocabulary);
    if (!survey.has_memory()) {
        std::fill(tokens, tokens + rows, kUnsure);
        return;
    }
    survey.run([&](int64_t row) { return wants_weights(draws[row]) ? draws[row].temperature : -1.0f; });
    share(core, rows, [&](int64_t row) {
        tokens[row] = Row(survey.scores(row), draws[row], survey.highest(row), survey.weights(row)).token();
    });
}

void oz_likeliest(oz_core *core, const float *logits, const float *tops, int64_t rows, int64_t vocabulary,
                  int64_t count, double *log_sums, float *scores, int64_t *ids) {
    std::fill(log_sums, log_sums + rows, NAN);
    Survey survey(core, logits, tops, rows, vocabulary);
    if (!survey.has_memory()) return;
    survey.run([](int64_t) { return 1.0f; });
    share(core, rows, [&](int64_t row) {
        const Scores own = survey.scores(row);
        const float highest = survey.highest(row);
        if (std::isnan(highest) || !likeliest(own, highest, count, scores + row * count, ids + row * count)) return;
        double sum = 0;
        for (int64_t block = 0; block < own.blocks(); ++block) sum += survey.weights(row)[block];
        log_sums[row] = std::log(sum) + static_cast<double>(highest);
    });
}
