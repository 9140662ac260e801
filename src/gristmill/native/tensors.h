/* What a call's arguments are, read through DLPack's C exchange interface. */

#ifndef GRISTMILL_TENSORS_H
#define GRISTMILL_TENSORS_H

#include <Python.h>
#include <stdint.h>

#include "exchange.h"

static Exchange *exchange = NULL;
static PyTypeObject *tensor_type = NULL, *parameter_type = NULL;
/* `Tensor.is_neg` and `Tensor.requires_grad`, as the C functions behind their descriptors. */
static PyCFunction is_negated = NULL;
static PyGetSetDef *requires_grad = NULL;

/* Whether a call that gives True or False gave False. */
static int is_false(PyObject *answer) {
  if (answer == NULL) PyErr_Clear();
  Py_XDECREF(answer);
  return answer == Py_False; /* which nobody frees */
}

/* 1 where the tensor's memory may be read as it is: it has some, and no lazy negation. */
static int plain_view(PyObject *value, TensorView *view, int grad) {
  if (exchange->view(value, view) != 0) {
    PyErr_Clear();
    return 0;
  }
  return is_false(is_negated(value, NULL)) &&
         (!grad || is_false(requires_grad->get(value, requires_grad->closure)));
}

/* The key of a call: words that two calls share where a bound launch of one is right for the other.
 */
enum { MAX_ARGUMENTS = 16, MAX_WORDS = 160 };

typedef struct {
  int words, tensors, device_type, device_id;
  uint64_t word[MAX_WORDS];
  uint64_t pointer[MAX_ARGUMENTS]; /* by argument; 0 where it is no tensor */
  uint64_t bytes[MAX_ARGUMENTS];   /* from there to the end of its last element */
  PyObject *kept[MAX_ARGUMENTS];   /* by argument: an object that the key names by its address */
} Key;

enum { TAG_TENSOR = 1, TAG_NONE, TAG_BOOL, TAG_INT, TAG_FLOAT, TAG_OBJECT };

static int put(Key *key, uint64_t word) {
  if (key->words == MAX_WORDS) return 0;
  key->word[key->words++] = word;
  return 1;
}

static int put_tensor(Key *key, int index, PyObject *value, int grad) {
  TensorView view;
  if (!plain_view(value, &view, grad)) return 0;
  if (view.ndim < 0 || key->words + 2 + 2 * view.ndim > MAX_WORDS || view.strides == NULL) return 0;
  if (view.code == COMPLEX) return 0; /* it may be a conjugate, which is not told here */
  uint64_t *word = key->word + key->words;
  uint64_t aligned = gm_address(&view) & 15;
  *word++ = TAG_TENSOR | (uint64_t)view.code << 8 | (uint64_t)view.bits << 16 |
            aligned << 28 | (uint64_t)view.lanes << 32 | (uint64_t)(uint32_t)view.ndim << 48;
  *word++ = (uint64_t)(uint32_t)view.device_type << 32 | (uint32_t)view.device_id;
  uint64_t last = 0, empty = 0;
  for (int i = 0; i < view.ndim; i++) {
    *word++ = (uint64_t)view.shape[i];
    last += (uint64_t)(view.shape[i] - 1) * (uint64_t)view.strides[i]; /* torch's are never negative */
    empty |= view.shape[i] == 0;
  }
  for (int i = 0; i < view.ndim; i++) *word++ = (uint64_t)view.strides[i];
  if (gm_address(&view) == 0 && !empty) return 0; /* zeros without memory, say */
  key->bytes[index] = empty ? 0 : (last + 1) * view.bits * view.lanes / 8;
  key->words = (int)(word - key->word);
  key->pointer[index] = gm_address(&view);
  if (key->tensors++ == 0) {
    key->device_type = view.device_type;
    key->device_id = view.device_id;
    return 1;
  }
  return key->device_type == view.device_type && key->device_id == view.device_id;
}

/* Whether an argument's memory meets that of any other. */
static int overlaps(const Key *key, int count, int index) {
  uint64_t start = key->pointer[index], end = start + key->bytes[index];
  for (int i = 0; i < count; i++)
    if (i != index && key->bytes[i] != 0 && key->pointer[i] < end &&
        start < key->pointer[i] + key->bytes[i])
      return key->bytes[index] != 0;
  return 0;
}

/* 1 where `value` can be part of a key; its words are added. `grad`: a gradient would be recorded. */
static int put_value(Key *key, int index, PyObject *value, int grad) {
  PyTypeObject *type = Py_TYPE(value);
  key->pointer[index] = key->bytes[index] = 0;
  key->kept[index] = NULL;
  if (type == tensor_type || type == parameter_type) return put_tensor(key, index, value, grad);
  if (value == Py_None) return put(key, TAG_NONE);
  if (type == &PyBool_Type) return put(key, TAG_BOOL | (uint64_t)(value == Py_True) << 8);
  if (type == &PyFloat_Type) {
    double number = PyFloat_AS_DOUBLE(value);
    uint64_t bits;
    memcpy(&bits, &number, sizeof bits);
    return put(key, TAG_FLOAT) && put(key, bits);
  }
  if (type == &PyLong_Type) {
    int overflow;
    int64_t number = PyLong_AsLongLongAndOverflow(value, &overflow);
    return !overflow && put(key, TAG_INT) && put(key, (uint64_t)number);
  }
  /* Torch's dtypes are one object each, and so is a string that stands in a program's text. */
  if (type != &PyUnicode_Type && strcmp(type->tp_name, "torch.dtype") != 0) return 0;
  key->kept[index] = value;
  return put(key, TAG_OBJECT) && put(key, (uint64_t)(uintptr_t)value);
}

#endif
