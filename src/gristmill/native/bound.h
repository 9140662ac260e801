/* Bound operators called by the vectorcall protocol: a call that a table has a program for makes no
 * Python frame. Every other goes to the `__call__` that its class has in Python. */

#ifndef GRISTMILL_BOUND_H
#define GRISTMILL_BOUND_H

#include <Python.h>
#include <structmember.h>

#include "tensors.h"

typedef struct {
  PyObject_HEAD vectorcallfunc vectorcall;
  PyObject *table, *outs; /* of calls that allocate, and of those that are given `out` */
  PyObject *defaults; /* by argument; MISS where there is none */
} Bound;

static PyTypeObject *bound_type = NULL, *table_type = NULL;
static PyObject *miss = NULL, *s_call = NULL, *s_out = NULL, *s_level = NULL;
static PyObject *forward_mode = NULL; /* the names of `torch.autograd.forward_ad` */
static PyObject *increment_version = NULL;

static PyObject *table_call(PyObject *table, PyObject *const *args, size_t flags, PyObject *names);

/* Whether `torch.func.jvp` and the like are under way: 1 where it cannot be told. */
static int in_forward_mode(void) {
  PyObject *level = PyDict_GetItemWithError(forward_mode, s_level);
  long found = level == NULL ? 0 : PyLong_AsLong(level);
  if (PyErr_Occurred()) PyErr_Clear();
  return level == NULL || found >= 0;
}

/* Tells autograd that tensors were written into, as of any operation in place. */
static int tell_written(PyObject *tensors) {
  PyObject *all = PyTuple_CheckExact(tensors) ? Py_NewRef(tensors) : PyTuple_Pack(1, tensors);
  PyObject *done = all == NULL ? NULL : PyObject_CallOneArg(increment_version, all);
  Py_XDECREF(all);
  Py_XDECREF(done);
  return done != NULL;
}

/* What the class has in Python. */
static PyObject *bound_slowly(PyObject *self, PyObject *const *args, size_t flags,
                              PyObject *names) {
  PyObject *few[2 * MAX_ARGUMENTS + 2], **all = few;
  Py_ssize_t count = PyVectorcall_NARGS(flags);
  Py_ssize_t total = count + (names == NULL ? 0 : PyTuple_GET_SIZE(names));
  PyObject *result = NULL, *function = PyObject_GetAttr((PyObject *)Py_TYPE(self), s_call);
  if (function == NULL) return NULL;
  if (total >= 2 * MAX_ARGUMENTS) all = PyMem_New(PyObject *, (size_t)total + 1);
  if (all != NULL) {
    all[0] = self;
    memcpy(all + 1, args, sizeof(PyObject *) * (size_t)total);
    result = PyObject_Vectorcall(function, all, (size_t)count + 1, names);
    if (all != few) PyMem_Free(all);
  } else {
    PyErr_NoMemory();
  }
  Py_DECREF(function);
  return result;
}

/* The arguments of a table's call: those of the op, defaults filled in, then what `out` has. Their
 * number; 0 where there are none such. */
static Py_ssize_t bound_arguments(const Bound *self, PyObject *const *args, Py_ssize_t count,
                                  PyObject *out, PyObject **all) {
  if (self->defaults == NULL || !PyTuple_CheckExact(self->defaults)) return 0;
  PyObject *const *outs = &out;
  Py_ssize_t wanted = PyTuple_GET_SIZE(self->defaults), given = out != NULL;
  if (given && PyTuple_CheckExact(out)) {
    given = PyTuple_GET_SIZE(out);
    outs = &PyTuple_GET_ITEM(out, 0);
  }
  if (count > wanted || wanted + given > MAX_ARGUMENTS) return 0;
  for (Py_ssize_t i = 0; i < wanted; i++) {
    all[i] = i < count ? args[i] : PyTuple_GET_ITEM(self->defaults, i);
    if (all[i] == miss) return 0;
  }
  for (Py_ssize_t i = 0; i < given; i++) all[wanted + i] = outs[i];
  return wanted + given;
}

static PyObject *bound_call(PyObject *object, PyObject *const *args, size_t flags,
                            PyObject *names) {
  Bound *self = (Bound *)object;
  Py_ssize_t count = PyVectorcall_NARGS(flags);
  PyObject *all[MAX_ARGUMENTS], *out = NULL;
  int known = names == NULL || PyTuple_GET_SIZE(names) == 0;
  if (!known && PyTuple_GET_SIZE(names) == 1 && PyTuple_GET_ITEM(names, 0) == s_out) {
    out = args[count] == Py_None ? NULL : args[count];
    known = 1;
  }
  PyObject *table = out == NULL ? self->table : self->outs;
  if (!known || table == NULL || Py_TYPE(table) != table_type || in_forward_mode())
    return bound_slowly(object, args, flags, names);
  Py_ssize_t arguments = bound_arguments(self, args, count, out, all);
  if (arguments == 0) return bound_slowly(object, args, flags, names);
  Py_INCREF(table); /* another thread may give this operator another one while the call runs */
  PyObject *result = table_call(table, all, (size_t)arguments, NULL);
  Py_DECREF(table);
  if (result == miss) {
    Py_DECREF(result);
    return bound_slowly(object, args, flags, names);
  }
  if (result == NULL || out == NULL) return result;
  Py_DECREF(result);
  return tell_written(out) ? Py_NewRef(out) : NULL;
}

static int bound_traverse(Bound *self, visitproc visit, void *arg) {
  Py_VISIT(self->table);
  Py_VISIT(self->outs);
  Py_VISIT(self->defaults);
  Py_VISIT(Py_TYPE(self));
  return 0;
}

static int bound_clear(Bound *self) {
  Py_CLEAR(self->table);
  Py_CLEAR(self->outs);
  Py_CLEAR(self->defaults);
  return 0;
}

static void bound_dealloc(Bound *self) {
  PyTypeObject *type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  bound_clear(self);
  type->tp_free(self);
  Py_DECREF(type);
}

static PyObject *bound_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  (void)args; /* the class in Python takes them */
  (void)kwargs;
  Bound *self = (Bound *)type->tp_alloc(type, 0);
  if (self != NULL) self->vectorcall = bound_call;
  return (PyObject *)self;
}

PyDoc_STRVAR(hasten_doc,
             "hasten(kind) -> kind\n\nCall instances of this class by the vectorcall protocol, which "
             "a `__call__` in Python\nhad taken from it.");

static PyObject *hasten(PyObject *module, PyObject *kind) {
  (void)module;
  if (!PyType_Check(kind) || !PyType_IsSubtype((PyTypeObject *)kind, bound_type)) {
    PyErr_SetString(PyExc_TypeError, "`kind` is no class of bound operators");
    return NULL;
  }
#ifndef Py_GIL_DISABLED /* there the flags of a class may not be written */
  PyTypeObject *type = (PyTypeObject *)kind;
  type->tp_call = PyVectorcall_Call;
  type->tp_vectorcall_offset = offsetof(Bound, vectorcall);
  type->tp_flags |= Py_TPFLAGS_HAVE_VECTORCALL;
  PyType_Modified(type);
#endif
  return Py_NewRef(kind);
}

static PyMemberDef bound_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Bound, vectorcall), READONLY, NULL},
    {"_table", T_OBJECT, offsetof(Bound, table), 0, "What a call runs, or None."},
    {"_outs", T_OBJECT, offsetof(Bound, outs), 0, "What a call with `out` runs, or None."},
    {"_defaults", T_OBJECT, offsetof(Bound, defaults), 0, "Of each argument, or MISS."},
    {NULL, 0, 0, 0, NULL}};
static PyType_Slot bound_slots[] = {
    {Py_tp_doc, "What bound operators derive from."},
    {Py_tp_new, bound_new},         {Py_tp_dealloc, bound_dealloc},
    {Py_tp_call, PyVectorcall_Call}, {Py_tp_traverse, bound_traverse},
    {Py_tp_clear, bound_clear},     {Py_tp_members, bound_members},
    {0, NULL}};
static PyType_Spec bound_spec = {
    "gristmill.native.Bound", sizeof(Bound), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL,
    bound_slots};

#endif
