#include "abi.h"

#include <algorithm>
#include <atomic>
#include <new>

#include "core.h"
#include "product.h"

#ifndef OZ_FINGERPRINT
#define OZ_FINGERPRINT "unknown"
#endif

using namespace oz;

namespace {

constexpr int64_t kBytesAChunk = 1 << 18;

}  // namespace

const char *oz_fingerprint(void) { return OZ_FINGERPRINT; }

int oz_variant_count(void) { return variant_count(); }

const char *oz_variant_name(int number) { return variant(number).name; }

uint32_t oz_supported(void) { return supported_variants(); }

oz_core *oz_open(int number, int threads) { return new (std::nothrow) oz_core{variant(number), Pool(threads)}; }

void oz_close(oz_core *core) { delete core; }

void oz_quantise(oz_core *core, const float *x, const oz_activations *quantised) {
    const oz_activations &to = *quantised;
    share(core, parts(to.tokens, kTokensAChunk), [&](int64_t chunk) {
        for (int64_t t = chunk * kTokensAChunk; t < std::min((chunk + 1) * kTokensAChunk, to.tokens); ++t) {
            quantise_token(core, to, x + t * to.columns, t);
        }
    });
}

void oz_product(oz_core *core, const oz_matrix *matrix, const oz_activations *x, const oz_grouping *grouping,
                float *output, int64_t stride) {
    multiply(core, Product(core->variant, *matrix, *x, grouping, output, stride, false));
}

void oz_product_swiglu(oz_core *core, const oz_matrix *matrix, const oz_activations *x, const oz_grouping *grouping,
                       float *output, int64_t stride) {
    multiply(core, Product(core->variant, *matrix, *x, grouping, output, stride, true));
}

uint64_t oz_read(oz_core *core, const void *memory, int64_t bytes) {
    std::atomic<uint64_t> sum{0};
    share(core, parts(bytes, kBytesAChunk), [&](int64_t chunk) {
        const int64_t first = chunk * kBytesAChunk;
        const char *at = static_cast<const char *>(memory) + first;
        sum.fetch_add(core->variant.read(at, std::min(kBytesAChunk, bytes - first)), std::memory_order_relaxed);
    });
    return sum.load();
}
