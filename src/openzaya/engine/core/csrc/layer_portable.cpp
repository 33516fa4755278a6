#define OZ_TARGET
#define OZ_REGISTER 16
#define OZ_LAYER kLayerPortable
#include "lanes.h"

namespace oz {

namespace {

constexpr int kScored = 1, kMixed = 1, kRouted = 2, kRoutedRows = 2;

OZ_INNER Lanes all_widened(const uint16_t *halves) {
    float numbers[kLanes];
    for (int i = 0; i < kLanes; ++i) numbers[i] = from_half(halves[i]);
    return load_lanes(numbers);
}

OZ_INNER Lanes all_widened(const int8_t *codes) {
    float numbers[kLanes];
    for (int i = 0; i < kLanes; ++i) numbers[i] = static_cast<float>(codes[i]);
    return load_lanes(numbers);
}

}  // namespace

}  // namespace oz

#include "layer_kernels.h"
