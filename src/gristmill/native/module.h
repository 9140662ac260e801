/* An artifact's Python module: from Python's objects to what its C functions take, within the
   limited API. Included after the artifact's source, so that nothing of the artifact need be public,
   and after `gm_aliases`: other names of element types, with their codes, up to a null. */
#ifndef GRISTMILL_MODULE_H
#define GRISTMILL_MODULE_H

#include "torch_view.h"

enum { GM_DEVICE_HIP = 10, GM_DEVICE_MANAGED = 13, GM_TYPES_SEEN = 8, GM_MAX_GIVEN = 8 };

/* What a function takes: the kernel's parameters, then those of a launch. */
typedef struct gm_signature {
    const char *name;
    const char *const *parameters;
    Py_ssize_t count, required;
} gm_signature;

/* A call while its arguments are read. */
typedef struct gm_reading {
    const gm_artifact *artifact;
    const gm_signature *signature;
    const Exchange *exchange; /* of the first tensor that has one */
    int32_t device_type, device; /* of the tensors; -1: none had one */
    Py_ssize_t first;            /* the tensor that they are of */
    int32_t held_count;
    PyObject *held[GM_MAX_GIVEN]; /* DLPack's capsules, whose shapes a descriptor points to */
} gm_reading;

static gm_seen gm_types_seen[GM_TYPES_SEEN];
static PyObject *gm_error;

GM_FUNCTION const char *gm_parameter(const gm_reading *reading, Py_ssize_t index) {
    return reading->signature->parameters[index];
}

GM_FUNCTION const char *gm_type_name(PyObject *value, char *room, size_t size) {
    PyObject *name = PyObject_GetAttrString((PyObject *)Py_TYPE(value), "__name__");
    const char *text = name ? PyUnicode_AsUTF8AndSize(name, NULL) : NULL;
    snprintf(room, size, "%s", text ? text : "object");
    PyErr_Clear();
    Py_XDECREF(name);
    return room;
}

/* A TypeError: what the argument is, what is allowed, what to do. */
GM_COLD int gm_wrong_type(const gm_reading *reading, Py_ssize_t index, PyObject *value,
                          const char *allowed) {
    char room[96];
    if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_TypeError)) return 0;
    PyErr_Clear();
    PyErr_Format(PyExc_TypeError, "%s: `%s` is of type %s; it can be %s", reading->signature->name,
                 gm_parameter(reading, index), gm_type_name(value, room, sizeof room), allowed);
    return 0;
}

/* ------------------------------------------------------------------------------------- arguments */

GM_COLD PyObject *const *gm_given_by_name(const gm_signature *signature, PyObject *const *given,
                                          Py_ssize_t count, PyObject *names, PyObject **room) {
    const Py_ssize_t named = names ? PyTuple_Size(names) : 0;
    Py_ssize_t i, j;
    if (count > signature->count) {
        PyErr_Format(PyExc_TypeError, "%s takes at most %zd arguments; %zd were given",
                     signature->name, signature->count, count);
        return NULL;
    }
    for (i = 0; i < signature->count; i++) room[i] = i < count ? given[i] : NULL;
    for (i = 0; i < named; i++) {
        PyObject *name = PyTuple_GetItem(names, i);
        for (j = 0; j < signature->count; j++) {
            if (PyUnicode_CompareWithASCIIString(name, signature->parameters[j]) == 0) break;
        }
        if (j == signature->count) {
            PyErr_Format(PyExc_TypeError, "%s has no argument %R; see help(%s)", signature->name,
                         name, signature->name);
            return NULL;
        }
        if (room[j]) {
            PyErr_Format(PyExc_TypeError, "%s was given %R twice", signature->name, name);
            return NULL;
        }
        room[j] = given[count + i];
    }
    for (i = 0; i < signature->required; i++) {
        if (room[i]) continue;
        PyErr_Format(PyExc_TypeError, "%s needs `%s`, which was not given; see help(%s)",
                     signature->name, signature->parameters[i], signature->name);
        return NULL;
    }
    return room;
}

/* The arguments in the signature's order, NULL for those left out; NULL with an exception. */
GM_FUNCTION PyObject *const *gm_given(const gm_signature *signature, PyObject *const *given,
                                      Py_ssize_t count, PyObject *names, PyObject **room) {
    if (GM_LIKELY(!names && count == signature->count)) return given;
    return gm_given_by_name(signature, given, count, names, room);
}

/* ------------------------------------------------------------------------------------ exceptions */

/* The exception of a status: ValueError where an argument is wrong, else the module's `Error`. */
GM_COLD PyObject *gm_raise(int32_t status) {
    const char *message = gm_last_message;
    PyObject *made, *code;
    if (status == GRISTMILL_INVALID_ARGUMENT) {
        PyErr_SetString(PyExc_ValueError, message);
        return NULL;
    }
    made = PyObject_CallFunction(gm_error, "s", message);
    code = PyLong_FromLong(status);
    if (made && code && PyObject_SetAttrString(made, "status", code) == 0) {
        PyErr_SetObject(gm_error, made);
    }
    Py_XDECREF(made);
    Py_XDECREF(code);
    return NULL;
}

/* --------------------------------------------------------------------------------------- scalars */

GM_FUNCTION int gm_take_int(const gm_reading *reading, Py_ssize_t index, PyObject *value,
                            int64_t *out) {
    *out = PyLong_AsLongLong(value);
    if (GM_LIKELY(*out != -1) || !PyErr_Occurred()) return 1;
    if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
        PyErr_Format(PyExc_ValueError, "%s: `%s` is %S; it takes integers of 64 bits",
                     reading->signature->name, gm_parameter(reading, index), value);
        return 0;
    }
    return gm_wrong_type(reading, index, value, "an integer");
}

/* Of 32 bits, or `missing` where it was left out. */
GM_FUNCTION int gm_take_count(const gm_reading *reading, Py_ssize_t index, PyObject *value,
                              int32_t missing, int32_t *out) {
    int64_t number = missing;
    if (value && !gm_take_int(reading, index, value, &number)) return 0;
    *out = (int32_t)number;
    if (*out == number) return 1;
    PyErr_Format(PyExc_ValueError, "%s: `%s` is %S; it takes integers of 32 bits",
                 reading->signature->name, gm_parameter(reading, index), value);
    return 0;
}

/* A constexpr: an integer or None. */
GM_FUNCTION int gm_take_int_or_none(const gm_reading *reading, Py_ssize_t index, PyObject *value,
                                    int64_t *out) {
    if (value == Py_None) {
        *out = GRISTMILL_NO_VALUE;
        return 1;
    }
    if (!gm_take_int(reading, index, value, out)) return 0;
    if (*out != GRISTMILL_NO_VALUE) return 1;
    PyErr_Format(PyExc_ValueError, "%s: `%s` is the smallest integer of 64 bits, which stands for "
                                   "None", reading->signature->name, gm_parameter(reading, index));
    return 0;
}

GM_FUNCTION int gm_take_float(const gm_reading *reading, Py_ssize_t index, PyObject *value,
                              double *out) {
    *out = PyFloat_AsDouble(value);
    if (GM_LIKELY(*out != -1.0) || !PyErr_Occurred()) return 1;
    return gm_wrong_type(reading, index, value, "a number");
}

GM_FUNCTION int gm_take_float_or_none(const gm_reading *reading, Py_ssize_t index, PyObject *value,
                                      double *out) {
    if (value != Py_None) return gm_take_float(reading, index, value, out);
    *out = __builtin_nan("");
    return 1;
}

GM_FUNCTION int gm_take_text_or_none(const gm_reading *reading, Py_ssize_t index, PyObject *value,
                                     const char **out) {
    *out = NULL;
    if (value == Py_None) return 1;
    if (PyUnicode_Check(value)) *out = PyUnicode_AsUTF8AndSize(value, NULL);
    return *out ? 1 : gm_wrong_type(reading, index, value, "a string or None");
}

/* The code of an element type's name, with or without the module's that it comes from; -1: none. */
GM_FUNCTION int32_t gm_code_of(const gm_artifact *artifact, const char *name) {
    const char *point = strrchr(name, '.');
    size_t i;
    if (point) name = point + 1;
    for (i = 1; i < artifact->element_count; i++) {
        if (strcmp(artifact->elements[i], name) == 0) return (int32_t)i;
    }
    for (i = 0; gm_aliases[i].name; i++) {
        if (strcmp(gm_aliases[i].name, name) == 0) return gm_aliases[i].code;
    }
    return -1;
}

/* An element type: its code, its name, or a dtype of torch, NumPy or Triton; None is 0. */
GM_FUNCTION int gm_take_type(const gm_reading *reading, Py_ssize_t index, PyObject *value,
                             int32_t *out) {
    PyObject *shown;
    const char *text;
    *out = GRISTMILL_NONE;
    if (value == Py_None) return 1;
    if (PyLong_Check(value)) {
        int64_t code = PyLong_AsLongLong(value);
        if (code >= 0 && code < (int64_t)reading->artifact->element_count) {
            *out = (int32_t)code;
            return 1;
        }
        PyErr_Clear();
    }
    shown = PyObject_Str(value);
    text = shown ? PyUnicode_AsUTF8AndSize(shown, NULL) : NULL;
    *out = text ? gm_code_of(reading->artifact, text) : -1;
    Py_XDECREF(shown);
    if (*out >= 0) return 1;
    PyErr_Clear();
    PyErr_Format(PyExc_TypeError,
                 "%s: `%s` has the element type %R, which is none; it can be a name such as 'fp16', "
                 "or a dtype of torch", reading->signature->name, gm_parameter(reading, index),
                 value);
    return 0;
}

/* A number whose type varies: (number, element type), or a number alone, which is fp32 as to
   Triton's JIT. */
GM_FUNCTION int gm_take_number(const gm_reading *reading, Py_ssize_t index, PyObject *value,
                               gristmill_number *out) {
    out->dtype = GRISTMILL_FP32;
    if (!PyTuple_Check(value)) return gm_take_float(reading, index, value, &out->value);
    if (PyTuple_Size(value) != 2) {
        return gm_wrong_type(reading, index, value, "a number or (number, element type)");
    }
    return gm_take_float(reading, index, PyTuple_GetItem(value, 0), &out->value) &&
           gm_take_type(reading, index, PyTuple_GetItem(value, 1), &out->dtype);
}

/* --------------------------------------------------------------------------------------- tensors */

/* The code of one of DLPack's types; -1: Triton has none such. */
GM_FUNCTION int32_t gm_element(uint8_t code, uint8_t bits, uint16_t lanes) {
    if (lanes != 1) return -1;
    switch (code << 8 | bits) {
    case 0x008: return GRISTMILL_I8;
    case 0x010: return GRISTMILL_I16;
    case 0x020: return GRISTMILL_I32;
    case 0x040: return GRISTMILL_I64;
    case 0x108: return GRISTMILL_U8;
    case 0x110: return GRISTMILL_U16;
    case 0x120: return GRISTMILL_U32;
    case 0x140: return GRISTMILL_U64;
    case 0x210: return GRISTMILL_FP16;
    case 0x220: return GRISTMILL_FP32;
    case 0x240: return GRISTMILL_FP64;
    case 0x410: return GRISTMILL_BF16;
    case 0x608: return GRISTMILL_U1;
    case 0x908: return GRISTMILL_FP8E4B15;
    case 0xa08: return GRISTMILL_FP8E4NV;
    case 0xb08: return GRISTMILL_FP8E4B8;
    case 0xc08: return GRISTMILL_FP8E5;
    case 0xd08: return GRISTMILL_FP8E5B16;
    default: return -1;
    }
}

GM_COLD int gm_wrong_device(const gm_reading *reading, Py_ssize_t index, int32_t type,
                            int32_t device) {
    if (type == KIND_CPU) {
        PyErr_Format(PyExc_ValueError,
                     "%s: `%s` is in the host's memory, where the kernel cannot read it. Pass a "
                     "tensor on the GPU (`.cuda()`).", reading->signature->name,
                     gm_parameter(reading, index));
    } else if (reading->device_type >= 0) {
        PyErr_Format(PyExc_ValueError,
                     "%s: `%s` is on device %d and `%s` on device %d; all of a call are on one. "
                     "Move one of them.", reading->signature->name, gm_parameter(reading, index),
                     (int)device, gm_parameter(reading, reading->first), (int)reading->device);
    } else {
        PyErr_Format(PyExc_ValueError,
                     "%s: `%s` is on a device of DLPack's type %d; it can be on a GPU of CUDA or "
                     "ROCm (2, 10), or in managed or pinned memory (13, 3, 11)",
                     reading->signature->name, gm_parameter(reading, index), (int)type);
    }
    return 0;
}

/* Whether a tensor is where the others are. Pinned and managed memory is on every device. */
GM_FUNCTION int gm_take_device(gm_reading *reading, Py_ssize_t index, int32_t type, int32_t device) {
    if (GM_LIKELY(type == reading->device_type && device == reading->device)) return 1;
    if (type == GM_DEVICE_MANAGED || type == 3 || type == 11) return 1;
    if ((type != KIND_CUDA && type != GM_DEVICE_HIP) || reading->device_type >= 0) {
        return gm_wrong_device(reading, index, type, device);
    }
    reading->device_type = type;
    reading->device = device;
    reading->first = index;
    return 1;
}

/* A class that was not seen before. */
GM_COLD gm_seen *gm_look_at(PyTypeObject *type) {
    static unsigned next;
    PyObject *capsule = PyObject_GetAttrString((PyObject *)type, "__dlpack_c_exchange_api__");
    Exchange *found = NULL;
    gm_seen *seen = &gm_types_seen[next++ % GM_TYPES_SEEN];
    PyTypeObject *before = seen->type;
    if (capsule) {
        found = gm_known_exchange((Exchange *)PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    }
    PyErr_Clear();
    Py_XDECREF(capsule); /* the class has it */
    Py_INCREF(type);
    *seen = (gm_seen){type, found, GM_UNTRIED, 0, 0};
    Py_XDECREF((PyObject *)before); /* last: it may call, and come here */
    return seen->type == type ? seen : gm_look_at(type);
}

GM_FUNCTION gm_seen *gm_class_of(PyObject *value) {
    PyTypeObject *type = Py_TYPE(value);
    int i;
    for (i = 0; i < GM_TYPES_SEEN; i++) {
        if (gm_types_seen[i].type == type) return &gm_types_seen[i];
    }
    return gm_look_at(type);
}

/* An attribute that need not be there: 1 and a reference, 0 without, -1 with an exception. */
GM_FUNCTION int gm_look_up(PyObject *value, const char *name, PyObject **found) {
    *found = PyObject_GetAttrString(value, name);
    if (*found) return 1;
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) return -1;
    PyErr_Clear();
    return 0;
}

/* `__dlpack_device__`, where a tensor has it: 1 (it may be used there), 0 with an exception. */
GM_COLD int gm_ask_device(gm_reading *reading, Py_ssize_t index, PyObject *value) {
    PyObject *method, *pair;
    long type = -1, device = -1;
    int there = gm_look_up(value, "__dlpack_device__", &method);
    if (there <= 0) return there == 0;
    pair = PyObject_CallObject(method, NULL);
    Py_DECREF(method);
    if (pair && PyTuple_Check(pair) && PyTuple_Size(pair) == 2) {
        type = PyLong_AsLong(PyTuple_GetItem(pair, 0));
        device = PyLong_AsLong(PyTuple_GetItem(pair, 1));
    }
    Py_XDECREF(pair);
    if (PyErr_Occurred()) return 0;
    return gm_take_device(reading, index, (int32_t)type, (int32_t)device);
}

/* An object's `data_ptr()` and `dtype`: 1, 0 where it has none such, -1 with an exception. */
GM_COLD int gm_data_pointer(gm_reading *reading, Py_ssize_t index, PyObject *value,
                            gristmill_pointer *out) {
    PyObject *method, *number, *dtype;
    int there = gm_look_up(value, "data_ptr", &method);
    if (there <= 0) return there;
    if (!gm_ask_device(reading, index, value)) {
        Py_DECREF(method);
        return -1;
    }
    number = PyObject_CallObject(method, NULL);
    Py_DECREF(method);
    out->data = number ? PyLong_AsVoidPtr(number) : NULL;
    Py_XDECREF(number);
    if (PyErr_Occurred()) return -1;
    there = gm_look_up(value, "dtype", &dtype);
    if (there <= 0) return there;
    there = gm_take_type(reading, index, dtype, &out->dtype);
    Py_DECREF(dtype);
    return there ? 1 : -1;
}

/* What `__dlpack__` gives: 1, 0 where there is none, -1 with an exception. Its capsule is held to
   the end of the call. */
GM_COLD int gm_capsule_view(gm_reading *reading, Py_ssize_t index, PyObject *value,
                            TensorView *view) {
    PyObject *method, *nothing, *options, *capsule = NULL;
    const void *tensor = NULL;
    int there = gm_look_up(value, "__dlpack__", &method);
    if (there <= 0) return there;
    if (!gm_ask_device(reading, index, value)) {
        Py_DECREF(method);
        return -1;
    }
    nothing = PyTuple_New(0);
    options = Py_BuildValue("{s:i}", "stream", -1); /* in the call's stream: nobody waits */
    if (nothing && options) capsule = PyObject_Call(method, nothing, options);
    Py_XDECREF(nothing);
    Py_XDECREF(options);
    Py_DECREF(method);
    if (!capsule) return -1;
    if (PyCapsule_IsValid(capsule, "dltensor")) tensor = PyCapsule_GetPointer(capsule, "dltensor");
    if (!tensor || reading->held_count == GM_MAX_GIVEN) {
        Py_DECREF(capsule);
        PyErr_Format(PyExc_TypeError,
                     "%s: `%s` gave no DLPack capsule that is known here, or is one of more than %d "
                     "such arguments. Pass (address, element type).", reading->signature->name,
                     gm_parameter(reading, index), GM_MAX_GIVEN);
        return -1;
    }
    memcpy(view, tensor, sizeof *view); /* a DLManagedTensor begins with its tensor */
    reading->held[reading->held_count++] = capsule;
    return 1;
}

#define GM_TENSORS                                                                                 \
    "a tensor (of torch, or anything with `__dlpack__`, or with `data_ptr()` and `dtype`)"

/* A tensor that its own class cannot show: fake, on the device `meta`, sparse. The class's reason,
   of which the first line. */
GM_COLD int gm_no_view(const gm_reading *reading, Py_ssize_t index) {
    PyObject *type, *value, *trace, *shown;
    const char *text;
    char line[256];
    PyErr_Fetch(&type, &value, &trace);
    shown = value ? PyObject_Str(value) : NULL;
    text = shown ? PyUnicode_AsUTF8AndSize(shown, NULL) : NULL;
    PyErr_Clear();
    snprintf(line, sizeof line, "%.*s", text ? (int)strcspn(text, "\n") : 0, text ? text : "");
    PyErr_Format(PyExc_TypeError, "%s: `%s` has no memory that a kernel could use: %s",
                 reading->signature->name, gm_parameter(reading, index), line);
    Py_XDECREF(shown);
    Py_XDECREF(type);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return 0;
}

/* What a tensor is: 1, 0 where it says neither shape nor strides, -1 with an exception. */
GM_FUNCTION int gm_take_view(gm_reading *reading, Py_ssize_t index, PyObject *value,
                             TensorView *view) {
    const Exchange *exchange = gm_class_of(value)->exchange;
    if (!GM_LIKELY(exchange != NULL)) return gm_capsule_view(reading, index, value, view);
    if (exchange->view(value, view) != 0) return gm_no_view(reading, index) - 1;
    if (!reading->exchange) reading->exchange = exchange;
    return gm_take_device(reading, index, view->device_type, view->device_id) ? 1 : -1;
}

GM_FUNCTION int gm_known_element(const gm_reading *reading, Py_ssize_t index,
                                 const TensorView *view, int32_t *dtype) {
    *dtype = gm_element(view->code, view->bits, view->lanes);
    if (GM_LIKELY(*dtype > 0)) return 1;
    PyErr_Format(PyExc_TypeError,
                 "%s: `%s` has elements of DLPack's type (%d, %d bits, %d lanes), which Triton has "
                 "not", reading->signature->name, gm_parameter(reading, index), (int)view->code,
                 (int)view->bits, (int)view->lanes);
    return 0;
}

/* What is no tensor of an exchange table: (address, element type), an address, None, or an object
   with `data_ptr()` or `__dlpack__`. */
GM_COLD int gm_take_other(gm_reading *reading, Py_ssize_t index, PyObject *value, int32_t fixed,
                          int optional, gristmill_pointer *out) {
    TensorView view;
    int there;
    out->data = NULL;
    out->dtype = fixed;
    if (value == Py_None) {
        if (optional) return 1;
        return gm_wrong_type(reading, index, value, GM_TENSORS "; the kernel was not compiled "
                                                               "for None there");
    }
    if (PyLong_Check(value) && fixed) {
        out->data = PyLong_AsVoidPtr(value);
        return !PyErr_Occurred();
    }
    if (PyTuple_Check(value) && PyTuple_Size(value) == 2 &&
        PyLong_Check(PyTuple_GetItem(value, 0))) {
        out->data = PyLong_AsVoidPtr(PyTuple_GetItem(value, 0));
        return !PyErr_Occurred() &&
               gm_take_type(reading, index, PyTuple_GetItem(value, 1), &out->dtype);
    }
    there = gm_data_pointer(reading, index, value, out);
    if (there) return there > 0;
    there = gm_capsule_view(reading, index, value, &view);
    if (there < 0) return 0;
    if (!there) {
        return gm_wrong_type(reading, index, value,
                             GM_TENSORS ", or an address with its type: (address, 'fp16')");
    }
    out->data = (const void *)(uintptr_t)gm_address(&view);
    return gm_known_element(reading, index, &view, &out->dtype) &&
           gm_take_device(reading, index, view.device_type, view.device_id);
}

GM_COLD int gm_other_element(const gm_reading *reading, Py_ssize_t index, int32_t dtype,
                             int32_t fixed) {
    PyErr_Format(PyExc_TypeError, "%s: `%s` is of type %s; the kernel was compiled for %s there",
                 reading->signature->name, gm_parameter(reading, index),
                 reading->artifact->elements[dtype], reading->artifact->elements[fixed]);
    return 0;
}

/* A tensor of a class with an exchange table. */
GM_FUNCTION int gm_take_exchanged(gm_reading *reading, Py_ssize_t index, PyObject *value,
                                  gm_seen *seen, gristmill_pointer *out) {
    const Exchange *exchange = seen->exchange;
    TensorView view;
    if (exchange->view(value, &view) != 0) return gm_no_view(reading, index);
    if (!reading->exchange) reading->exchange = exchange;
    if (!gm_take_device(reading, index, view.device_type, view.device_id) ||
        !gm_known_element(reading, index, &view, &out->dtype)) return 0;
    out->data = (const void *)(uintptr_t)gm_address(&view);
    if (GM_LIKELY(seen->direct != GM_UNTRIED)) return 1;
    gm_try_torch(seen, value, &view, out->dtype);
    return 1;
}

/* A pointer; `fixed` is the element type that it must have, 0 where that varies. */
GM_FUNCTION int gm_take_pointer(gm_reading *reading, Py_ssize_t index, PyObject *value,
                                int32_t fixed, int optional, gristmill_pointer *out) {
    gm_seen *seen = gm_class_of(value);
    int32_t device;
    if (GM_LIKELY(seen->direct == GM_DIRECT) &&
        GM_LIKELY(gm_ask_torch(seen, value, out, &device))) {
        if (!reading->exchange) reading->exchange = seen->exchange;
        if (!gm_take_device(reading, index, seen->device_type, device)) return 0;
    } else if (seen->exchange) {
        if (!gm_take_exchanged(reading, index, value, seen, out)) return 0;
    } else if (!gm_take_other(reading, index, value, fixed, optional, out)) {
        return 0;
    }
    return GM_LIKELY(!fixed || out->dtype == fixed) ||
           gm_other_element(reading, index, out->dtype, fixed);
}

/* A tensor whose descriptor the host makes: of `rank` dimensions. */
GM_FUNCTION int gm_take_tensor(gm_reading *reading, Py_ssize_t index, PyObject *value, int32_t rank,
                               gristmill_descriptor *out) {
    TensorView view;
    const int there = gm_take_view(reading, index, value, &view);
    if (there < 0) return 0;
    if (!there) return gm_wrong_type(reading, index, value, "a tensor with `__dlpack__`");
    if (view.ndim != rank || !view.strides) {
        PyErr_Format(PyExc_ValueError,
                     "%s: `%s` has %d dimensions%s; the kernel takes it with %d and strides",
                     reading->signature->name, gm_parameter(reading, index), (int)view.ndim,
                     view.strides ? "" : " and no strides", (int)rank);
        return 0;
    }
    out->data = (const void *)(uintptr_t)gm_address(&view);
    out->shape = view.shape;
    out->strides = view.strides;
    return gm_known_element(reading, index, &view, &out->dtype);
}

/* ---------------------------------------------------------------------------------------- stream */

/* A stream object's address: 1, or 0 with an exception. */
GM_COLD int gm_stream_of(const gm_reading *reading, Py_ssize_t index, PyObject *value, void **out) {
    PyObject *found, *pair;
    int there = gm_look_up(value, "cuda_stream", &found);
    if (there < 0) return 0;
    if (!there) {
        there = gm_look_up(value, "__cuda_stream__", &found); /* (version, address) */
        if (there < 0) return 0;
        if (!there) {
            return gm_wrong_type(reading, index, value,
                                 "a stream of torch, its address, or left out for the current one");
        }
        pair = PyObject_CallObject(found, NULL);
        Py_DECREF(found);
        if (!pair) return 0;
        found = PyTuple_Check(pair) && PyTuple_Size(pair) == 2 ? PyTuple_GetItem(pair, 1) : NULL;
        Py_XINCREF(found);
        Py_DECREF(pair);
        if (!found) return gm_wrong_type(reading, index, value, "one with `__cuda_stream__`'s pair");
    }
    *out = PyLong_AsVoidPtr(found);
    Py_DECREF(found);
    return !PyErr_Occurred();
}

/* The stream: as given, or the current one of the tensors' device. */
GM_FUNCTION int gm_take_stream(const gm_reading *reading, Py_ssize_t index, PyObject *value,
                               void **out) {
    *out = NULL;
    if (value && value != Py_None) {
        if (!PyLong_Check(value)) return gm_stream_of(reading, index, value, out);
        *out = PyLong_AsVoidPtr(value);
        return !PyErr_Occurred();
    }
    if (GM_LIKELY(reading->exchange && reading->device >= 0)) {
        return reading->exchange->stream(reading->device_type, reading->device, out) == 0;
    }
    PyErr_Format(PyExc_TypeError,
                 "%s: `%s` was left out, and no argument knows the current one: none is a tensor "
                 "with `__dlpack_c_exchange_api__`. Pass a stream, or its address.",
                 reading->signature->name, gm_parameter(reading, index));
    return 0;
}

#define GM_DEVICES                                                                                 \
    "a device's number, -1 or None for the current one, or a device of torch's (\"cuda:0\")"

/* The number in "cuda", "cuda:1", "hip:1": 1, -1 being the current one; 0 where it is none of them. */
GM_COLD int gm_ordinal_of(const char *name, int32_t *out) {
    const char *rest = strncmp(name, "hip", 3) == 0 ? name + 3 : name + 4;
    int end = 0;
    *out = -1;
    if (strncmp(name, "hip", 3) != 0 && strncmp(name, "cuda", 4) != 0) return 0;
    if (!*rest) return 1;
    return rest[0] == ':' && rest[1] >= '0' && rest[1] <= '9' &&
           sscanf(rest, ":%9" SCNd32 "%n", out, &end) == 1 && !rest[end];
}

/* A device of `preload`: its number, its name or a `torch.device`, None for the current one. */
GM_COLD int gm_take_ordinal(PyObject *value, int32_t *out) {
    PyObject *type = NULL, *shown;
    const char *text;
    int named = PyUnicode_Check(value), good = 0;
    char room[96];
    *out = -1;
    if (value == Py_None) return 1;
    if (!named && gm_look_up(value, "type", &type) < 0) return 0;
    named |= type && PyUnicode_Check(type); /* torch.device has one, and its name is its text */
    Py_XDECREF(type);
    shown = named ? PyObject_Str(value) : PyBool_Check(value) ? NULL : PyNumber_Index(value);
    if (named && shown) {
        text = PyUnicode_AsUTF8AndSize(shown, NULL);
        good = text && gm_ordinal_of(text, out);
    } else if (shown) {
        const long number = PyLong_AsLong(shown);
        *out = (int32_t)number;
        good = *out == number && number >= -1 && !PyErr_Occurred();
    }
    PyErr_Clear();
    if (!shown) {
        PyErr_Format(PyExc_TypeError, "preload: `device` is of type %s; it can be " GM_DEVICES,
                     gm_type_name(value, room, sizeof room));
    } else if (!good) {
        PyErr_Format(PyExc_ValueError, "preload: `device` is %R; it can be " GM_DEVICES, value);
    }
    Py_XDECREF(shown);
    return good;
}

/* Whether the tensors are on the calling thread's device. Python's lock need not be held. */
GM_FUNCTION int32_t gm_check_device(gm_artifact *artifact, const gm_reading *reading) {
    gm_place *place = NULL;
    int32_t status;
    if (reading->device < 0) return GRISTMILL_OK;
    status = gm_find_place(artifact, reading->signature->name, &place);
    if (status || GM_LIKELY(place->device == reading->device)) return status;
    return gm_fail(GRISTMILL_INVALID_ARGUMENT, reading->signature->name,
                   "`%s` is on device %" PRId32 ", and the current device is %" PRId32
                   ". Make it current (`with torch.cuda.device(%" PRId32 "):`).",
                   gm_parameter(reading, reading->first), reading->device, place->device,
                   reading->device);
}

/* After a call, whatever came of it. */
GM_FUNCTION void gm_let_go(gm_reading *reading) {
    while (reading->held_count > 0) Py_DECREF(reading->held[--reading->held_count]);
}

#endif
