#if defined(__x86_64__)
#define OZ_TARGET __attribute__((target("avx2,avx512f,avx512bw,avx512vl")))
#define OZ_LAYER kLayerAvx512
#include "layer_kernels.h"
#endif
