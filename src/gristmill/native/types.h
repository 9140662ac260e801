/* What callers of an artifact pass and get: the same in every artifact, so declared once a program. */
#ifndef GRISTMILL_TYPES_1
#define GRISTMILL_TYPES_1

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What a call returned. The message is the artifact's `..._last_error()`. */
enum gristmill_status {
    GRISTMILL_OK = 0,
    GRISTMILL_INVALID_ARGUMENT = 1,  /* an argument breaks the contract */
    GRISTMILL_NO_SPECIALISATION = 2, /* the artifact has no binary for this call */
    GRISTMILL_NO_ARCHITECTURE = 3,   /* the artifact has no binary for the current device */
    GRISTMILL_NO_DRIVER = 4,         /* no driver library, one too old, or no device */
    GRISTMILL_DRIVER_ERROR = 5,      /* a call of the driver failed; the message has its error */
    GRISTMILL_OUT_OF_MEMORY = 6      /* host memory, or the kernel's scratch memory on the device */
};

/* Element types, as codes. Codes never change their meaning. 0 is no type, and `None`. */
enum gristmill_element {
    GRISTMILL_NONE = 0,
    GRISTMILL_U1 = 1, /* bool */
    GRISTMILL_I8 = 2,
    GRISTMILL_I16 = 3,
    GRISTMILL_I32 = 4,
    GRISTMILL_I64 = 5,
    GRISTMILL_U8 = 6,
    GRISTMILL_U16 = 7,
    GRISTMILL_U32 = 8,
    GRISTMILL_U64 = 9,
    GRISTMILL_FP16 = 10,
    GRISTMILL_BF16 = 11,
    GRISTMILL_FP32 = 12,
    GRISTMILL_FP64 = 13,
    GRISTMILL_FP8E4NV = 14,
    GRISTMILL_FP8E5 = 15,
    GRISTMILL_FP8E4B8 = 16,
    GRISTMILL_FP8E5B16 = 17,
    GRISTMILL_FP8E4B15 = 18
};

/* `None` for a constexpr that is an integer or a bool. For a float it is NaN, for a string NULL. */
#define GRISTMILL_NO_VALUE INT64_MIN

/* A pointer of which the element type varies. The kernel may write through it. */
typedef struct gristmill_pointer {
    const void *data;
    int32_t dtype; /* enum gristmill_element; of a null pointer it may be GRISTMILL_NONE */
} gristmill_pointer;

/* A tensor that a kernel takes as a descriptor: outermost dimension first, strides in elements. */
typedef struct gristmill_descriptor {
    const void *data;
    int32_t dtype;
    const int64_t *shape;
    const int64_t *strides;
} gristmill_descriptor;

/* A number of which the type varies, where no pointer says it. */
typedef struct gristmill_number {
    double value;
    int32_t dtype;
} gristmill_number;

/* Device memory for kernels that need scratch: at least `size` bytes at a multiple of `alignment`,
   usable in stream order, or null. `release` comes once the launch is in the stream. */
typedef void *(*gristmill_allocate)(size_t size, size_t alignment, void *stream, void *user);
typedef void (*gristmill_release)(void *memory, void *stream, void *user);

#ifdef __cplusplus
} /* extern "C" */

/* The code of a C++ element type. Specialise it for types of your own. The CUDA ones are known where
   their headers (cuda_fp16.h, cuda_bf16.h, cuda_fp8.h) come before this one. */
namespace gristmill {
template <typename Element> struct element;
template <typename Element> struct element<const Element> : element<Element> {};
#define GRISTMILL_ELEMENT(type, code)                                                             \
    template <> struct element<type> { static constexpr int32_t value = code; };
GRISTMILL_ELEMENT(bool, GRISTMILL_U1)
GRISTMILL_ELEMENT(int8_t, GRISTMILL_I8)
GRISTMILL_ELEMENT(int16_t, GRISTMILL_I16)
GRISTMILL_ELEMENT(int32_t, GRISTMILL_I32)
GRISTMILL_ELEMENT(int64_t, GRISTMILL_I64)
GRISTMILL_ELEMENT(uint8_t, GRISTMILL_U8)
GRISTMILL_ELEMENT(uint16_t, GRISTMILL_U16)
GRISTMILL_ELEMENT(uint32_t, GRISTMILL_U32)
GRISTMILL_ELEMENT(uint64_t, GRISTMILL_U64)
GRISTMILL_ELEMENT(float, GRISTMILL_FP32)
GRISTMILL_ELEMENT(double, GRISTMILL_FP64)
#ifdef __CUDA_FP16_TYPES_EXIST__
GRISTMILL_ELEMENT(__half, GRISTMILL_FP16)
#endif
#ifdef __CUDA_BF16_TYPES_EXIST__
GRISTMILL_ELEMENT(__nv_bfloat16, GRISTMILL_BF16)
#endif
#ifdef __CUDA_FP8_TYPES_EXIST__
GRISTMILL_ELEMENT(__nv_fp8_e4m3, GRISTMILL_FP8E4NV)
GRISTMILL_ELEMENT(__nv_fp8_e5m2, GRISTMILL_FP8E5)
#endif
#undef GRISTMILL_ELEMENT

/* A type that is not deduced here: of a pointer that may be nullptr. */
template <typename Element> struct same { typedef Element type; };

/* A pointer, a tensor or a number, with the code of its type. */
template <typename Element>
inline gristmill_pointer pointer(const Element *data) {
    gristmill_pointer made = {data, element<Element>::value};
    return made;
}
template <typename Element>
inline gristmill_descriptor descriptor(const Element *data, const int64_t *shape,
                                       const int64_t *strides) {
    gristmill_descriptor made = {data, element<Element>::value, shape, strides};
    return made;
}
template <typename Element> inline gristmill_number number(Element value) {
    gristmill_number made = {static_cast<double>(value), element<Element>::value};
    return made;
}
} // namespace gristmill
#endif

#endif
