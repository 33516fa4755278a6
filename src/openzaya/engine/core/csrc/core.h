// What a core is, and how a function of the interface shares its work among the threads of one.
#pragma once

#include <algorithm>

#include "abi.h"
#include "pool.h"
#include "product.h"
#include "variants.h"

struct oz_core {
    const oz::Variant &variant;
    oz::Pool pool;
};

namespace oz {

// Work of one or two phases, their chunks given by functions.
template <class First, class Second>
class Phases final : public Work {
  public:
    Phases(int64_t first_chunks, const First &first, int64_t second_chunks, const Second &second)
        : chunks_{first_chunks, second_chunks}, first_(first), second_(second) {}
    int64_t begin(int phase) override { return phase < 2 ? chunks_[phase] : -1; }
    void chunk(int phase, int64_t index) override { phase == 0 ? first_(index) : second_(index); }

  private:
    const int64_t chunks_[2];
    const First &first_;
    const Second &second_;
};

template <class First, class Second>
void share(oz_core *core, int64_t first_chunks, const First &first, int64_t second_chunks, const Second &second) {
    Phases<First, Second> work(first_chunks, first, second_chunks, second);
    core->pool.run(work);
}

template <class Chunk>
void share(oz_core *core, int64_t chunks, const Chunk &chunk) {
    share(core, chunks, chunk, 0, [](int64_t) {});
}

// Parts of `size` that cover `count`.
inline int64_t parts(int64_t count, int64_t size) { return (count + size - 1) / size; }

// Tokens that one thread takes where there is little to do for each.
constexpr int64_t kTokensAChunk = 4;

// Which of `chunks` is given out as number `index`. They are cut into one stretch for each thread and given out in turn,
// so that threads of equal speed go through memory in a stretch each, where what comes next has been asked for already.
inline int64_t in_stretches(const oz_core *core, int64_t index, int64_t chunks) {
    const int64_t threads = core->pool.threads(), stretch = index % threads;
    return stretch * (chunks / threads) + std::min(stretch, chunks % threads) + index / threads;
}

inline void multiply(oz_core *core, const Product &product) {
    const int64_t chunks = product.chunks();
    share(core, chunks, [&](int64_t index) { product.chunk(in_stretches(core, index, chunks)); });
}

// The highest scores of the blocks of a row that lie in `first` .. `last`, each to its place in `tops`.
inline void find_tops(const Variant &variant, const float *scores, int64_t first, int64_t last, float *tops) {
    for (int64_t at = first; at < last; at += OZ_BLOCK) {
        tops[at / OZ_BLOCK] = variant.top(scores + at, std::min<int64_t>(OZ_BLOCK, last - at));
    }
}

// One token's numbers (columns) as int8, to its place in `to`.
inline void quantise_token(const oz_core *core, const oz_activations &to, const float *x, int64_t token) {
    core->variant.quantise(x, to.columns, to.group, to.codes + token * to.columns, to.scales + token,
                           to.sums + token * (to.columns / to.group));
}

}  // namespace oz
