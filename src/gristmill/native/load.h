/* Loading a function for a place, all of them before a graph is captured, and letting go. */
#ifndef GRISTMILL_LOAD_H
#define GRISTMILL_LOAD_H

#include "place.h"

#define GM_SHARED_WITHOUT_ASKING 49152u /* bytes of shared memory that every kernel may have */
#define GM_PORTABLE_CLUSTER 8u

GM_COLD int32_t gm_load_cuda(gm_artifact *artifact, const char *who, const gm_kernel *kernel,
                             void **function) {
    void **library = &artifact->libraries[kernel->binary], *handle = NULL;
    int code = 0;
    if (!*library) {
        code = gm_cuda.cuLibraryLoadData(&handle, artifact->binaries[kernel->binary].data, NULL,
                                         NULL, 0, NULL, NULL, 0);
        if (code) return gm_driver_error(who, GM_CUDA, "cuLibraryLoadData", code);
        *library = handle;
    }
    code = gm_cuda.cuLibraryGetKernel(&handle, *library, kernel->symbol);
    if (code) return gm_driver_error(who, GM_CUDA, "cuLibraryGetKernel", code);
    code = gm_cuda.cuKernelGetFunction(function, handle);
    if (code) return gm_driver_error(who, GM_CUDA, "cuKernelGetFunction", code);
    if (kernel->shared > GM_SHARED_WITHOUT_ASKING) {
        code = gm_cuda.cuFuncSetAttribute(*function, GM_CUDA_SHARED_SIZE, (int)kernel->shared);
        if (code) {
            gm_message message;
            int32_t status = gm_driver_error(who, GM_CUDA, "cuFuncSetAttribute", code);
            message.text = gm_last_message;
            message.length = strlen(gm_last_message);
            gm_say(&message, " (asked for %" PRIu32 " bytes of shared memory)", kernel->shared);
            return status;
        }
    }
    if (kernel->cluster > GM_PORTABLE_CLUSTER) {
        code = gm_cuda.cuFuncSetAttribute(*function, GM_CUDA_NON_PORTABLE_CLUSTER, 1);
        if (code) return gm_driver_error(who, GM_CUDA, "cuFuncSetAttribute", code);
    }
    if (gm_cuda.cuFuncLoad) { /* lazy loading would load it within the first launch */
        code = gm_cuda.cuFuncLoad(*function);
        if (code) return gm_driver_error(who, GM_CUDA, "cuFuncLoad", code);
    }
    return GRISTMILL_OK;
}

GM_COLD int32_t gm_load_hip(gm_artifact *artifact, const char *who, gm_place *place,
                            const gm_kernel *kernel, void **function) {
    void **module = &place->modules[kernel->binary], *handle = NULL;
    int code;
    if (!*module) {
        code = gm_hip.hipModuleLoadData(&handle, artifact->binaries[kernel->binary].data);
        if (code) return gm_driver_error(who, GM_HIP, "hipModuleLoadData", code);
        *module = handle;
    }
    code = gm_hip.hipModuleGetFunction(function, *module, kernel->symbol);
    return code ? gm_driver_error(who, GM_HIP, "hipModuleGetFunction", code) : GRISTMILL_OK;
}

/* Loads a kernel for the current place, once. What fails is tried again by the next call. */
GM_COLD int32_t gm_load(gm_artifact *artifact, const char *who, gm_place *place, uint32_t index) {
    const gm_kernel *kernel = &artifact->kernels[index];
    void *function = NULL;
    int32_t status = GRISTMILL_OK;
    gm_lock();
    if (!place->functions[index]) {
        status = place->vendor == GM_CUDA
                     ? gm_load_cuda(artifact, who, kernel, &function)
                     : gm_load_hip(artifact, who, place, kernel, &function);
        if (!status) GM_STORE(&place->functions[index], function);
    }
    gm_unlock();
    return status;
}

GM_COLD int32_t gm_no_architecture(const gm_artifact *artifact, const char *who,
                                   const gm_place *place) {
    gm_message message = gm_begin(who);
    uint32_t i;
    gm_say(&message, "device %" PRId32 " is %s; the artifact has binaries for", place->device,
           place->arch_name);
    for (i = 0; i < artifact->arch_count; i++) {
        gm_say(&message, "%s %s", i ? "," : "", artifact->archs[i].name);
    }
    gm_say(&message, ". Build it for %s.", place->arch_name);
    return GRISTMILL_NO_ARCHITECTURE;
}

/* Loads all that may be launched at the calling thread's place. */
GM_COLD int32_t gm_preload_here(gm_artifact *artifact, const char *who) {
    gm_place *place = NULL;
    uint32_t i, arch;
    int32_t status = gm_find_place(artifact, who, &place);
    if (status) return status;
    if (!place->arch_count) return gm_no_architecture(artifact, who, place);
    for (i = 0; i < artifact->kernel_count && !status; i++) {
        for (arch = 0; arch < place->arch_count && !status; arch++) {
            if (artifact->kernels[i].arch == place->archs[arch]) {
                status = gm_load(artifact, who, place, i);
            }
        }
    }
    return status;
}

GM_COLD int32_t gm_preload_cuda(gm_artifact *artifact, const char *who, int32_t ordinal) {
    int device = 0, current = 0, code = gm_cuda.cuDeviceGet(&device, ordinal);
    void *context = NULL;
    int32_t status;
    if (code) return gm_driver_error(who, GM_CUDA, "cuDeviceGet", code);
    if (gm_cuda.cuCtxGetDevice(&current) == 0 && current == device) {
        return gm_preload_here(artifact, who);
    }
    status = gm_retain(artifact, who, device, &context);
    if (status) return status;
    code = gm_cuda.cuCtxPushCurrent_v2(context);
    if (code) return gm_driver_error(who, GM_CUDA, "cuCtxPushCurrent", code);
    status = gm_preload_here(artifact, who);
    code = gm_cuda.cuCtxPopCurrent_v2(&context);
    if (code && !status) status = gm_driver_error(who, GM_CUDA, "cuCtxPopCurrent", code);
    return status;
}

GM_COLD int32_t gm_preload_hip(gm_artifact *artifact, const char *who, int32_t ordinal) {
    int current = 0, code = gm_hip.hipGetDevice(&current);
    int32_t status;
    if (code) return gm_driver_error(who, GM_HIP, "hipGetDevice", code);
    code = gm_hip.hipSetDevice(ordinal);
    if (code) return gm_driver_error(who, GM_HIP, "hipSetDevice", code);
    status = gm_preload_here(artifact, who);
    code = gm_hip.hipSetDevice(current);
    if (code && !status) status = gm_driver_error(who, GM_HIP, "hipSetDevice", code);
    return status;
}

/* Loads all that may be launched on a device (-1: at the calling thread's context). */
GM_COLD int32_t gm_preload(gm_artifact *artifact, const char *who, int32_t device) {
    uint8_t vendor = GM_CUDA;
    int32_t status;
    if (device < -1) {
        return gm_fail(GRISTMILL_INVALID_ARGUMENT, who,
                       "`device` is %" PRId32 "; pass a device's number, or -1 for the current one",
                       device);
    }
    status = gm_choose_vendor(artifact, who, &vendor);
    if (status) return status;
    if (device == -1) return gm_preload_here(artifact, who);
    return vendor == GM_CUDA ? gm_preload_cuda(artifact, who, device)
                             : gm_preload_hip(artifact, who, device);
}

/* Lets go of all that was loaded. Goes on past a failure, and returns the first. */
GM_COLD int32_t gm_unload(gm_artifact *artifact, const char *who) {
    int32_t status = GRISTMILL_OK;
    gm_place *place;
    uint32_t i;
    int code, device;
    gm_lock();
    place = artifact->places;
    GM_STORE(&artifact->places, (gm_place *)NULL);
    while (place) {
        gm_place *next = place->next;
        for (i = 0; i < artifact->binary_count; i++) {
            if (!place->modules[i]) continue;
            code = gm_hip.hipModuleUnload(place->modules[i]);
            if (code && !status) status = gm_driver_error(who, GM_HIP, "hipModuleUnload", code);
        }
        free(place);
        place = next;
    }
    for (i = 0; i < artifact->binary_count; i++) {
        if (!artifact->libraries[i]) continue;
        code = gm_cuda.cuLibraryUnload(artifact->libraries[i]);
        if (code && !status) status = gm_driver_error(who, GM_CUDA, "cuLibraryUnload", code);
        artifact->libraries[i] = NULL;
    }
    for (device = 0; device < 64; device++) {
        if (!(artifact->retained >> device & 1)) continue;
        code = gm_cuda.cuDevicePrimaryCtxRelease_v2(device);
        if (code && !status) {
            status = gm_driver_error(who, GM_CUDA, "cuDevicePrimaryCtxRelease", code);
        }
    }
    artifact->retained = 0;
    gm_unlock();
    return status;
}

#endif
