// One product of quantised tokens with a quantised matrix, or with the matrices of a stack, cut into chunks that any
// thread may do in any order.
#pragma once

#include "abi.h"
#include "variants.h"

namespace oz {

class Product {
  public:
    Product(const Variant &variant, const oz_matrix &matrix, const oz_activations &x, const oz_grouping *grouping,
            float *output, int64_t stride, bool swiglu, int64_t whole = 1);

    int64_t chunks() const;
    void chunk(int64_t index) const;

    // Of a product with one matrix: the rows of the matrix that a chunk takes, from a multiple of `whole` on.
    struct Rows {
        int64_t first, last;
    };
    Rows rows_of(int64_t chunk) const;

  private:
    // The tokens of one matrix of the stack, by their places in `grouping`.
    struct Share {
        int expert;
        int64_t first, last;
    };

    int64_t blocks_a_chunk() const;
    Share share(int expert) const;
    void blocks_of(const Share &share, int64_t first_block, int64_t last_block) const;
    void tile(const Share &share, int64_t block, int64_t first, int rows) const;
    void tile_swiglu(const Share &share, int64_t block, int64_t first, int rows) const;
    void multiply(int expert, int64_t block, int rows, const TileRows &tokens) const;
    TileRows tokens_at(int64_t first, int rows) const;
    int64_t token(int64_t place) const { return grouping_ ? grouping_->places[place] : place; }

    const Variant &variant_;
    const oz_matrix &matrix_;
    const oz_activations &x_;
    const oz_grouping *const grouping_;
    float *const output_;
    const int64_t stride_, whole_;
    const bool swiglu_;
    const int block_rows_, tile_rows_;
    const int64_t blocks_;
};

}  // namespace oz
