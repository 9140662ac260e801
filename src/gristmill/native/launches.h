/* A kernel launch that is ready but for its addresses, and the driver that it goes to. */

#ifndef GRISTMILL_LAUNCHES_H
#define GRISTMILL_LAUNCHES_H

#include <Python.h>
#include <dlfcn.h>
#include <stdint.h>

#include "cuda_types.h"

enum { NO_INTERLEAVE = 0, MAP_RANK = 5, MAP_BYTES = 128 };

typedef struct {
  int (*launch)(const gm_cuda_config *, void *function, void **parameters, void **extra);
  int (*current_device)(int *);
  int (*error_name)(int, const char **);
  int (*error_text)(int, const char **);
  int (*encode)(void *, int, uint32_t, void *, const uint64_t *, const uint64_t *, const uint32_t *,
                const uint32_t *, int, int, int, int);
} Driver;
static Driver driver;

static int open_driver(const char *path) {
  void *library = dlopen(path, RTLD_NOW);
  if (library == NULL) {
    PyErr_Format(PyExc_OSError, "%s", dlerror());
    return 0;
  }
  *(void **)&driver.launch = dlsym(library, "cuLaunchKernelEx");
  *(void **)&driver.current_device = dlsym(library, "cuCtxGetDevice");
  *(void **)&driver.error_name = dlsym(library, "cuGetErrorName");
  *(void **)&driver.error_text = dlsym(library, "cuGetErrorString");
  *(void **)&driver.encode = dlsym(library, "cuTensorMapEncodeTiled");
  if (driver.launch && driver.current_device && driver.error_name && driver.error_text) return 1;
  memset(&driver, 0, sizeof driver);
  PyErr_Format(PyExc_OSError, "%s lacks cuLaunchKernelEx, which is CUDA 12's", path);
  return 0;
}

static void raise_driver(const char *what, int code) {
  const char *name = NULL, *text = NULL;
  driver.error_name(code, &name);
  driver.error_text(code, &text);
  PyErr_Format(PyExc_RuntimeError, "%s failed: %s (%s)", what, name ? name : "unknown error",
               text ? text : "no message");
}

enum { MAX_PARAMETERS = 96, MAX_IMAGE = 4096, MAX_PATCHES = 32, MAX_MAPS = 4, KEPT_MAPS = 16 };

/* A TMA descriptor's terms, and the last ones encoded, by address. */
typedef struct {
  int slot, offset, type, swizzle, fill;
  uint32_t rank, box[MAP_RANK], ones[MAP_RANK];
  uint64_t size[MAP_RANK], stride[MAP_RANK];
  int next;
  uint64_t of[KEPT_MAPS];
  unsigned char made[KEPT_MAPS][MAP_BYTES];
} Map;

typedef struct {
  void *function;
  gm_cuda_config config;
  gm_cuda_attribute attributes[4];
  int parameters, bytes, patches, maps;
  uint16_t offset[MAX_PARAMETERS];
  uint16_t patch_offset[MAX_PATCHES], patch_slot[MAX_PATCHES];
  unsigned char image[MAX_IMAGE];
  Map *map;
} Launch;

/* The descriptor's bytes for an address; NULL with an exception where the driver refuses. Runs under
 * the GIL, which guards what is kept. */
static const unsigned char *encoded(Map *map, uint64_t base) {
  for (int i = 0; i < KEPT_MAPS; i++)
    if (map->of[i] == base && base != 0) return map->made[i];
  _Alignas(64) unsigned char made[MAP_BYTES];
  int code = driver.encode(made, map->type, map->rank, (void *)(uintptr_t)base, map->size,
                           map->stride, map->box, map->ones, NO_INTERLEAVE, map->swizzle,
                           GM_CUDA_L2_128B, map->fill);
  if (code != 0) {
    raise_driver("cuTensorMapEncodeTiled", code);
    return NULL;
  }
  int at = map->next;
  map->next = (at + 1) % KEPT_MAPS;
  map->of[at] = base;
  return memcpy(map->made[at], made, MAP_BYTES);
}

/* 1 where it was launched; 0 with an exception. `slots`: the addresses of this call's tensors. */
static int launch_one(Launch *launch, const uint64_t *slots, void *stream) {
  _Alignas(128) unsigned char image[MAX_IMAGE];
  void *parameters[MAX_PARAMETERS];
  memcpy(image, launch->image, (size_t)launch->bytes);
  for (int i = 0; i < launch->patches; i++)
    memcpy(image + launch->patch_offset[i], &slots[launch->patch_slot[i]], sizeof(uint64_t));
  for (int i = 0; i < launch->maps; i++) {
    const unsigned char *made = encoded(&launch->map[i], slots[launch->map[i].slot]);
    if (made == NULL) return 0;
    memcpy(image + launch->map[i].offset, made, MAP_BYTES);
  }
  for (int i = 0; i < launch->parameters; i++) parameters[i] = image + launch->offset[i];
  gm_cuda_config config = launch->config;
  config.stream = stream;
  config.attributes = launch->attributes;
  PyThreadState *state = PyEval_SaveThread(); /* the queue may be full, and the driver then waits */
  int code = driver.launch(&config, launch->function, parameters, NULL);
  PyEval_RestoreThread(state);
  if (code == 0) return 1;
  raise_driver("cuLaunchKernelEx", code);
  return 0;
}

#endif
