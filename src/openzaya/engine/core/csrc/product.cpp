#include "product.h"

#include <algorithm>
#include <cstring>

#include "core.h"

namespace oz {

namespace {

// 128 kB of weights at 2,048 columns: some microseconds of reading, and little beside the cache of a core. A matrix that
// is large enough to keep all threads busy with more is read in longer streams, a tenth faster.
constexpr int64_t kFewestBlocks = 4, kMostBlocks = 32, kChunks = 128;
// Tokens whose codes stay in the cache while all blocks of a chunk pass over them.
constexpr int64_t kTokensAPass = 96;
constexpr int kMostBlockRows = 32;

}  // namespace

Product::Product(const Variant &variant, const oz_matrix &matrix, const oz_activations &x, const oz_grouping *grouping,
                 float *output, int64_t stride, bool swiglu, int64_t whole)
    : variant_(variant),
      matrix_(matrix),
      x_(x),
      grouping_(grouping),
      output_(output),
      stride_(stride),
      whole_(whole),
      swiglu_(swiglu),
      block_rows_(matrix.bits == 4 ? 32 : 16),
      tile_rows_(matrix.bits == 4 ? variant.rows4 : variant.rows8),
      blocks_((matrix.rows + block_rows_ - 1) / block_rows_) {}

Product::Share Product::share(int expert) const {
    if (!grouping_) return {0, 0, x_.tokens};
    return {expert, expert ? grouping_->ends[expert - 1] : 0, grouping_->ends[expert]};
}

int64_t Product::chunks() const {
    int64_t busy = 0;
    for (int expert = 0; expert < (grouping_ ? matrix_.experts : 1); ++expert) {
        busy += share(expert).first < share(expert).last;
    }
    return busy * parts(blocks_, blocks_a_chunk());
}

// Even, since gate and up alternate.
int64_t Product::blocks_a_chunk() const {
    const int64_t blocks = std::clamp(blocks_ / kChunks / 2 * 2, kFewestBlocks, kMostBlocks);
    const int64_t multiple = parts(whole_, block_rows_);
    return parts(blocks, multiple) * multiple;
}

Product::Rows Product::rows_of(int64_t chunk) const {
    const int64_t rows = blocks_a_chunk() * block_rows_;
    return {chunk * rows, std::min((chunk + 1) * rows, matrix_.rows)};
}

void Product::chunk(int64_t index) const {
    const int64_t blocks = blocks_a_chunk(), chunks_an_expert = parts(blocks_, blocks);
    int expert = 0;
    for (int64_t busy = index / chunks_an_expert;; ++expert) {
        if (share(expert).first < share(expert).last && busy-- == 0) break;
    }
    const int64_t first_block = index % chunks_an_expert * blocks;
    blocks_of(share(expert), first_block, std::min(first_block + blocks, blocks_));
}

void Product::blocks_of(const Share &share, int64_t first_block, int64_t last_block) const {
    for (int64_t pass = share.first; pass < share.last; pass += kTokensAPass) {
        const int64_t end = std::min(pass + kTokensAPass, share.last);
        for (int64_t block = first_block; block < last_block; block += swiglu_ ? 2 : 1) {
            for (int64_t first = pass; first < end;) {
                // As many tiles as needed, of sizes that differ by at most one.
                const int64_t left = end - first, tiles = (left + tile_rows_ - 1) / tile_rows_;
                const int rows = static_cast<int>((left + tiles - 1) / tiles);
                swiglu_ ? tile_swiglu(share, block, first, rows) : tile(share, block, first, rows);
                first += rows;
            }
        }
    }
}

void Product::tile(const Share &share, int64_t block, int64_t first, int rows) const {
    TileRows tokens = tokens_at(first, rows);
    const int64_t column = block * block_rows_, width = std::min<int64_t>(block_rows_, matrix_.rows - column);
    float padded[kMostRows][kMostBlockRows];
    for (int r = 0; r < rows; ++r) {
        tokens.outputs[r] = width < block_rows_ ? padded[r] : output_ + token(first + r) * stride_ + column;
    }
    multiply(share.expert, block, rows, tokens);
    if (width == block_rows_) return;
    for (int r = 0; r < rows; ++r) {
        float *output = output_ + token(first + r) * stride_ + column;
        std::memcpy(output, padded[r], sizeof(float) * static_cast<size_t>(width));
    }
}

void Product::tile_swiglu(const Share &share, int64_t block, int64_t first, int rows) const {
    TileRows tokens = tokens_at(first, rows);
    float gate[kMostRows][kMostBlockRows], up[kMostRows][kMostBlockRows];
    for (int r = 0; r < rows; ++r) tokens.outputs[r] = gate[r];
    multiply(share.expert, block, rows, tokens);
    for (int r = 0; r < rows; ++r) tokens.outputs[r] = up[r];
    multiply(share.expert, block + 1, rows, tokens);
    const int64_t column = block / 2 * block_rows_;
    for (int r = 0; r < rows; ++r) {
        variant_.swiglu(gate[r], up[r], block_rows_, output_ + token(first + r) * stride_ + column);
    }
}

void Product::multiply(int expert, int64_t block, int rows, const TileRows &tokens) const {
    const int64_t number = expert * blocks_ + block, columns = matrix_.columns;
    if (matrix_.bits == 4) {
        const auto *codes = static_cast<const uint8_t *>(matrix_.codes) + number * columns * 16;
        const auto *scales = static_cast<const uint16_t *>(matrix_.scales) + number * (columns / matrix_.group) * 32;
        variant_.tile4(rows, codes, scales, columns, matrix_.group, tokens);
    } else {
        const auto *codes = static_cast<const int8_t *>(matrix_.codes) + number * columns * 16;
        variant_.tile8(rows, codes, static_cast<const float *>(matrix_.scales) + number * 16, columns, tokens);
    }
}

TileRows Product::tokens_at(int64_t first, int rows) const {
    TileRows tokens;
    for (int r = 0; r < rows; ++r) {
        const int64_t t = token(first + r);
        tokens.codes[r] = x_.codes + t * x_.columns;
        tokens.sums[r] = x_.sums + t * (x_.columns / x_.group);
        tokens.scales[r] = x_.scales[t];
    }
    return tokens;
}

}  // namespace oz
