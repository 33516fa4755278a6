#define OZ_TARGET
#define OZ_REGISTER 16
#define OZ_LAYER kLayerPortable
#include "lanes.h"
#include "layer.h"

namespace oz {

namespace {

constexpr int kScored = 1, kMixed = 1, kCoded = 1, kCodedHeads = 1, kRouted = 2, kRoutedRows = 2;

OZ_INNER Lanes all_widened(const uint16_t *halves) {
    float numbers[kLanes];
    for (int i = 0; i < kLanes; ++i) numbers[i] = from_half(halves[i]);
    return load_lanes(numbers);
}

typedef const int8_t *Codes;

struct Whole {
    int32_t in[kLanes];
};

OZ_INNER Codes codes_at(const int8_t *at) { return at; }

OZ_INNER Whole started(const PreparedQueries::Offsets &) { return {}; }

OZ_INNER void add_scored(Whole &sums, Codes codes, const int16_t *factors) {
    for (int i = 0; i < kLanes; ++i) {
        for (int j = 0; j < 4; ++j) sums.in[i] += codes[4 * i + j] * factors[j];
    }
}

OZ_INNER void add_mixed(Whole &sums, Codes codes, const int16_t *factors) { add_scored(sums, codes, factors); }

OZ_INNER Lanes floats_of(const Whole &sums) {
    float numbers[kLanes];
    for (int i = 0; i < kLanes; ++i) numbers[i] = static_cast<float>(sums.in[i]);
    return load_lanes(numbers);
}

OZ_INNER PreparedQueries::Offsets arrange_queries(int16_t *, int64_t) { return {0, 0}; }

OZ_INNER void arrange_weights(int16_t *, int64_t) {}

}  // namespace

}  // namespace oz

#include "layer_kernels.h"
