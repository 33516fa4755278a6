// Compares every variant of the core that this processor runs with the portable one, to the bit, over random shapes.
// Prints the names of the variants and a hash of all results, which every processor must print alike.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "abi.h"

namespace {

std::mt19937 random_bits(1);

int between(int low, int high) { return low + static_cast<int>(random_bits() % static_cast<unsigned>(high - low + 1)); }

std::vector<float> numbers(size_t count) {
    std::vector<float> found(count);
    for (float &number : found) number = static_cast<float>(between(-(1 << 20), 1 << 20)) / static_cast<float>(1 << 18);
    return found;
}

struct Case {
    int bits, group, experts, tokens, columns, rows;
    std::vector<uint8_t> codes;
    std::vector<uint16_t> halves;
    std::vector<float> scales, x;
    std::vector<int32_t> places, ends;

    Case() {
        bits = between(0, 1) ? 4 : 8;
        experts = between(1, 4);
        tokens = between(1, 40);
        columns = 128 * between(1, 5);
        group = bits == 8 ? columns : between(0, 1) ? 32 : 128;
        const int block = bits == 4 ? 32 : 16, blocks = 2 * between(1, 6);
        rows = blocks * block - (between(0, 1) ? 0 : between(1, block - 1));
        codes.resize(static_cast<size_t>(experts) * blocks * columns * 16);
        for (uint8_t &code : codes) code = static_cast<uint8_t>(random_bits());
        if (bits == 4) {
            halves.resize(static_cast<size_t>(experts) * blocks * (columns / group) * 32);
            // Finite halves, subnormal ones and negative ones among them.
            for (uint16_t &half : halves) half = static_cast<uint16_t>((random_bits() & 0x83ff) | (random_bits() % 17) << 10);
        } else {
            for (uint8_t &code : codes) code = code == 0x80 ? 0 : code;
            scales = numbers(static_cast<size_t>(experts) * blocks * 16);
        }
        x = numbers(static_cast<size_t>(tokens) * columns);
        for (int t = 0; t < tokens; ++t) places.push_back(tokens - 1 - t);
        for (int e = 0; e < experts; ++e) ends.push_back(e + 1 == experts ? tokens : between(ends.empty() ? 0 : ends.back(), tokens));
    }
};

std::vector<float> results(oz_core *core, const Case &c, bool swiglu) {
    std::vector<int8_t> codes(c.x.size());
    std::vector<float> scales(c.tokens), output(static_cast<size_t>(c.tokens) * c.rows, 0.0f);
    std::vector<int32_t> sums(static_cast<size_t>(c.tokens) * (c.columns / c.group));
    const oz_activations quantised = {codes.data(), scales.data(), sums.data(), c.tokens, c.columns, c.group};
    const void *weight_scales = c.bits == 4 ? static_cast<const void *>(c.halves.data()) : c.scales.data();
    const oz_matrix matrix = {c.codes.data(), weight_scales, c.rows, c.columns, c.bits, c.group, c.experts};
    const oz_grouping grouping = {c.places.data(), c.ends.data()};
    oz_quantise(core, c.x.data(), &quantised);
    (swiglu ? oz_product_swiglu : oz_product)(core, &matrix, &quantised, &grouping, output.data(), c.rows);
    for (int8_t code : codes) output.push_back(static_cast<float>(code));
    output.insert(output.end(), scales.begin(), scales.end());
    // The residual stream of the layer kernels.
    std::vector<float> residual(c.x), normed(c.x.size());
    const std::vector<float> norm(c.columns, 1.25f);
    const oz_residual merge = {nullptr, nullptr, nullptr, nullptr, norm.data()};
    oz_merge_norm(core, &merge, c.tokens, c.columns, 1e-5f, residual.data(), nullptr, nullptr, normed.data());
    output.insert(output.end(), normed.begin(), normed.end());
    return output;
}

}  // namespace

int main() {
    std::vector<oz_core *> cores;
    for (int variant = 0; variant < oz_variant_count(); ++variant) {
        if (!(oz_supported() >> variant & 1)) continue;
        std::printf("%s ", oz_variant_name(variant));
        cores.push_back(oz_open(variant, 2));
    }
    uint64_t hash = 1469598103934665603u;
    for (int number = 0; number < 120; ++number) {
        const Case c;
        const bool swiglu = number % 3 == 0 && c.rows % (c.bits == 4 ? 64 : 32) == 0;
        const std::vector<float> expected = results(cores[0], c, swiglu);
        for (size_t other = 1; other < cores.size(); ++other) {
            const std::vector<float> found = results(cores[other], c, swiglu);
            if (std::memcmp(found.data(), expected.data(), sizeof(float) * found.size()) != 0) {
                std::printf("\ncase %d differs: %d bits, group %d, %d tokens, %d x %d\n", number, c.bits, c.group,
                            c.tokens, c.rows, c.columns);
                return 1;
            }
        }
        for (float value : expected) {
            uint32_t bits;
            std::memcpy(&bits, &value, sizeof bits);
            hash = (hash ^ bits) * 1099511628211u;
        }
    }
    std::printf("%016llx\n", static_cast<unsigned long long>(hash));
    for (oz_core *core : cores) oz_close(core);
    return 0;
}
