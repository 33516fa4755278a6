#include "variants.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace oz {

namespace {

const Variant *const kVariants[] = {
    &kPortable,
#if defined(__x86_64__)
    &kAvx2,
    // AVX-VNNI's kernels in AVX-512's encoding: slower than the next but one, and a way to test them without AVX-VNNI.
    &kAvx512Vnni256,
    &kAvxVnni,
    &kAvx512Vnni,
#elif defined(__aarch64__)
    &kNeonDot,
#endif
};

#if defined(__x86_64__)

struct Registers {
    unsigned a = 0, b = 0, c = 0, d = 0;
    Registers(unsigned leaf, unsigned subleaf) { __get_cpuid_count(leaf, subleaf, &a, &b, &c, &d); }
};

bool has(unsigned registers, int bit) { return registers >> bit & 1; }

// Which registers the operating system saves: bits 1-2 are those of AVX, 5-7 those of AVX-512.
uint64_t saved_registers() {
    uint32_t low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t{high} << 32 | low;
}

bool supports(const Variant &variant) {
    const Registers basic(1, 0), extended(7, 0), more(7, 1);
    if (&variant == &kPortable) return true;
    if (!has(basic.c, 27) || (saved_registers() & 0x6) != 0x6) return false;
    const bool avx2 = has(basic.c, 28) && has(basic.c, 29) && has(extended.b, 5);  // AVX, F16C, AVX2
    if (&variant == &kAvx2) return avx2;
    if (&variant == &kAvxVnni) return avx2 && has(more.a, 4);
    const bool avx512 = has(extended.b, 16) && has(extended.b, 30) && has(extended.b, 31);  // F, BW, VL
    return avx2 && avx512 && has(extended.c, 11) && (saved_registers() & 0xe6) == 0xe6;
}

#elif defined(__aarch64__)

// Whether the operating system says that the processor has dot products of bytes.
bool has_dot_products() {
#if defined(__linux__)
    constexpr unsigned long kDotProducts = 1 << 20;  // HWCAP_ASIMDDP, which older headers lack
    return (getauxval(AT_HWCAP) & kDotProducts) != 0;
#elif defined(__APPLE__)
    int there = 0;
    size_t size = sizeof there;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &there, &size, nullptr, 0) == 0 && there;
#else
    return false;
#endif
}

bool supports(const Variant &variant) { return &variant == &kPortable || has_dot_products(); }

#else

bool supports(const Variant &) { return true; }

#endif

}  // namespace

int variant_count() { return sizeof(kVariants) / sizeof(*kVariants); }

const Variant &variant(int number) { return *kVariants[number]; }

uint32_t supported_variants() {
    uint32_t bits = 0;
    for (int i = 0; i < variant_count(); ++i) bits |= uint32_t{supports(variant(i))} << i;
    return bits;
}

}  // namespace oz
