/* A call: find the place, select, load, pack, launch. */
#ifndef GRISTMILL_LAUNCH_H
#define GRISTMILL_LAUNCH_H

#include "grid.h"
#include "load.h"
#include "pack.h"
#include "select.h"

#define GM_STREAM_ORDERED_ALIGNMENT 256u /* of the driver's own allocations */

/* What a launch needs beside the call's values. */
typedef struct gm_storage {
    void *parameters[GM_MAX_SLOTS];
    gm_map maps[GM_MAX_DESCRIPTORS];
    int64_t extents[GM_MAX_DESCRIPTORS]; /* innermost ones that are not the caller's own */
    uint64_t zero;
    uint64_t scratch; /* an address in: */
    uint64_t memory;
} gm_storage;

typedef struct gm_allocator {
    gristmill_allocate allocate;
    gristmill_release release;
    void *user;
} gm_allocator;

GM_COLD int32_t gm_set_allocator(gm_artifact *artifact, const char *who,
                                 gristmill_allocate allocate, gristmill_release release,
                                 void *user) {
    if (!allocate != !release) {
        return gm_fail(GRISTMILL_INVALID_ARGUMENT, who,
                       "one of `allocate` and `release` is null; pass both, or neither for the "
                       "driver's own");
    }
    gm_lock();
    artifact->allocate = allocate;
    artifact->release = release;
    artifact->user = user;
    gm_unlock();
    return GRISTMILL_OK;
}

/* Scratch memory on the device, in stream order: right within a graph's capture too. */
GM_COLD int32_t gm_allocate_scratch(gm_artifact *artifact, const gm_call *call, uint8_t vendor,
                                    const gm_kernel *kernel, gm_allocator *allocator,
                                    gm_storage *storage) {
    uint64_t size = kernel->scratch_size, alignment = kernel->scratch_alignment;
    const char *who = call->entry->name;
    const uint64_t counts[4] = {kernel->cluster, (uint64_t)call->grid[0], (uint64_t)call->grid[1],
                                (uint64_t)call->grid[2]};
    int i, code;
    gm_lock();
    allocator->allocate = artifact->allocate;
    allocator->release = artifact->release;
    allocator->user = artifact->user;
    gm_unlock();
    if (alignment < 1) alignment = 1;
    for (i = 0; i < 4; i++) {
        if (__builtin_mul_overflow(size, counts[i], &size) || size > (uint64_t)1 << 62) {
            return gm_fail(GRISTMILL_INVALID_ARGUMENT, who,
                           "the grid needs more scratch memory than addresses reach");
        }
    }
    if (allocator->allocate) {
        storage->memory = (uint64_t)(uintptr_t)allocator->allocate(
            (size_t)size, (size_t)alignment, call->stream, allocator->user);
        if (!storage->memory) {
            return gm_fail(GRISTMILL_OUT_OF_MEMORY, who,
                           "the allocator gave no scratch memory (%" PRIu64 " bytes)", size);
        }
        storage->scratch = storage->memory;
        if (storage->scratch % alignment == 0) return GRISTMILL_OK;
        allocator->release((void *)(uintptr_t)storage->memory, call->stream, allocator->user);
        return gm_fail(GRISTMILL_INVALID_ARGUMENT, who,
                       "the allocator gave scratch memory at 0x%" PRIx64 "; asked for was a "
                       "multiple of %" PRIu64, storage->memory, alignment);
    }
    if (alignment > GM_STREAM_ORDERED_ALIGNMENT) size += alignment;
    if (vendor == GM_CUDA ? !gm_cuda.cuMemAllocAsync || !gm_cuda.cuMemFreeAsync
                          : !gm_hip.hipMallocAsync || !gm_hip.hipFreeAsync) {
        return gm_fail(GRISTMILL_NO_DRIVER, who,
                       "the driver has no stream-ordered allocator, and the kernel needs scratch "
                       "memory. Set one with `%s_set_allocator`.", artifact->name);
    }
    if (vendor == GM_CUDA) {
        code = gm_cuda.cuMemAllocAsync(&storage->memory, (size_t)size, call->stream);
    } else {
        void *memory = NULL;
        code = gm_hip.hipMallocAsync(&memory, (size_t)size, call->stream);
        storage->memory = (uint64_t)(uintptr_t)memory;
    }
    if (code) {
        return gm_driver_error(who, vendor, vendor == GM_CUDA ? "cuMemAllocAsync" : "hipMallocAsync",
                               code);
    }
    storage->scratch = (storage->memory + alignment - 1) / alignment * alignment;
    return GRISTMILL_OK;
}

GM_COLD int32_t gm_release_scratch(const gm_call *call, uint8_t vendor,
                                   const gm_allocator *allocator, const gm_storage *storage) {
    int code;
    if (allocator->release) {
        allocator->release((void *)(uintptr_t)storage->memory, call->stream, allocator->user);
        return GRISTMILL_OK;
    }
    code = vendor == GM_CUDA
               ? gm_cuda.cuMemFreeAsync(storage->memory, call->stream)
               : gm_hip.hipFreeAsync((void *)(uintptr_t)storage->memory, call->stream);
    return code ? gm_driver_error(call->entry->name, vendor,
                                  vendor == GM_CUDA ? "cuMemFreeAsync" : "hipFreeAsync", code)
                : GRISTMILL_OK;
}

/* The extent that a slot passes: the caller's, or twice the innermost one of padded 4-bit values, of
   which two are a byte. */
GM_FUNCTION const int64_t *gm_extent(const gm_kernel *kernel, const gm_slot *slot,
                                     const gristmill_descriptor *tensor, gm_storage *storage) {
    uint32_t i;
    for (i = 0; i < kernel->map_count; i++) {
        const gm_map_plan *plan = &kernel->maps[i];
        if (plan->source != slot->source) continue;
        if (!plan->fp4_padded || slot->index != plan->rank - 1) break;
        storage->extents[i] = tensor->shape[slot->index] * 2; /* encoded, so below 2^31 */
        return &storage->extents[i];
    }
    return &tensor->shape[slot->index];
}

/* Encodes the call's tensors; shapes that are passed as 32 bits must fit. */
GM_COLD int32_t gm_pack_tensors(const gm_call *call, const gm_kernel *kernel,
                                gm_storage *storage) {
    uint32_t i;
    for (i = 0; i < kernel->map_count; i++) {
        int32_t status = gm_encode(call, &kernel->maps[i], &storage->maps[i]);
        if (status) return status;
    }
    for (i = 0; i < kernel->slot_count; i++) {
        const gm_slot *slot = &kernel->slots[i];
        const gristmill_descriptor *tensor;
        const int64_t *extent;
        if (slot->pass < GM_BASE || slot->pass > GM_STRIDE) continue;
        tensor = gm_tensor(call, slot->source);
        extent = gm_extent(kernel, slot, tensor, storage);
        if (slot->pass == GM_SHAPE32 && (*extent < 0 || *extent > INT32_MAX)) {
            return gm_fail(GRISTMILL_INVALID_ARGUMENT, call->entry->name,
                           "`%s` has %" PRId64 " values along dimension %d; the kernel takes 0 to "
                           "2147483647", call->entry->parameters[slot->source], *extent,
                           slot->index);
        }
        storage->parameters[i] = slot->pass == GM_BASE  ? (void *)(uintptr_t)&tensor->data
                                 : slot->pass == GM_MAP ? (void *)&storage->maps[slot->index]
                                 : slot->pass == GM_STRIDE
                                     ? (void *)(uintptr_t)&tensor->strides[slot->index]
                                     : (void *)(uintptr_t)extent;
    }
    return GRISTMILL_OK;
}

/* Points the binary's parameters at their bytes: little-endian values begin with their low ones. */
GM_FUNCTION int32_t gm_pack(const gm_call *call, const gm_kernel *kernel, gm_storage *storage) {
    const gm_slot *slot = kernel->slots, *end = slot + kernel->slot_count;
    void **parameter = storage->parameters;
    int tensors = 0;
    for (; slot < end; slot++, parameter++) {
        if (GM_LIKELY(slot->pass == GM_VALUE)) {
            *parameter = &call->values[slot->source];
        } else if (slot->pass < GM_BASE) {
            gm_pack_float(&call->values[slot->source], slot->pass);
            *parameter = &call->values[slot->source];
        } else if (slot->pass >= GM_ZERO) {
            *parameter = slot->pass == GM_ZERO ? &storage->zero : &storage->scratch;
        } else {
            tensors = 1;
        }
    }
    return tensors ? gm_pack_tensors(call, kernel, storage) : GRISTMILL_OK;
}

GM_FUNCTION int gm_launch_cuda(const gm_call *call, const gm_kernel *kernel, void *function,
                               void **parameters) {
    gm_cuda_attribute attributes[4];
    gm_cuda_config config = {{(uint32_t)call->grid[0] * kernel->cluster, (uint32_t)call->grid[1],
                              (uint32_t)call->grid[2]},
                             {kernel->threads, 1, 1},
                             kernel->shared,
                             call->stream,
                             attributes,
                             0};
    gm_cuda_attribute *attribute = attributes;
    if (kernel->pdl) {
        attribute->id = GM_CUDA_LAUNCH_PDL;
        attribute++->value.number = 1;
    }
    if (kernel->cooperative) {
        attribute->id = GM_CUDA_LAUNCH_COOPERATIVE;
        attribute++->value.number = 1;
    }
    if (kernel->cluster > 1) {
        attribute->id = GM_CUDA_LAUNCH_CLUSTER;
        attribute->value.cluster.x = kernel->cluster;
        attribute->value.cluster.y = 1;
        attribute++->value.cluster.z = 1;
        attribute->id = GM_CUDA_LAUNCH_CLUSTER_POLICY;
        attribute++->value.number = GM_CUDA_CLUSTER_SPREAD;
    }
    config.attribute_count = (uint32_t)(attribute - attributes);
    return gm_cuda.cuLaunchKernelEx(&config, function, parameters, NULL);
}

GM_FUNCTION int gm_launch_hip(const gm_call *call, const gm_kernel *kernel, void *function,
                              void **parameters) {
    const uint32_t x = (uint32_t)call->grid[0], y = (uint32_t)call->grid[1];
    const uint32_t z = (uint32_t)call->grid[2];
    return kernel->cooperative
               ? gm_hip.hipModuleLaunchCooperativeKernel(function, x, y, z, kernel->threads, 1, 1,
                                                         kernel->shared, call->stream, parameters)
               : gm_hip.hipModuleLaunchKernel(function, x, y, z, kernel->threads, 1, 1,
                                              kernel->shared, call->stream, parameters, NULL);
}

GM_FUNCTION int32_t gm_launch(const gm_call *call, uint8_t vendor, const gm_kernel *kernel,
                              void *function, void **parameters) {
    const int code = GM_LIKELY(vendor == GM_CUDA)
                         ? gm_launch_cuda(call, kernel, function, parameters)
                         : gm_launch_hip(call, kernel, function, parameters);
    if (GM_LIKELY(code == 0)) return GRISTMILL_OK;
    return gm_driver_error(call->entry->name, vendor,
                           vendor == GM_CUDA       ? "cuLaunchKernelEx"
                           : kernel->cooperative ? "hipModuleLaunchCooperativeKernel"
                                                 : "hipModuleLaunchKernel",
                           code);
}

/* A launch between the allocation of its scratch memory and its release. */
GM_COLD int32_t gm_launch_with_scratch(gm_artifact *artifact, const gm_call *call, uint8_t vendor,
                                       const gm_kernel *kernel, void *function,
                                       gm_storage *storage) {
    gm_allocator allocator;
    int32_t released, status = gm_allocate_scratch(artifact, call, vendor, kernel, &allocator,
                                                   storage);
    if (status) return status;
    status = gm_launch(call, vendor, kernel, function, storage->parameters);
    if (status) {
        char kept[GM_MESSAGE_SIZE]; /* the launch's failure is the one to report */
        memcpy(kept, gm_last_message, sizeof kept);
        (void)gm_release_scratch(call, vendor, &allocator, storage);
        memcpy(gm_last_message, kept, sizeof kept);
        return status;
    }
    released = gm_release_scratch(call, vendor, &allocator, storage);
    return released;
}

GM_COLD int32_t gm_bad_grid(const gm_call *call, uint32_t cluster) {
    return gm_fail(GRISTMILL_INVALID_ARGUMENT, call->entry->name,
                   "the grid is (%" PRId64 ", %" PRId64 ", %" PRId64 ") of %" PRIu32
                   "-block clusters; allowed are 0 to 2147483647 blocks along x and 0 to 65535 "
                   "along y and z", call->grid[0], call->grid[1], call->grid[2], cluster);
}

/* Runs a call. */
GM_FUNCTION int32_t gm_run(gm_artifact *artifact, const gm_call *call) {
    gm_storage storage;
    gm_place *place = NULL;
    const gm_kernel *kernel;
    void *function;
    uint32_t index;
    int32_t status;
    if ((call->grid[0] | call->grid[1] | call->grid[2]) < 0) return gm_bad_grid(call, 1);
    if (!call->grid[0] || !call->grid[1] || !call->grid[2]) return GRISTMILL_OK;
    status = gm_find_place(artifact, call->entry->name, &place);
    if (status) return status;
    index = gm_select(call, place);
    if (index == GM_NONE_FOUND) {
        return place->arch_count ? gm_no_specialisation(artifact, call, place)
                                 : gm_no_architecture(artifact, call->entry->name, place);
    }
    kernel = &artifact->kernels[index];
    if (call->grid[0] > INT32_MAX / kernel->cluster || call->grid[1] > 65535 ||
        call->grid[2] > 65535) {
        return gm_bad_grid(call, kernel->cluster);
    }
    function = GM_LOAD(&place->functions[index]);
    if (!GM_LIKELY(function)) {
        status = gm_load(artifact, call->entry->name, place, index);
        if (status) return status;
        function = GM_LOAD(&place->functions[index]);
    }
    storage.zero = storage.scratch = 0;
    status = gm_pack(call, kernel, &storage);
    if (status) return status;
    if (kernel->scratch_size) {
        return gm_launch_with_scratch(artifact, call, place->vendor, kernel, function, &storage);
    }
    return gm_launch(call, place->vendor, kernel, function, storage.parameters);
}

#endif
