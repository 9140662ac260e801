/* Stands for libcuda: keeps what the last launches were given. The test says how long each parameter
 * is. */

#include <stdint.h>
#include <string.h>

typedef struct {
  int id;
  char pad[4];
  unsigned value[16];
} Attribute;
typedef struct {
  unsigned grid[3], block[3], shared;
  void *stream;
  Attribute *attributes;
  unsigned count;
} Config;

int sizes[64], parameters, launches, failure, encodings;
unsigned char bytes[65536];
unsigned facts[32];
int attribute_ids[8];
uint64_t function_of_last;
uint64_t encoded[64];

int cuLaunchKernelEx(const Config *config, void *function, void **values, void **extra) {
  (void)extra;
  if (failure) return failure;
  unsigned char *at = bytes;
  for (int i = 0; i < parameters; i++) {
    memcpy(at, values[i], (size_t)sizes[i]);
    at += sizes[i];
  }
  memcpy(facts, config->grid, sizeof config->grid);
  memcpy(facts + 3, config->block, sizeof config->block);
  facts[6] = config->shared;
  facts[7] = config->count;
  for (unsigned i = 0; i < config->count; i++) {
    attribute_ids[i] = config->attributes[i].id;
    facts[8 + i] = config->attributes[i].value[0];
  }
  function_of_last = (uint64_t)(uintptr_t)function;
  launches++;
  return 0;
}

int cuCtxGetDevice(int *device) {
  *device = 0;
  return 0;
}

int cuGetErrorName(int code, const char **text) {
  *text = code == 719 ? "CUDA_ERROR_LAUNCH_FAILED" : 0;
  return 0;
}

int cuGetErrorString(int code, const char **text) {
  *text = code == 719 ? "unspecified launch failure" : 0;
  return 0;
}

int cuTensorMapEncodeTiled(void *map, int type, uint32_t rank, void *base, const uint64_t *size,
                           const uint64_t *stride, const uint32_t *box, const uint32_t *step,
                           int interleave, int swizzle, int promotion, int fill) {
  uint64_t all[] = {(uint64_t)type,       rank,    (uint64_t)(uintptr_t)base, size[0], size[1],
                    stride[0],            box[0],  box[1],                    step[0], step[1],
                    (uint64_t)interleave, (uint64_t)swizzle, (uint64_t)promotion, (uint64_t)fill};
  if (failure) return failure;
  encodings++;
  memset(map, 0, 128);
  memcpy(map, all, sizeof all);
  return 0;
}
