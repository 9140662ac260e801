/* A driver that records: libcuda.so.1, or with -DFAKE_HIP libamdhip64.so. A "binary" for it is text:
   a line `FAKE <symbol> <size of each parameter ...>` a function, and `# <label>` after it. Tests steer it by fake_*(). */
#define _GNU_SOURCE
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DEVICES = 2, MAX_LAUNCHES = 256, MAX_PARAMETERS = 64, NAMES = 64 };

typedef struct launch {
    char symbol[64], label[80];
    uint32_t grid[3], block[3], shared;
    uint32_t attribute_count, parameter_count;
    int32_t device;
    uint64_t stream;
    int32_t attribute_ids[8];
    uint32_t attribute_values[8][3];
    uint32_t sizes[MAX_PARAMETERS];
    unsigned char bytes[MAX_PARAMETERS][128];
} launch;

typedef struct function {
    char symbol[64], label[80];
    struct function *next;
    uint32_t count, sizes[MAX_PARAMETERS];
    int device, loaded, shared_limit, non_portable;
} function;

typedef struct context {
    int device;
    unsigned long long id;
} context;

typedef struct fault {
    char name[64];
    int code, skip, times;
    int calls;
} fault;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static fault faults[NAMES];
static int fault_count;
static launch launches[MAX_LAUNCHES];
static int launch_count, quiet;
static int capability[DEVICES] = {90, 80};
static char arch_names[DEVICES][64] = {"gfx942:sramecc+:xnack-", "gfx1100"};
static context primary[DEVICES] = {{0, 1}, {1, 2}};
static context made[16];
static int made_count;
static int live_libraries, live_allocations, retained[DEVICES];
static uint64_t last_size, last_map_address;
static struct {
    int type, rank, interleave, swizzle, promotion, fill;
    uint64_t shape[5], strides[5];
    uint32_t box[5], steps[5];
} last_map;
static __thread context *current;
static __thread int hip_device;

static void hold(void) { pthread_mutex_lock(&lock); }
static void let_loose(void) { pthread_mutex_unlock(&lock); }
__attribute__((constructor)) static void expect_forks(void) {
    pthread_atfork(hold, let_loose, let_loose);
}

static fault *named(const char *name) {
    int i;
    for (i = 0; i < fault_count; i++) {
        if (!strcmp(faults[i].name, name)) return &faults[i];
    }
    if (fault_count == NAMES) abort();
    snprintf(faults[fault_count].name, sizeof faults[0].name, "%s", name);
    return &faults[fault_count++];
}

/* Counts a call; the error that is injected into it, or 0. */
static int enter(const char *name) {
    int code = 0;
    fault *f;
    pthread_mutex_lock(&lock);
    f = named(name);
    f->calls++;
    if (f->times > 0 && f->skip-- <= 0) {
        f->times--;
        code = f->code;
    }
    pthread_mutex_unlock(&lock);
    return code;
}
#define ENTER                                                                                      \
    do {                                                                                           \
        int injected = enter(__func__);                                                            \
        if (injected) return injected;                                                             \
    } while (0)

void fake_fail(const char *name, int code, int skip, int times) {
    fault *f;
    pthread_mutex_lock(&lock);
    f = named(name);
    f->code = code;
    f->skip = skip;
    f->times = times;
    pthread_mutex_unlock(&lock);
}
int fake_calls(const char *name) {
    int calls;
    pthread_mutex_lock(&lock);
    calls = named(name)->calls;
    pthread_mutex_unlock(&lock);
    return calls;
}
void fake_reset(void) {
    pthread_mutex_lock(&lock);
    memset(faults, 0, sizeof faults);
    fault_count = launch_count = quiet = 0;
    pthread_mutex_unlock(&lock);
}
void fake_quiet(int on) { quiet = on; }
int fake_launches(void) { return launch_count; }
const launch *fake_launch(int index) { return &launches[index % MAX_LAUNCHES]; }
size_t fake_launch_size(void) { return sizeof(launch); }
void fake_device(int device, int cc, const char *arch) {
    capability[device] = cc;
    snprintf(arch_names[device], sizeof arch_names[0], "%s", arch);
}
void fake_use(int device) { /* -1: no context */
    current = device < 0 ? NULL : &primary[device];
    hip_device = device < 0 ? 0 : device;
}
void fake_new_context(int device) { /* a context of its own, made current */
    current = &made[made_count++];
    current->device = device;
    current->id = 100 + (unsigned long long)made_count;
}
int fake_current(void) { return current ? current->device : -1; }
int fake_live_libraries(void) { return live_libraries; }
int fake_live_allocations(void) { return live_allocations; }
int fake_retained(int device) { return retained[device]; }
uint64_t fake_last_size(void) { return last_size; }
const void *fake_last_map(void) { return &last_map; }
uint64_t fake_last_map_address(void) { return last_map_address; }

/* Finds a function's line in a binary. */
static function *find(const char *binary, const char *symbol) {
    const char *line = binary;
    while (line && !strncmp(line, "FAKE ", 5)) {
        char name[64];
        int used = 0;
        if (sscanf(line, "FAKE %63s%n", name, &used) == 1 && !strcmp(name, symbol)) {
            function *found = (function *)calloc(1, sizeof *found);
            const char *at = line + used;
            unsigned size;
            snprintf(found->symbol, sizeof found->symbol, "%s", name);
            while (*at != '\n' && sscanf(at, " %u%n", &size, &used) == 1) {
                found->sizes[found->count++] = size;
                at += used;
            }
            if (sscanf(at, "\n# %79s", found->label) != 1) found->label[0] = 0;
            return found;
        }
        line = strchr(line, '\n');
        line = line ? line + 1 : NULL;
    }
    return NULL;
}

/* Functions are the process's, as the driver's are: freed at its end. */
static function *kept;
__attribute__((destructor)) static void let_go(void) {
    while (kept) {
        function *next = kept->next;
        free(kept);
        kept = next;
    }
}
static function *keep(function *f) {
    pthread_mutex_lock(&lock);
    if (f) {
        f->next = kept;
        kept = f;
    }
    pthread_mutex_unlock(&lock);
    return f;
}

static launch *record(const function *f, const uint32_t *grid, const uint32_t *block,
                      uint32_t shared, void *stream, int device, void **parameters) {
    launch *made_launch;
    uint32_t i;
    made_launch = &launches[launch_count++ % MAX_LAUNCHES];
    memset(made_launch, 0, sizeof *made_launch);
    memcpy(made_launch->symbol, f->symbol, sizeof f->symbol);
    memcpy(made_launch->label, f->label, sizeof f->label);
    memcpy(made_launch->grid, grid, sizeof made_launch->grid);
    memcpy(made_launch->block, block, sizeof made_launch->block);
    made_launch->shared = shared;
    made_launch->stream = (uint64_t)(uintptr_t)stream;
    made_launch->device = device;
    made_launch->parameter_count = f->count;
    for (i = 0; i < f->count; i++) {
        made_launch->sizes[i] = f->sizes[i];
        memcpy(made_launch->bytes[i], parameters[i], f->sizes[i]);
    }
    return made_launch;
}

#ifndef FAKE_HIP
typedef struct attribute {
    int id;
    char pad[4];
    union {
        char pad[64];
        uint32_t words[3];
    } value;
} attribute;
typedef struct config {
    uint32_t grid[3], block[3], shared;
    void *stream;
    attribute *attributes;
    uint32_t attribute_count;
} config;

int cuInit(unsigned flags) {
    ENTER;
    return flags ? 1 : 0;
}
int cuGetErrorName(int code, const char **name) {
    *name = code == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : code == 500 ? "CUDA_ERROR_NOT_FOUND" : "CUDA_ERROR_FAKE";
    return 0;
}
int cuGetErrorString(int code, const char **text) {
    (void)code;
    *text = "said by the fake driver";
    return 0;
}
int cuDeviceGet(int *device, int ordinal) {
    ENTER;
    if (ordinal < 0 || ordinal >= DEVICES) return 101;
    *device = ordinal;
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute_id, int device) {
    ENTER;
    *value = attribute_id == 75 ? capability[device] / 10 : capability[device] % 10;
    return attribute_id == 75 || attribute_id == 76 ? 0 : 1;
}
int cuDevicePrimaryCtxRetain(void **ctx, int device) {
    ENTER;
    pthread_mutex_lock(&lock);
    retained[device]++;
    pthread_mutex_unlock(&lock);
    *ctx = &primary[device];
    return 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
    ENTER;
    pthread_mutex_lock(&lock);
    retained[device]--;
    pthread_mutex_unlock(&lock);
    return 0;
}
int cuCtxGetId(void *ctx, unsigned long long *id) {
    if (!quiet) ENTER;
    if (ctx || !current) return 201;
    *id = current->id;
    return 0;
}
int cuCtxSetCurrent(void *ctx) {
    ENTER;
    current = (context *)ctx;
    return 0;
}
static __thread context *pushed[8];
static __thread int push_count;
int cuCtxPushCurrent_v2(void *ctx) {
    ENTER;
    pushed[push_count++] = current;
    current = (context *)ctx;
    return 0;
}
int cuCtxPopCurrent_v2(void **ctx) {
    ENTER;
    if (!push_count) return 201;
    *ctx = current;
    current = pushed[--push_count];
    return 0;
}
int cuCtxGetDevice(int *device) {
    ENTER;
    if (!current) return 201;
    *device = current->device;
    return 0;
}
int cuLibraryLoadData(void **library, const void *code, int *options, void **values, unsigned count,
                      int *library_options, void **library_values, unsigned library_count) {
    ENTER;
    (void)options, (void)values, (void)library_options, (void)library_values;
    if (count || library_count || strncmp((const char *)code, "FAKE", 4)) return 200;
    pthread_mutex_lock(&lock);
    live_libraries++;
    pthread_mutex_unlock(&lock);
    *library = (void *)(uintptr_t)code;
    return 0;
}
int cuLibraryUnload(void *library) {
    ENTER;
    (void)library;
    pthread_mutex_lock(&lock);
    live_libraries--;
    pthread_mutex_unlock(&lock);
    return 0;
}
int cuLibraryGetKernel(void **kernel, void *library, const char *symbol) {
    ENTER;
    *kernel = keep(find((const char *)library, symbol));
    return *kernel ? 0 : 500;
}
int cuKernelGetFunction(void **made_function, void *kernel) {
    ENTER;
    if (!current) return 201;
    ((function *)kernel)->device = current->device;
    *made_function = kernel;
    return 0;
}
int cuFuncSetAttribute(void *f, int attribute_id, int value) {
    ENTER;
    if (attribute_id == 8) ((function *)f)->shared_limit = value;
    if (attribute_id == 14) ((function *)f)->non_portable = value;
    return attribute_id == 8 && value > 232448 ? 1 : 0;
}
int cuFuncLoad(void *f) {
    ENTER;
    ((function *)f)->loaded = 1;
    return 0;
}
int cuLaunchKernelEx(const config *c, void *f, void **parameters, void **extra) {
    const function *called = (const function *)f;
    launch *made_launch;
    uint32_t i;
    if (quiet) return 0;
    ENTER;
    if (extra || !current || current->device != called->device || !called->loaded) return 400;
    if (c->shared > 49152 && (int)c->shared > called->shared_limit) return 1;
    pthread_mutex_lock(&lock);
    made_launch = record(called, c->grid, c->block, c->shared, c->stream, current->device,
                         parameters);
    made_launch->attribute_count = c->attribute_count;
    for (i = 0; i < c->attribute_count; i++) {
        made_launch->attribute_ids[i] = c->attributes[i].id;
        memcpy(made_launch->attribute_values[i], c->attributes[i].value.words, 12);
        if (c->attributes[i].id != 4) {
            made_launch->attribute_values[i][1] = made_launch->attribute_values[i][2] = 0;
        }
    }
    pthread_mutex_unlock(&lock);
    return 0;
}
int cuMemAllocAsync(uint64_t *memory, size_t size, void *stream) {
    ENTER;
    (void)stream;
    pthread_mutex_lock(&lock);
    live_allocations++;
    last_size = size;
    pthread_mutex_unlock(&lock);
    *memory = 0x7f0000000100; /* at a multiple of 256, and of no more */
    return 0;
}
int cuMemFreeAsync(uint64_t memory, void *stream) {
    ENTER;
    (void)stream;
    if (memory != 0x7f0000000100) return 1;
    pthread_mutex_lock(&lock);
    live_allocations--;
    pthread_mutex_unlock(&lock);
    return 0;
}
int cuTensorMapEncodeTiled(void *map, int type, uint32_t rank, void *address, const uint64_t *shape,
                           const uint64_t *strides, const uint32_t *box, const uint32_t *steps,
                           int interleave, int swizzle, int promotion, int fill) {
    ENTER;
    if ((uintptr_t)map % 64 || rank < 1 || rank > 5) return 1;
    memset(&last_map, 0, sizeof last_map);
    last_map.type = type;
    last_map.rank = (int)rank;
    last_map.interleave = interleave;
    last_map.swizzle = swizzle;
    last_map.promotion = promotion;
    last_map.fill = fill;
    memcpy(last_map.shape, shape, rank * 8);
    memcpy(last_map.strides, strides, (rank - 1) * 8);
    memcpy(last_map.box, box, rank * 4);
    memcpy(last_map.steps, steps, rank * 4);
    last_map_address = (uint64_t)(uintptr_t)address;
    memset(map, 0xa5, 128);
    memcpy(map, &address, sizeof address);
    return 0;
}
#else
int hipInit(unsigned flags) {
    ENTER;
    return flags ? 1 : 0;
}
const char *hipGetErrorString(int code) {
    (void)code;
    return "said by the fake driver";
}
int hipGetDevice(int *device) {
    if (!quiet) ENTER;
    *device = hip_device;
    return 0;
}
int hipSetDevice(int device) {
    ENTER;
    if (device < 0 || device >= DEVICES) return 101;
    hip_device = device;
    return 0;
}
int hipGetDevicePropertiesR0600(void *properties, int device) {
    ENTER;
    memset(properties, 0x5a, 1472);
    snprintf((char *)properties + 1160, 256, "%s", arch_names[device]);
    return 0;
}
int hipModuleLoadData(void **module, const void *code) {
    ENTER;
    if (strncmp((const char *)code, "FAKE", 4)) return 200;
    pthread_mutex_lock(&lock);
    live_libraries++;
    pthread_mutex_unlock(&lock);
    *module = (void *)(uintptr_t)code;
    return 0;
}
int hipModuleUnload(void *module) {
    ENTER;
    (void)module;
    pthread_mutex_lock(&lock);
    live_libraries--;
    pthread_mutex_unlock(&lock);
    return 0;
}
int hipModuleGetFunction(void **made_function, void *module, const char *symbol) {
    function *found;
    ENTER;
    found = keep(find((const char *)module, symbol));
    if (found) found->device = hip_device;
    *made_function = found;
    return found ? 0 : 500;
}
static int hip_launch(void *f, uint32_t x, uint32_t y, uint32_t z, uint32_t threads, uint32_t shared,
                      void *stream, void **parameters, int cooperative) {
    const uint32_t grid[3] = {x, y, z}, block[3] = {threads, 1, 1};
    const function *called = (const function *)f;
    if (called->device != hip_device) return 400;
    pthread_mutex_lock(&lock);
    record(called, grid, block, shared, stream, hip_device, parameters)->attribute_count =
        (uint32_t)cooperative;
    pthread_mutex_unlock(&lock);
    return 0;
}
int hipModuleLaunchKernel(void *f, uint32_t x, uint32_t y, uint32_t z, uint32_t bx, uint32_t by,
                          uint32_t bz, uint32_t shared, void *stream, void **parameters,
                          void **extra) {
    ENTER;
    return extra || by != 1 || bz != 1 ? 1 : hip_launch(f, x, y, z, bx, shared, stream, parameters, 0);
}
int hipModuleLaunchCooperativeKernel(void *f, uint32_t x, uint32_t y, uint32_t z, uint32_t bx,
                                     uint32_t by, uint32_t bz, uint32_t shared, void *stream,
                                     void **parameters) {
    ENTER;
    return by != 1 || bz != 1 ? 1 : hip_launch(f, x, y, z, bx, shared, stream, parameters, 1);
}
int hipMallocAsync(void **memory, size_t size, void *stream) {
    ENTER;
    (void)stream;
    pthread_mutex_lock(&lock);
    live_allocations++;
    last_size = size;
    pthread_mutex_unlock(&lock);
    *memory = (void *)0x7f0000000100;
    return 0;
}
int hipFreeAsync(void *memory, void *stream) {
    ENTER;
    (void)memory, (void)stream;
    pthread_mutex_lock(&lock);
    live_allocations--;
    pthread_mutex_unlock(&lock);
    return 0;
}
#endif
