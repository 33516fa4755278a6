// Kernels for 256-bit VNNI in AVX-512's encoding.
#if defined(__x86_64__)
#define OZ_TARGET __attribute__((target("avx2,f16c,avx512f,avx512bw,avx512vl,avx512vnni")))
#define OZ_PRODUCT _mm256_dpbusd_epi32
#define OZ_VARIANT kAvx512Vnni256
#define OZ_NAME "avx512vnni-256"
#include "vnni256.h"
#endif
