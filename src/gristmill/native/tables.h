/* The tables that an artifact's C file is made of, and what the runtime keeps beside them. */
#ifndef GRISTMILL_TABLES_H
#define GRISTMILL_TABLES_H

#include "support.h"

#define GM_MAX_SLOTS 256      /* parameters of a binary */
#define GM_MAX_DESCRIPTORS 16 /* of a kernel */
#define GM_MAX_RANK 5         /* of a descriptor: what the hardware has */
#define GM_MAX_ARCHS 32       /* of an artifact */

enum gm_vendor { GM_CUDA = 0, GM_HIP = 1, GM_VENDORS = 2 };

typedef struct gm_arch {
    const char *name; /* sm_90, gfx942 */
    uint8_t vendor;
    int32_t capability; /* of CUDA: 90 */
} gm_arch;

typedef struct gm_binary {
    const unsigned char *data;
    uint64_t size;
    uint8_t vendor;
    const char *name; /* of its file, for messages */
} gm_binary;

enum gm_pass {
    GM_VALUE,  /* the low bytes of the argument */
    GM_FP16, GM_BF16, GM_FP32, /* the argument, a double, rounded; fp64 is GM_VALUE */
    GM_BASE,   /* of a descriptor: its address */
    GM_MAP, GM_SHAPE32, GM_SHAPE64, GM_STRIDE, /* of a descriptor */
    GM_ZERO,   /* nothing: profile scratch, a descriptor's padding */
    GM_SCRATCH /* global scratch memory */
};

typedef struct gm_slot {
    uint8_t pass;
    uint8_t index; /* of a shape or stride: the dimension; of a map: which one of the call */
    uint16_t source;
} gm_slot;

/* A host-made TMA descriptor, in the terms of cuTensorMapEncodeTiled. */
typedef struct gm_map_plan {
    uint16_t source;
    uint8_t rank;
    uint8_t element_size;
    uint8_t element_type;
    uint8_t swizzle;
    uint8_t fp4_padded;
    uint32_t box[GM_MAX_RANK]; /* innermost first, as the driver takes it */
} gm_map_plan;

/* A function of a binary, and how it is launched. */
typedef struct gm_kernel {
    const char *symbol;
    uint32_t binary;
    uint32_t arch;
    uint32_t threads;
    uint32_t cluster;
    uint32_t shared;
    uint64_t scratch_size; /* a block of the grid */
    uint64_t scratch_alignment;
    const gm_slot *slots;
    const gm_map_plan *maps;
    uint16_t slot_count;
    uint16_t map_count;
    uint8_t cooperative;
    uint8_t pdl;
} gm_kernel;

enum gm_fact {
    GM_IS_NULL, GM_NOT_NULL, GM_DIVISIBLE, /* of a pointer */
    GM_MULTIPLE, GM_IS_ONE, GM_FITS /* of an integer */
};

/* A condition of a variant: one bit of the facts of a call. */
typedef struct gm_condition {
    uint16_t parameter;
    uint8_t fact;
    uint8_t type; /* of GM_FITS: the code of the integer type */
} gm_condition;

enum gm_field_kind { GM_TYPE_VARIABLE, GM_TYPE, GM_INTEGER, GM_FLOAT, GM_TEXT };

/* What must be equal: a type variable or a constexpr, with the values that it was compiled for. */
typedef struct gm_field {
    const char *name;
    const char *const *values; /* as text */
    const char *of; /* of a type variable: the parameters of that type, in words */
    uint32_t count; /* of values */
    uint16_t index; /* of the type variable, or of the parameter that is the constexpr */
    uint8_t kind;   /* enum gm_field_kind */
    uint8_t bits, shift; /* in a key: the value's number, all ones if it was not compiled for */
} gm_field;

/* Variants of one architecture, types, constexprs, warps and stages. Their masks, `words` each,
   start at `first`; the most specialised stands first. */
typedef struct gm_group {
    uint64_t key; /* architecture above the fields */
    int32_t num_warps, num_stages;
    uint32_t first, count;
} gm_group;

typedef struct gm_limit {
    uint16_t parameter;
    int64_t smallest, largest;
} gm_limit;

/* A tuned choice. */
typedef struct gm_choice {
    uint64_t key, mask; /* architecture, types and constexprs; the bits that count */
    int32_t num_warps, num_stages;
    const gm_limit *limits;
    uint16_t limit_count;
} gm_choice;

/* A C function of the artifact. */
typedef struct gm_entry {
    const char *name;
    const char *const *parameters; /* names */
    const gm_field *fields;
    const gm_condition *conditions;
    const gm_group *groups; /* by key, then as they are to be preferred */
    const uint64_t *needs;  /* of each variant: conditions that must hold */
    const uint32_t *kernels; /* of each variant */
    const gm_choice *choices;
    uint32_t field_count, condition_count, group_count, choice_count;
    uint32_t words; /* of a mask */
    uint8_t arch_shift; /* in a key */
} gm_entry;

/* A context of CUDA or a device of HIP, with the functions that were loaded for it. */
typedef struct gm_place {
    struct gm_place *next;
    uint64_t id; /* of a context: the driver's; of a device: its number */
    int32_t device;
    uint8_t vendor;
    uint8_t arch_count;
    uint8_t archs[GM_MAX_ARCHS]; /* that run here, best first */
    char arch_name[32];          /* the device's own */
    void **functions; /* one a kernel */
    void **modules;   /* one a binary: of HIP, where modules are a device's */
} gm_place;

typedef struct gm_artifact {
    const char *name;
    const gm_arch *archs;
    const gm_binary *binaries;
    const gm_kernel *kernels;
    const char *const *elements; /* names of element types, by code */
    void **libraries; /* one a binary: of CUDA, where libraries are the process's */
    uint32_t element_count, arch_count, binary_count, kernel_count;
    /* What changes, under the lock; `places` is read without it. */
    gm_place *places;
    uint64_t retained; /* devices whose primary context this artifact holds, a bit each */
    gristmill_allocate allocate;
    gristmill_release release;
    void *user;
} gm_artifact;

/* A call: what the generated function fills in. */
typedef struct gm_call {
    const gm_entry *entry;
    uint64_t *values;      /* of each parameter: address, integer, bits of a double */
    const int32_t *types;  /* of each type variable */
    const uint64_t *facts; /* which conditions hold */
    uint64_t key;          /* the fields, without an architecture */
    int32_t num_warps, num_stages; /* 0: any */
    int64_t grid[3];
    void *stream;
} gm_call;

#endif
