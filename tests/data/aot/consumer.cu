// A CUDA program: CUDA's own element types are known where their headers come first.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "pair.h"

static_assert(gristmill::element<__nv_bfloat16>::value == GRISTMILL_BF16, "bf16");
static_assert(gristmill::element<__nv_fp8_e4m3>::value == GRISTMILL_FP8E4NV, "e4m3");
static_assert(gristmill::element<__nv_fp8_e5m2>::value == GRISTMILL_FP8E5, "e5m2");

__global__ void fill(__half *x) { x[threadIdx.x] = __half(1.0f); }

int main() {
    __half *x = nullptr;
    cudaStream_t stream = nullptr;
    return pair_add(x, x, x, 16, 1.0, 64, 4, 3, 0, 1, 1, stream);
}
