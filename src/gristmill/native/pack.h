/* Bytes of arguments: floats in the binary's own type, tensors as descriptors. */
#ifndef GRISTMILL_PACK_H
#define GRISTMILL_PACK_H

#include "driver.h"

/* A double, rounded once, to nearest with ties to even, to a float of fewer bits. */
GM_FUNCTION uint16_t gm_round(double value, int exponent_bits, int mantissa_bits) {
    const int bias = (1 << (exponent_bits - 1)) - 1;
    const uint64_t infinity = (uint64_t)((1 << exponent_bits) - 1) << mantissa_bits;
    uint64_t bits, magnitude, sign, rounded;
    int exponent, shift = 52 - mantissa_bits;
    memcpy(&bits, &value, sizeof bits);
    sign = bits >> 63 << (exponent_bits + mantissa_bits);
    magnitude = bits & (UINT64_MAX >> 1);
    exponent = (int)(magnitude >> 52) - 1023;
    if (exponent == 1024) {
        uint64_t payload = magnitude << 12 >> 12;
        rounded = infinity;
        if (payload) rounded |= (uint64_t)1 << (mantissa_bits - 1) | payload >> shift; /* quiet */
        return (uint16_t)(sign | rounded);
    }
    if (exponent < 1 - bias) { /* subnormal: the leading one is shifted down into the mantissa */
        magnitude = (magnitude << 12 >> 12) | (uint64_t)1 << 52;
        shift += 1 - bias - exponent;
        if (shift > 54) return (uint16_t)sign;
    } else {
        magnitude += (uint64_t)(int64_t)(bias - 1023) << 52;
    }
    rounded = (magnitude + ((uint64_t)1 << (shift - 1)) - 1 + (magnitude >> shift & 1)) >> shift;
    return (uint16_t)(sign | (rounded < infinity ? rounded : infinity));
}

/* A float argument in place: the low bytes of its value become those of the binary's type. */
GM_FUNCTION void gm_pack_float(uint64_t *value, uint8_t pass) {
    double number;
    memcpy(&number, value, sizeof number);
    if (pass == GM_FP32) {
        float narrow = (float)number;
        memcpy(value, &narrow, sizeof narrow);
    } else {
        uint16_t narrow = pass == GM_FP16 ? gm_round(number, 5, 10) : gm_round(number, 8, 7);
        memcpy(value, &narrow, sizeof narrow);
    }
}

GM_FUNCTION const gristmill_descriptor *gm_tensor(const gm_call *call, uint32_t source) {
    return (const gristmill_descriptor *)(uintptr_t)call->values[source];
}

/* Encodes a tensor as the hardware's descriptor. */
GM_COLD int32_t gm_encode(const gm_call *call, const gm_map_plan *plan, gm_map *map) {
    const gristmill_descriptor *tensor = gm_tensor(call, plan->source);
    const char *who = call->entry->name, *name = call->entry->parameters[plan->source];
    uint64_t shape[GM_MAX_RANK], strides[GM_MAX_RANK];
    uint32_t steps[GM_MAX_RANK];
    const int rank = plan->rank;
    int i, code;
    if (!gm_cuda.cuTensorMapEncodeTiled) {
        return gm_fail(GRISTMILL_NO_DRIVER, who,
                       "the driver has no cuTensorMapEncodeTiled, which `%s` needs", name);
    }
    if (!tensor->data || (uintptr_t)tensor->data % 16) {
        return gm_fail(GRISTMILL_INVALID_ARGUMENT, who,
                       "`%s` is a descriptor at %p; its address must be a multiple of 16", name,
                       tensor->data);
    }
    for (i = 0; i < rank; i++) {
        const int outward = rank - 1 - i;
        const int64_t extent = tensor->shape[i], stride = tensor->strides[i];
        if (extent < 1 || extent > INT32_MAX) {
            return gm_fail(GRISTMILL_INVALID_ARGUMENT, who,
                           "`%s` has %" PRId64 " values along dimension %d; a descriptor has 1 to "
                           "2147483647", name, extent, i);
        }
        if (i == rank - 1 ? stride != 1
                          : stride < 0 || stride > INT64_MAX / 16 ||
                                (uint64_t)stride * plan->element_size % 16) {
            return gm_fail(GRISTMILL_INVALID_ARGUMENT, who,
                           "`%s` has stride %" PRId64 " along dimension %d of %d; a descriptor "
                           "needs 1 along the last, and multiples of 16 bytes before it", name,
                           stride, i, rank);
        }
        shape[outward] = (uint64_t)extent << (plan->fp4_padded && outward == 0);
        if (outward) strides[outward - 1] = (uint64_t)stride * plan->element_size;
        steps[i] = 1;
    }
    strides[rank - 1] = 0; /* there, as Triton has it, and not read: the driver takes rank - 1 */
    code = gm_cuda.cuTensorMapEncodeTiled(map, plan->element_type, (uint32_t)rank,
                                          (void *)(uintptr_t)tensor->data, shape, strides,
                                          plan->box, steps, 0, plan->swizzle, GM_CUDA_L2_128B, 0);
    if (code) return gm_driver_error(who, GM_CUDA, "cuTensorMapEncodeTiled", code);
    return GRISTMILL_OK;
}

#endif
