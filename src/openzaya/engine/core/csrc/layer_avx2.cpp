#if defined(__x86_64__)
#define OZ_TARGET __attribute__((target("avx2")))
#define OZ_LAYER kLayerAvx2
#include "layer_kernels.h"
#endif
