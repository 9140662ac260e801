/* The drivers' functions, found at run time: no header and no library of theirs is needed to build.
   Types and prototypes are those of CUDA's and HIP's driver interfaces, as far as they are used. */
#ifndef GRISTMILL_DRIVER_H
#define GRISTMILL_DRIVER_H

#include "cuda_types.h"
#include "tables.h"
#include "types.h"

#define GM_CUDA_CAPABILITY_MAJOR 75
#define GM_CUDA_CAPABILITY_MINOR 76
#define GM_CUDA_SHARED_SIZE 8
#define GM_CUDA_NON_PORTABLE_CLUSTER 14
#define GM_CUDA_NO_CONTEXT 201 /* CUDA_ERROR_INVALID_CONTEXT */
#define GM_OUT_OF_DEVICE_MEMORY 2 /* of both */
#define GM_CUDA_NOT_FOUND 500
#define GM_HIP_ARCH_NAME_AT 1160 /* gcnArchName in hipDeviceProp_tR0600, of 1472 bytes */
#define GM_HIP_PROPERTIES_SIZE 1472

/* A CUtensorMap. */
typedef struct GM_ALIGNED(64) gm_map {
    uint64_t opaque[16];
} gm_map;

/* name, whether it must be there, parameters; all return an int, 0 where they succeeded */
#define GM_CUDA_FUNCTIONS(EACH)                                                                    \
    EACH(cuInit, 1, (unsigned))                                                                    \
    EACH(cuGetErrorName, 1, (int, const char **))                                                  \
    EACH(cuGetErrorString, 1, (int, const char **))                                                \
    EACH(cuDeviceGet, 1, (int *, int))                                                             \
    EACH(cuDeviceGetAttribute, 1, (int *, int, int))                                               \
    EACH(cuDevicePrimaryCtxRetain, 1, (void **, int))                                              \
    EACH(cuDevicePrimaryCtxRelease_v2, 1, (int))                                                   \
    EACH(cuCtxGetId, 1, (void *, unsigned long long *))                                            \
    EACH(cuCtxSetCurrent, 1, (void *))                                                             \
    EACH(cuCtxPushCurrent_v2, 1, (void *))                                                         \
    EACH(cuCtxPopCurrent_v2, 1, (void **))                                                         \
    EACH(cuCtxGetDevice, 1, (int *))                                                               \
    EACH(cuLibraryLoadData, 1,                                                                     \
         (void **, const void *, int *, void **, unsigned, int *, void **, unsigned))              \
    EACH(cuLibraryUnload, 1, (void *))                                                             \
    EACH(cuLibraryGetKernel, 1, (void **, void *, const char *))                                   \
    EACH(cuKernelGetFunction, 1, (void **, void *))                                                \
    EACH(cuFuncSetAttribute, 1, (void *, int, int))                                                \
    EACH(cuLaunchKernelEx, 1, (const gm_cuda_config *, void *, void **, void **))                  \
    EACH(cuFuncLoad, 0, (void *))                                                                  \
    EACH(cuMemAllocAsync, 0, (uint64_t *, size_t, void *))                                         \
    EACH(cuMemFreeAsync, 0, (uint64_t, void *))                                                    \
    EACH(cuTensorMapEncodeTiled, 0,                                                                \
         (gm_map *, int, uint32_t, void *, const uint64_t *, const uint64_t *, const uint32_t *,   \
          const uint32_t *, int, int, int, int))

#define GM_HIP_FUNCTIONS(EACH)                                                                     \
    EACH(hipInit, 1, (unsigned))                                                                   \
    EACH(hipGetDevice, 1, (int *))                                                                 \
    EACH(hipSetDevice, 1, (int))                                                                   \
    EACH(hipGetDevicePropertiesR0600, 1, (void *, int))                                            \
    EACH(hipModuleLoadData, 1, (void **, const void *))                                            \
    EACH(hipModuleUnload, 1, (void *))                                                             \
    EACH(hipModuleGetFunction, 1, (void **, void *, const char *))                                 \
    EACH(hipModuleLaunchKernel, 1,                                                                 \
         (void *, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, void *,    \
          void **, void **))                                                                       \
    EACH(hipModuleLaunchCooperativeKernel, 1,                                                      \
         (void *, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, void *,    \
          void **))                                                                                \
    EACH(hipMallocAsync, 0, (void **, size_t, void *))                                             \
    EACH(hipFreeAsync, 0, (void *, void *))

#define GM_FIELD(name, required, parameters) int(*name) parameters;
typedef struct gm_cuda_driver {
    GM_CUDA_FUNCTIONS(GM_FIELD)
} gm_cuda_driver;
typedef struct gm_hip_driver {
    GM_HIP_FUNCTIONS(GM_FIELD)
    const char *(*hipGetErrorString)(int);
} gm_hip_driver;
#undef GM_FIELD

static gm_cuda_driver gm_cuda;
static gm_hip_driver gm_hip;
static int32_t gm_driver_ready[GM_VENDORS]; /* set once its functions may be called */

/* A function of a library into a function pointer: ISO C has no cast between the two. */
GM_FUNCTION int gm_find(void *library, const char *name, void *pointer, size_t size) {
    void *found = dlsym(library, name);
    if (size != sizeof found || !found) return 0;
    memcpy(pointer, &found, sizeof found);
    return 1;
}

/* The failure of a call of the driver. */
GM_COLD int32_t gm_driver_error(const char *who, uint8_t vendor, const char *call, int code) {
    const char *name = NULL, *text = NULL;
    int32_t status = code == GM_OUT_OF_DEVICE_MEMORY ? GRISTMILL_OUT_OF_MEMORY
                                                     : GRISTMILL_DRIVER_ERROR;
    if (vendor == GM_CUDA) {
        if (gm_cuda.cuGetErrorName(code, &name) != 0) name = NULL;
        if (gm_cuda.cuGetErrorString(code, &text) != 0) text = NULL;
    } else {
        text = gm_hip.hipGetErrorString(code);
    }
    return gm_fail(status, who, "%s failed with error %d%s%s%s%s", call, code, name ? " " : "",
                   name ? name : "", text ? ": " : "", text ? text : "");
}

/* Fills in a driver's functions, once a process (of this artifact). A failure is tried again. */
GM_COLD int32_t gm_open_driver(const char *who, uint8_t vendor) {
    static const char *const names[GM_VENDORS] = {"libcuda.so.1", "libamdhip64.so"};
    const char *missing = NULL;
    int32_t status = GRISTMILL_OK;
    int code;
    void *library;
    gm_lock();
    if (gm_driver_ready[vendor]) goto done;
    gm_expect_forks();
    library = dlopen(names[vendor], RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        const char *reason = dlerror();
        status = gm_fail(GRISTMILL_NO_DRIVER, who, "the driver cannot be opened: %s",
                         reason ? reason : names[vendor]);
        goto done;
    }
#define GM_FIND(name, required, parameters)                                                        \
    if (!gm_find(library, #name, (void *)&driver.name, sizeof driver.name) && (required))          \
        missing = #name;
    if (vendor == GM_CUDA) {
        gm_cuda_driver driver;
        memset(&driver, 0, sizeof driver);
        GM_CUDA_FUNCTIONS(GM_FIND)
        if (!missing) gm_cuda = driver;
    } else {
        gm_hip_driver driver;
        memset(&driver, 0, sizeof driver);
        GM_HIP_FUNCTIONS(GM_FIND)
        GM_FIND(hipGetErrorString, 1, )
        if (!missing) gm_hip = driver;
    }
#undef GM_FIND
    if (missing) {
        dlclose(library);
        status = gm_fail(GRISTMILL_NO_DRIVER, who,
                         "%s has no function %s: the driver is too old. Install a newer one "
                         "(CUDA 12.0, ROCm 6.0 or later).", names[vendor], missing);
        goto done;
    }
    code = vendor == GM_CUDA ? gm_cuda.cuInit(0) : gm_hip.hipInit(0);
    if (code) {
        status = gm_driver_error(who, vendor, vendor == GM_CUDA ? "cuInit" : "hipInit", code);
        dlclose(library);
        if (status == GRISTMILL_DRIVER_ERROR) status = GRISTMILL_NO_DRIVER;
        goto done;
    }
    GM_STORE(&gm_driver_ready[vendor], 1);
done:
    gm_unlock();
    return status;
}

#endif
