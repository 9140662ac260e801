/* What was loaded where: a place is a context of CUDA or a device of HIP. Found without a lock;
   made, filled and let go of under it. */
#ifndef GRISTMILL_PLACE_H
#define GRISTMILL_PLACE_H

#include "driver.h"

/* Keeps a device's primary context alive for as long as the artifact is loaded, once. */
GM_COLD int32_t gm_retain(gm_artifact *artifact, const char *who, int device, void **context) {
    int code = gm_cuda.cuDevicePrimaryCtxRetain(context, device);
    if (code) return gm_driver_error(who, GM_CUDA, "cuDevicePrimaryCtxRetain", code);
    gm_lock();
    if (device < 64 && !(artifact->retained >> device & 1)) {
        artifact->retained |= (uint64_t)1 << device;
        device = -1;
    }
    gm_unlock();
    if (device >= 0) (void)gm_cuda.cuDevicePrimaryCtxRelease_v2(device); /* held already */
    return GRISTMILL_OK;
}

/* A thread without a context gets device 0's primary one, as from CUDA's runtime. */
GM_COLD int32_t gm_adopt_context(gm_artifact *artifact, const char *who) {
    void *context = NULL;
    int device = 0, code = gm_cuda.cuDeviceGet(&device, 0);
    int32_t status;
    if (code) return gm_driver_error(who, GM_CUDA, "cuDeviceGet", code);
    status = gm_retain(artifact, who, device, &context);
    if (status) return status;
    code = gm_cuda.cuCtxSetCurrent(context);
    return code ? gm_driver_error(who, GM_CUDA, "cuCtxSetCurrent", code) : GRISTMILL_OK;
}

/* Which of the artifact's architectures run on the device, best first: exactly its own from 9.0 on,
   where binaries use features of one architecture; below, the same major and a lower minor. */
GM_COLD void gm_match_archs(const gm_artifact *artifact, gm_place *place, int32_t capability) {
    uint32_t i;
    for (i = 0; i < artifact->arch_count; i++) {
        const gm_arch *arch = &artifact->archs[i];
        uint32_t at;
        if (arch->vendor != place->vendor) continue;
        if (place->vendor == GM_HIP ? strcmp(arch->name, place->arch_name) != 0
            : capability >= 90      ? arch->capability != capability
                                    : arch->capability / 10 != capability / 10 ||
                                          arch->capability > capability) continue;
        for (at = place->arch_count; at > 0; at--) {
            if (artifact->archs[place->archs[at - 1]].capability >= arch->capability) break;
            place->archs[at] = place->archs[at - 1];
        }
        place->archs[at] = (uint8_t)i;
        place->arch_count++;
    }
}

/* Asks the driver what the current device is. */
GM_COLD int32_t gm_identify(const gm_artifact *artifact, const char *who, gm_place *place) {
    int major = 0, minor = 0, device = 0, code;
    if (place->vendor == GM_HIP) {
        uint64_t properties[GM_HIP_PROPERTIES_SIZE / 8 + 64]; /* later ones may have grown */
        memset(properties, 0, sizeof properties);
        place->device = (int32_t)place->id;
        code = gm_hip.hipGetDevicePropertiesR0600(properties, place->device);
        if (code) return gm_driver_error(who, GM_HIP, "hipGetDeviceProperties", code);
        snprintf(place->arch_name, sizeof place->arch_name, "%.31s",
                 (const char *)properties + GM_HIP_ARCH_NAME_AT);
        place->arch_name[strcspn(place->arch_name, ":")] = 0; /* gfx942:sramecc+:xnack- */
        gm_match_archs(artifact, place, 0);
        return GRISTMILL_OK;
    }
    code = gm_cuda.cuCtxGetDevice(&device);
    if (code) return gm_driver_error(who, GM_CUDA, "cuCtxGetDevice", code);
    code = gm_cuda.cuDeviceGetAttribute(&major, GM_CUDA_CAPABILITY_MAJOR, device);
    if (!code) code = gm_cuda.cuDeviceGetAttribute(&minor, GM_CUDA_CAPABILITY_MINOR, device);
    if (code) return gm_driver_error(who, GM_CUDA, "cuDeviceGetAttribute", code);
    place->device = device;
    snprintf(place->arch_name, sizeof place->arch_name, "sm_%d%d", major, minor);
    gm_match_archs(artifact, place, major * 10 + minor);
    return GRISTMILL_OK;
}

/* Adds the current context or device. */
GM_COLD int32_t gm_add_place(gm_artifact *artifact, const char *who, uint8_t vendor, uint64_t id,
                             gm_place **found) {
    int32_t status;
    gm_place *place;
    gm_lock();
    for (place = artifact->places; place; place = place->next) { /* another thread was first */
        if (place->id == id && place->vendor == vendor) break;
    }
    if (place) {
        *found = place;
        gm_unlock();
        return GRISTMILL_OK;
    }
    place = (gm_place *)calloc(1, sizeof *place + (artifact->kernel_count + artifact->binary_count) *
                                                     sizeof(void *));
    if (!place) {
        status = gm_fail(GRISTMILL_OUT_OF_MEMORY, who, "no host memory for the device's tables");
    } else {
        place->functions = (void **)(void *)(place + 1);
        place->modules = place->functions + artifact->kernel_count;
        place->id = id;
        place->vendor = vendor;
        status = gm_identify(artifact, who, place);
        if (status) {
            free(place);
        } else {
            place->next = artifact->places;
            GM_STORE(&artifact->places, place);
            *found = place;
        }
    }
    gm_unlock();
    return status;
}

GM_COLD int gm_has_vendor(const gm_artifact *artifact, uint8_t vendor) {
    uint32_t i;
    for (i = 0; i < artifact->arch_count; i++) {
        if (artifact->archs[i].vendor == vendor) return 1;
    }
    return 0;
}

/* Which driver serves the artifact in this process: CUDA's if it has binaries for it and a device
   is there, else HIP's. */
GM_COLD int32_t gm_choose_vendor(const gm_artifact *artifact, const char *who, uint8_t *vendor) {
    int32_t status = GRISTMILL_NO_DRIVER;
    uint8_t candidate;
    for (candidate = 0; candidate < GM_VENDORS; candidate++) {
        if (!gm_has_vendor(artifact, candidate)) continue;
        status = gm_open_driver(who, candidate);
        *vendor = candidate;
        if (status == GRISTMILL_OK) return status;
    }
    if (!artifact->arch_count) (void)gm_fail(status, who, "the artifact has no binaries");
    return status;
}

/* The id of the current context or device. */
GM_FUNCTION int gm_current(uint8_t vendor, uint64_t *id) {
    int code;
    if (GM_LIKELY(vendor == GM_CUDA)) {
        unsigned long long context = 0;
        code = gm_cuda.cuCtxGetId(NULL, &context);
        *id = context;
    } else {
        int device = 0;
        code = gm_hip.hipGetDevice(&device);
        *id = (uint64_t)device;
    }
    return code;
}

/* The place of the calling thread, the first time or with no context. */
GM_COLD int32_t gm_new_place(gm_artifact *artifact, const char *who, gm_place **found) {
    uint8_t vendor = GM_CUDA;
    uint64_t id = 0;
    int code;
    int32_t status = gm_choose_vendor(artifact, who, &vendor);
    if (status) return status;
    code = gm_current(vendor, &id);
    if (code == GM_CUDA_NO_CONTEXT && vendor == GM_CUDA) {
        status = gm_adopt_context(artifact, who);
        if (status) return status;
        code = gm_current(vendor, &id);
    }
    if (code) {
        return gm_driver_error(who, vendor, vendor == GM_CUDA ? "cuCtxGetId" : "hipGetDevice",
                               code);
    }
    return gm_add_place(artifact, who, vendor, id, found);
}

GM_FUNCTION int32_t gm_find_place(gm_artifact *artifact, const char *who, gm_place **found) {
    gm_place *place = GM_LOAD(&artifact->places);
    const uint8_t vendor = place ? place->vendor : (uint8_t)GM_CUDA;
    uint64_t id;
    if (GM_LIKELY(place && gm_current(vendor, &id) == 0)) {
        for (; place; place = place->next) {
            if (place->id == id && place->vendor == vendor) {
                *found = place;
                return GRISTMILL_OK;
            }
        }
    }
    return gm_new_place(artifact, who, found);
}

#endif
