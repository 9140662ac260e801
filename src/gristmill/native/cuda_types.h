/* CUDA's driver interface as far as launches need it: the layout of its types, which its versions
   keep, and its enumeration values. For artifacts and for bound calls. */
#ifndef GRISTMILL_CUDA_TYPES_H
#define GRISTMILL_CUDA_TYPES_H

#include <stdint.h>

#define GM_CUDA_LAUNCH_COOPERATIVE 2
#define GM_CUDA_LAUNCH_CLUSTER 4
#define GM_CUDA_LAUNCH_CLUSTER_POLICY 5
#define GM_CUDA_LAUNCH_PDL 6
#define GM_CUDA_CLUSTER_SPREAD 1
#define GM_CUDA_L2_128B 2

typedef struct gm_cuda_attribute {
    int32_t id;
    char pad[4];
    union {
        char pad[64];
        uint64_t alignment;
        int32_t number;
        struct { uint32_t x, y, z; } cluster;
    } value;
} gm_cuda_attribute;

typedef struct gm_cuda_config {
    uint32_t grid[3], block[3];
    uint32_t shared;
    void *stream;
    gm_cuda_attribute *attributes;
    uint32_t attribute_count;
} gm_cuda_config;

#endif
