#include "CUDAGuard.h"
