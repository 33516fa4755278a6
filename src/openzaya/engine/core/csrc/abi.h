// The flat C interface of the compiled core. Every function may be called from any thread; calls on one core wait for
// each other. Sizes are in elements unless they say otherwise. Nothing is checked here: openzaya.engine.core.products
// refuses what does not fit, in words.
#pragma once

#include <cstdint>

#define OZ_API extern "C" __attribute__((visibility("default")))

struct oz_core;

// A quantised matrix W[rows, columns], or a stack of `experts` such matrices one after the other.
//   bits 4: codes uint8 (blocks, columns / 4, 64), scales float16 (blocks, columns / group, 32), blocks of 32 rows
//   bits 8: codes int8 (blocks, columns / 4, 64), scales float32 (blocks, 16), blocks of 16 rows; group is columns
// The last block is padded with rows of zeros, which no product writes.
struct oz_matrix {
    const void *codes;
    const void *scales;
    int64_t rows;
    int64_t columns;
    int32_t bits;
    int32_t group;
    int32_t experts;
};

// Tokens quantised to int8, each with a scale of its own.
struct oz_activations {
    int8_t *codes;   // (tokens, columns)
    float *scales;   // (tokens)
    int32_t *sums;   // (tokens, columns / group): sums of the codes
    int64_t tokens;
    int64_t columns;
    int32_t group;
};

// Which tokens each matrix of a stack multiplies: places[ends[e - 1] .. ends[e]) for matrix e.
struct oz_grouping {
    const int32_t *places;
    const int32_t *ends;
};

OZ_API const char *oz_fingerprint(void);

// Instruction sets, best last; `oz_supported` has bit v set where this machine runs variant v.
OZ_API int oz_variant_count(void);
OZ_API const char *oz_variant_name(int variant);
OZ_API uint32_t oz_supported(void);

// A core is a variant and a pool of threads, the caller's own thread among them. Null where memory or threads run out.
OZ_API oz_core *oz_open(int variant, int threads);
OZ_API void oz_close(oz_core *core);

// x (tokens, columns) as int8.
OZ_API void oz_quantise(oz_core *core, const float *x, const oz_activations *quantised);

// output[t, n] = scale_t * sum over groups of scale_ng * dot, for the tokens t of `grouping` (all of them, with the
// first matrix, where `grouping` is null); other rows of `output` (tokens, stride) are left as they are.
OZ_API void oz_product(oz_core *core, const oz_matrix *matrix, const oz_activations *x, const oz_grouping *grouping,
                       float *output, int64_t stride);

// The same for rows that alternate between a block of gate and the matching block of up: output (tokens, stride) gets
// silu(gate) * up, half as many columns as the matrix has rows.
OZ_API void oz_product_swiglu(oz_core *core, const oz_matrix *matrix, const oz_activations *x,
                              const oz_grouping *grouping, float *output, int64_t stride);

// Reads `bytes` of memory with all threads of the pool, for measuring how fast that goes; returns a sum of them.
OZ_API uint64_t oz_read(oz_core *core, const void *memory, int64_t bytes);

// ---- the model ----

// Where a block's output joins the residual stream, and the norm that comes next:
// residual = (output * weight + output_bias) * output_scale + (residual + residual_bias) * residual_scale,
// normed = residual / rms(residual) * norm. Each is (hidden); all but `norm` are null where nothing joins.
struct oz_residual {
    const float *output_bias, *output_scale, *residual_bias, *residual_scale, *norm;
};

// How keys and values are kept, a vector of `channels` after the other: as float32, as float16, or as int8 codes and
// then their float32 scale.
#define OZ_FLOAT32 0
#define OZ_FLOAT16 1
#define OZ_INT8 2

// Matrices that are called `bfloat16` where they are: two sixteens of numbers are the lower and the upper halves of
// sixteen words of 32 bits. Else they are float32.

// Compressed convolutional attention of one layer: its shape, weights and state. `bfloat16` is of `grouped`.
struct oz_attention {
    int32_t query_heads, key_heads, channels, taps0, taps1, rotary, page_tokens, kept, bfloat16;
    int64_t window;                 // how many tokens one sees, itself included; 0 for all
    const float *cosine, *sine;     // (positions, rotary), up to the furthest token of a step
    const float *depthwise;         // (taps0, (query_heads + key_heads) * channels)
    const float *depthwise_bias;    // ((query_heads + key_heads) * channels)
    const void *grouped;            // (heads, sixteens of channels out, taps1, channels in, 16)
    const float *grouped_bias;      // (heads, channels out, padded)
    const float *temperature;       // (key_heads)
    void *keys, *values;            // (pages, key_heads, page_tokens) vectors
    float *columns;                 // (slots, taps0 + taps1 - 2, heads * channels)
    float *delayed;                 // (slots, key_heads * channels / 2)
};

// `bfloat16` is of `down`, `fc1`, `fc2` and `out`.
struct oz_router {
    int32_t hidden, width, classes, bfloat16;
    float epsilon;
    const void *down, *fc1, *fc2, *out;           // (width, hidden), (width, width) twice, (classes, width)
    const float *down_bias, *depth_scale;         // (width), (width) or null in the first layer
    const float *norm, *fc1_bias, *fc2_bias, *balancing;
};

struct oz_layer {
    oz_attention attention;
    oz_router router;               // its last class skips the experts
    oz_residual after_attention;
    oz_residual after_experts;      // with the norm of the next layer, or that before the head
    oz_matrix qkv, o, gate_up, down;
};

struct oz_model {
    int32_t layer_count, hidden;
    int32_t skip_is_identity;       // what a token gets that skips: its own normed input, or nothing
    float epsilon;
    const oz_layer *layers;
    oz_matrix embedding, head;
    const float *embedding_bias, *embedding_scale;  // (hidden)
    oz_residual first;              // only the norm of the first layer
};

// Tokens of several sequences, one sequence after the other.
struct oz_batch {
    int64_t tokens, sequences;
    int64_t pages;                  // up to the furthest token
    int64_t pages_a_slot;
    const int32_t *sequence_of;     // (tokens)
    const int32_t *firsts;          // (sequences + 1): first token of each sequence
    const int32_t *slots;           // (sequences)
    const int64_t *positions;       // (tokens)
    const int32_t *tables;          // (slots, pages_a_slot)
    const int32_t *order;           // (tokens): how attention goes through them; those that share pages are neighbours
};

// The parts of a step, as `stage_seconds` counts them; experts_up is gate and up with SwiGLU.
enum oz_stage {
    OZ_EMBEDDING, OZ_QKV, OZ_CONVOLUTION, OZ_ATTENTION, OZ_OUTPUT, OZ_RESIDUAL, OZ_ROUTER, OZ_EXPERTS_UP,
    OZ_EXPERTS_DOWN, OZ_HEAD, OZ_STAGES
};

struct oz_step {
    oz_batch batch;
    const int64_t *ids;             // (tokens)
    int64_t scored;
    const int32_t *scored_tokens;   // (scored)
    float *logits;                  // (scored, rows of the head)
    float *tops;                    // (scored, blocks): the highest score of each OZ_BLOCK of a row, while it is in the cache
    int32_t *chosen;                // (layers, tokens): the class that the router chose, where it is not null
    double *stage_seconds;          // (OZ_STAGES): the time of each part is added, where it is not null
    void *scratch;                  // oz_step_bytes of memory, 64-byte aligned
};

OZ_API int64_t oz_step_bytes(const oz_model *model, int64_t tokens, int64_t pages, int64_t scored);

// Runs the tokens through the model: keys, values and state move on in the memory that `model` names.
OZ_API void oz_run_step(oz_core *core, const oz_model *model, const oz_step *step);

// ---- tokens ----

// Scores are looked at in blocks of so many. A block's top is NaN where one of its scores is that or positive infinity.
#define OZ_BLOCK 512

// How the next token of a row is drawn, in the words of openzaya.engine.sampling. `top_k` 0 is all of the vocabulary,
// `temperature` 0 the likeliest token, and a negative one draws none.
struct oz_draw {
    double chance, top_p, min_p;
    int64_t top_k;
    float temperature;
};

// The token of each row of `logits` (rows, vocabulary), or -1 where rounding could decide, or a score is not a number.
// `tops` (rows, blocks) are those that a step has found, or null.
OZ_API void oz_draw_tokens(oz_core *core, const float *logits, const float *tops, int64_t rows, int64_t vocabulary,
                           const oz_draw *draws, int64_t *tokens);

// The logarithm of the sum of e^score over each row, NaN where a score is not a number; and the `count` highest scores of
// each row with their ids (rows, count), from high to low, among equals the smaller id first.
OZ_API void oz_likeliest(oz_core *core, const float *logits, const float *tops, int64_t rows, int64_t vocabulary,
                         int64_t count, double *log_sums, float *scores, int64_t *ids);

// ---- the parts of a step beside its products, for comparing each with the model's own ----

// Without `output` the residual stays and is only normed; without `weights` each is 1.
OZ_API void oz_merge_norm(oz_core *core, const oz_residual *residual, int64_t tokens, int64_t width, float epsilon,
                          float *x, const float *output, const float *weights, float *normed);

// Queries (tokens, query_heads * channels) from `projected` (tokens, queries | keys | current values | delayed values).
// Keys and values of the batch go to their pages, `columns` and `delayed` move on.
OZ_API void oz_convolve(oz_core *core, const oz_attention *attention, const oz_batch *batch, const float *projected,
                        float *queries);

// Softmax attention of every token to its own sequence up to itself. `running` has room for oz_running floats.
OZ_API void oz_attend(oz_core *core, const oz_attention *attention, const oz_batch *batch, const float *queries,
                      float *running, float *mixed);
OZ_API int64_t oz_running(const oz_attention *attention, int64_t tokens, int64_t pages);

// The class of each token and its probability; `states` (tokens, width) are those of the layer before, then of this.
OZ_API void oz_route(oz_core *core, const oz_router *router, int64_t tokens, const float *x, float *states,
                     int32_t *chosen, float *weights);
