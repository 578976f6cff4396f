// Found in place of CUDA's own header where kernels are compiled for the emulator.
#include "cuda_emulator.h"
