// One step of the model in one call: every token from its row of the embedding to the scores of the next one.
#include <time.h>

#include <algorithm>
#include <cstring>

#include "core.h"
#include "elementwise.h"
#include "layer.h"

namespace oz {

namespace {

// Row `row` of a matrix as float32 (columns).
void look_up(const oz_matrix &m, int64_t row, float *x) {
    const int64_t block_rows = m.bits == 4 ? 32 : 16, block = row / block_rows, place = row % block_rows;
    const auto *codes = static_cast<const uint8_t *>(m.codes) + block * m.columns * 16 + place % 16 * 4;
    for (int64_t k = 0; k < m.columns; ++k) {
        const uint8_t code = codes[k / 4 * 64 + k % 4];
        if (m.bits == 8) {
            const float scale = static_cast<const float *>(m.scales)[row];
            x[k] = static_cast<float>(static_cast<int8_t>(code)) * scale;
        } else {
            const int64_t group = block * (m.columns / m.group) + k / m.group;
            const float scale = from_half(static_cast<const uint16_t *>(m.scales)[32 * group + place]);
            x[k] = static_cast<float>((place < 16 ? code & 15 : code >> 4) - 8) * scale;
        }
    }
}

// Memory of a step, laid out in one block; without a block it only counts.
struct Scratch {
    float *residual, *normed, *states, *projected, *queries, *mixed, *hidden, *output, *weights, *running;
    oz_activations quantised;  // of whichever product comes next
    int32_t *chosen, *places, *ends;
    int64_t bytes = 0;

    Scratch(const oz_model &model, int64_t tokens, int64_t pages, int64_t scored, char *block) : block_(block) {
        const oz_layer &layer = model.layers[0];
        const int64_t rows = std::max(tokens, scored), columns = most_columns(model);
        residual = take<float>(tokens * model.hidden);
        normed = take<float>(tokens * model.hidden);
        states = take<float>(tokens * layer.router.width);
        projected = take<float>(tokens * layer.qkv.rows);
        queries = take<float>(tokens * layer.o.columns);
        mixed = take<float>(tokens * layer.o.columns);
        hidden = take<float>(tokens * layer.down.columns);
        output = take<float>(tokens * model.hidden);
        weights = take<float>(tokens);
        running = take<float>(most_running(model, tokens, pages));
        quantised.codes = take<int8_t>(rows * columns);
        quantised.scales = take<float>(rows);
        quantised.sums = take<int32_t>(rows * columns / kLeastGroup);
        chosen = take<int32_t>(tokens);
        places = take<int32_t>(tokens);
        ends = take<int32_t>(layer.gate_up.experts);
    }

  private:
    // Groups of 4 bits have 32 columns or more; with 8 bits a row is one group, of 4 columns or more.
    static constexpr int64_t kLeastGroup = 4;

    template <class T>
    T *take(int64_t count) {
        T *start = block_ ? reinterpret_cast<T *>(block_ + bytes) : nullptr;
        bytes += parts(count * static_cast<int64_t>(sizeof(T)), 64) * 64;
        return start;
    }

    static int64_t most_columns(const oz_model &model) {
        const oz_layer &layer = model.layers[0];
        return std::max({layer.qkv.columns, layer.o.columns, layer.gate_up.columns, layer.down.columns});
    }

    static int64_t most_running(const oz_model &model, int64_t tokens, int64_t pages) {
        return oz_running(&model.layers[0].attention, tokens, pages);
    }

    char *const block_;
};

class Step {
  public:
    Step(oz_core *core, const oz_model &model, const oz_step &step)
        : core_(core), model_(model), step_(step), batch_(step.batch), tokens_(step.batch.tokens),
          s_(model, tokens_, step.batch.pages, step.scored, static_cast<char *>(step.scratch)) {}

    void run() {
        timed(OZ_EMBEDDING, [&] { embed(); });
        for (int i = 0; i < model_.layer_count; ++i) {
            const oz_layer &layer = model_.layers[i];
            attend(layer);
            mix_experts(layer);
            if (step_.chosen) std::memcpy(step_.chosen + i * tokens_, s_.chosen, sizeof(int32_t) * size_t(tokens_));
            const bool last = i + 1 == model_.layer_count;
            join(layer.after_experts, s_.weights, last ? nullptr : &model_.layers[i + 1].qkv);
        }
        timed(OZ_HEAD, [&] { score(); });
    }

  private:
    template <class Part>
    void timed(oz_stage stage, const Part &part) {
        if (!step_.stage_seconds) return part();
        const double start = seconds();
        part();
        step_.stage_seconds[stage] += seconds() - start;
    }

    static double seconds() {
        timespec time;
        clock_gettime(CLOCK_MONOTONIC, &time);
        return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
    }

    // Rows of the embedding, shifted and scaled, are where the residual stream begins.
    void embed() {
        const int64_t hidden = model_.hidden;
        std::memset(s_.states, 0, sizeof(float) * static_cast<size_t>(tokens_ * model_.layers[0].router.width));
        share(core_, tokens_, [&](int64_t t) {
            float *x = s_.residual + t * hidden;
            look_up(model_.embedding, step_.ids[t], x);
            for (int64_t i = 0; i < hidden; ++i) x[i] = (x[i] + model_.embedding_bias[i]) * model_.embedding_scale[i];
        });
        const oz_activations to = quantised_for(model_.layers[0].qkv, tokens_);
        merge_norm(core_, model_.first, tokens_, hidden, model_.epsilon, s_.residual, nullptr, nullptr, s_.normed, &to);
    }

    // From the quantised normed stream to that after attention.
    void attend(const oz_layer &layer) {
        timed(OZ_QKV, [&] { multiply_all(layer.qkv, tokens_, s_.projected); });
        timed(OZ_CONVOLUTION, [&] { oz_convolve(core_, &layer.attention, &batch_, s_.projected, s_.queries); });
        const oz_activations to = quantised_for(layer.o, tokens_);
        timed(OZ_ATTENTION, [&] {
            oz::attend(core_, layer.attention, batch_, s_.queries, s_.running, s_.mixed, &to);
        });
        timed(OZ_OUTPUT, [&] { multiply_all(layer.o, tokens_, s_.output); });
        join(layer.after_attention, nullptr, &layer.gate_up);
    }

    // The output of each token's expert; a token that skips gets nothing, or itself.
    void mix_experts(const oz_layer &layer) {
        timed(OZ_ROUTER, [&] {
            oz_route(core_, &layer.router, tokens_, s_.normed, s_.states, s_.chosen, s_.weights);
        });
        const int64_t mixed = group(layer.gate_up.experts), width = layer.down.columns;
        const oz_grouping grouping{s_.places, s_.ends};
        timed(OZ_EXPERTS_UP, [&] {
            const oz_activations from = quantised_for(layer.gate_up, tokens_);
            multiply(core_, Product(core_->variant, layer.gate_up, from, &grouping, s_.hidden, width, true));
        });
        timed(OZ_EXPERTS_DOWN, [&] {
            const oz_activations to = quantised_for(layer.down, tokens_);
            share(core_, parts(mixed, kTokensAChunk), [&](int64_t chunk) {
                const int64_t first = chunk * kTokensAChunk;
                for (int64_t i = first; i < std::min(first + kTokensAChunk, mixed); ++i) {
                    quantise_token(core_, to, s_.hidden + s_.places[i] * width, s_.places[i]);
                }
            });
            multiply(core_, Product(core_->variant, layer.down, to, &grouping, s_.output, model_.hidden, false));
        });
    }

    // Sorts tokens by the expert that they chose and gives those that skip their output; how many did not skip.
    int64_t group(int experts) {
        std::memset(s_.ends, 0, sizeof(int32_t) * static_cast<size_t>(experts));
        const size_t bytes = sizeof(float) * static_cast<size_t>(model_.hidden);
        for (int64_t t = 0; t < tokens_; ++t) {
            float *output = s_.output + t * model_.hidden;
            if (s_.chosen[t] < experts) ++s_.ends[s_.chosen[t]];
            else if (model_.skip_is_identity) std::memcpy(output, s_.normed + t * model_.hidden, bytes);
            else std::memset(output, 0, bytes);
        }
        int32_t all = 0;
        for (int e = 0; e < experts; ++e) {
            all += s_.ends[e];
            s_.ends[e] = all - s_.ends[e];  // the expert's first place, which moves on to its end
        }
        for (int64_t t = 0; t < tokens_; ++t) {
            if (s_.chosen[t] < experts) s_.places[s_.ends[s_.chosen[t]]++] = static_cast<int32_t>(t);
        }
        return all;
    }

    // The block's output joins the stream, whose norm is quantised for the product with `next`, where there is one.
    void join(const oz_residual &residual, const float *weights, const oz_matrix *next) {
        oz_activations to{};
        if (next) to = quantised_for(*next, tokens_);
        timed(OZ_RESIDUAL, [&] {
            merge_norm(core_, residual, tokens_, model_.hidden, model_.epsilon, s_.residual, s_.output, weights,
                       s_.normed, next ? &to : nullptr);
        });
    }

    void score() {
        const oz_activations to = quantised_for(model_.head, step_.scored);
        share(core_, step_.scored, [&](int64_t i) {
            quantise_token(core_, to, s_.normed + step_.scored_tokens[i] * model_.hidden, i);
        });
        const int64_t vocabulary = model_.head.rows, blocks = parts(vocabulary, OZ_BLOCK);
        const oz_activations from = quantised_for(model_.head, step_.scored);
        const Product head(core_->variant, model_.head, from, nullptr, step_.logits, vocabulary, false, OZ_BLOCK);
        const int64_t chunks = head.chunks();
        share(core_, chunks, [&](int64_t index) {
            const int64_t chunk = in_stretches(core_, index, chunks);
            head.chunk(chunk);
            const Product::Rows rows = head.rows_of(chunk);
            for (int64_t i = 0; i < step_.scored; ++i) {
                find_tops(core_->variant, step_.logits + i * vocabulary, rows.first, rows.last, step_.tops + i * blocks);
            }
        });
    }

    void multiply_all(const oz_matrix &matrix, int64_t tokens, float *output) {
        const oz_activations from = quantised_for(matrix, tokens);
        multiply(core_, Product(core_->variant, matrix, from, nullptr, output, matrix.rows, false));
    }

    oz_activations quantised_for(const oz_matrix &matrix, int64_t tokens) const {
        oz_activations to = s_.quantised;
        to.tokens = tokens;
        to.columns = matrix.columns;
        to.group = matrix.group;
        return to;
    }

    oz_core *const core_;
    const oz_model &model_;
    const oz_step &step_;
    const oz_batch &batch_;
    const int64_t tokens_;
    const Scratch s_;
};

}  // namespace

}  // namespace oz

int64_t oz_step_bytes(const oz_model *model, int64_t tokens, int64_t pages, int64_t scored) {
    return oz::Scratch(*model, tokens, pages, scored, nullptr).bytes;
}

void oz_run_step(oz_core *core, const oz_model *model, const oz_step *step) { oz::Step(core, *model, *step).run(); }
