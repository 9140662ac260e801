/* Calls the compiled kernel from a CUDA program, with CUDA's own types and streams. `--no-results`
   and exit codes: as in main.cpp. */
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "add.h"

#include <cstdio>
#include <cstring>

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            std::fprintf(stderr, "line %d: %s: %s\n", __LINE__, #condition, add_last_error());     \
            return 1;                                                                              \
        }                                                                                          \
    } while (0)

__global__ static void fill(__half *x, __half *y, int n) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n) {
        x[i] = __int2half_rn(i % 1000);
        y[i] = __int2half_rn(1);
    }
}

__global__ static void compare(const __half *out, int n, int *wrong) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < n && __half2int_rn(out[i]) != i % 1000 + 1) atomicAdd(wrong, 1);
}

static int results() {
    const int n = 100003, blocks = (n + 255) / 256;
    __half *x, *y, *out;
    int *wrong, found = -1;
    cudaStream_t stream;
    CHECK(cudaStreamCreate(&stream) == cudaSuccess);
    CHECK(cudaMalloc(&x, n * sizeof *x) == cudaSuccess);
    CHECK(cudaMalloc(&y, n * sizeof *y) == cudaSuccess);
    CHECK(cudaMalloc(&out, n * sizeof *out) == cudaSuccess);
    CHECK(cudaMallocManaged(&wrong, sizeof *wrong) == cudaSuccess);
    *wrong = 0;
    fill<<<blocks, 256, 0, stream>>>(x, y, n);
    CHECK(add_kernel(x, y, out, n, 1024, 4, 3, (n + 1023) / 1024, 1, 1, stream) == GRISTMILL_OK);
    compare<<<blocks, 256, 0, stream>>>(out, n, wrong);
    CHECK(cudaStreamSynchronize(stream) == cudaSuccess);
    found = *wrong;
    CHECK(found == 0);
    std::puts("the sums are right");
    return 0;
}

int main(int argc, char **argv) {
    alignas(16) static unsigned char memory[3][64];
    if (argc > 1 && !std::strcmp(argv[1], "--no-results")) {
        const __nv_bfloat16 *x = reinterpret_cast<const __nv_bfloat16 *>(memory[0]);
        const __half *y = reinterpret_cast<const __half *>(memory[1]);
        CHECK(add_kernel(x, x, x, 16, 128, 4, 3, 1, 1, 1, nullptr) == GRISTMILL_OK);
        CHECK(add_kernel(y, y, y, 17, 1024, 4, 3, 1, 1, 1, nullptr) == GRISTMILL_OK);
        return 0;
    }
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status != cudaSuccess || count == 0) {
        std::fprintf(stderr, "there is no device: %s\n", cudaGetErrorString(status));
        return 77;
    }
    return results();
}
