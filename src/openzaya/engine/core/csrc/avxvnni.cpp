// Kernels for AVX-VNNI, which processors without AVX-512 have.
#if defined(__x86_64__)
#define OZ_TARGET __attribute__((target("avx2,f16c,avxvnni")))
#define OZ_PRODUCT _mm256_dpbusd_avx_epi32
#define OZ_VARIANT kAvxVnni
#define OZ_NAME "avxvnni"
#include "vnni256.h"
#endif
