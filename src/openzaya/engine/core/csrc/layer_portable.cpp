#define OZ_TARGET
#define OZ_LAYER kLayerPortable
#include "layer_kernels.h"
