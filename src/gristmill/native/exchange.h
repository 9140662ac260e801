/* DLPack's tensors and its C exchange interface: what a tensor is and which stream is current, with
 * no Python attribute read (dlpack 1.x, the parts used here; https://github.com/dmlc/dlpack). */

#ifndef GRISTMILL_EXCHANGE_H
#define GRISTMILL_EXCHANGE_H

#include <stdint.h>

enum { KIND_CPU = 1, KIND_CUDA = 2, COMPLEX = 5, EXCHANGE_MAJOR = 1 };

typedef struct {
  void *data;
  int32_t device_type, device_id, ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
} TensorView;

typedef struct Exchange {
  uint32_t major, minor;
  struct Exchange *previous;
  void *allocate, *export_managed, *import_managed;
  int (*view)(void *tensor, TensorView *out);
  int (*stream)(int32_t device_type, int32_t device_id, void **out);
} Exchange;

/* The table of the major version that is known here, or NULL. */
static inline Exchange *gm_known_exchange(Exchange *found) {
  while (found && found->major != EXCHANGE_MAJOR) found = found->previous;
  return found && found->view && found->stream ? found : 0;
}

static inline uint64_t gm_address(const TensorView *view) {
  return (uint64_t)(uintptr_t)view->data + view->byte_offset;
}

#endif
