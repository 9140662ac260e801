/* What watches or rewrites torch calls in this thread, asked of torch's own C++ functions: the same
 * questions in Python cost a plain call 0.4 us (2-core machine).
 *
 * They are exported by mangled name, for a `DispatchKeySet`, which is one 64-bit word. The caller checks
 * the answers against Python's before it trusts them (`native/__init__.py`).
 */

#ifndef GRISTMILL_MODES_H
#define GRISTMILL_MODES_H

#include <Python.h>
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>

enum { MAX_KEYS = 12 };

static struct {
  bool (*included)(uint64_t keys); /* whether all of them are */
  bool (*excluded)(uint64_t keys);
  bool (*grad_enabled)(void);
  bool (*function_mode)(void);
  uint64_t key[MAX_KEYS], off;
  int keys;
} torch_modes;

static void *symbol(const char *library, const char *name) {
  void *handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
  void *found = handle == NULL ? NULL : dlsym(handle, name);
  if (found == NULL) PyErr_Format(PyExc_ImportError, "%s has no %s", library, name);
  return found;
}

static int find_modes(const char *core, const char *functions, PyObject *included, uint64_t off) {
  void *is_in = symbol(core, "_ZN3c104impl31tls_is_dispatch_keyset_includedENS_14DispatchKeySetE");
  void *is_out = symbol(core, "_ZN3c104impl31tls_is_dispatch_keyset_excludedENS_14DispatchKeySetE");
  void *grad = symbol(core, "_ZN3c108GradMode10is_enabledEv");
  void *mode = symbol(functions, "_ZN2at4impl27torch_function_mode_enabledEv");
  if (is_in == NULL || is_out == NULL || grad == NULL || mode == NULL) return 0;
  torch_modes.keys = 0;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(included) && i < MAX_KEYS; i++)
    torch_modes.key[torch_modes.keys++] =
        PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(included, i));
  if (PyErr_Occurred()) return 0;
  torch_modes.off = off;
  *(void **)&torch_modes.included = is_in;
  *(void **)&torch_modes.excluded = is_out;
  *(void **)&torch_modes.grad_enabled = grad;
  *(void **)&torch_modes.function_mode = mode;
  return 1;
}

static int is_grad_enabled(void) { return torch_modes.grad_enabled(); }

static int is_plain(void) {
  if (torch_modes.function_mode() || !torch_modes.excluded(torch_modes.off)) return 0;
  for (int i = 0; i < torch_modes.keys; i++)
    if (torch_modes.included(torch_modes.key[i])) return 0;
  return 1;
}

#endif
