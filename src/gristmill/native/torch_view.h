/* Torch's own tensors without the way through its exchange table, which costs three times as much
   (docs/performance/aot.md): address, type and device from the C interface that torch keeps stable
   for compiled code. It takes an `at::Tensor *`. That a tensor object holds one right behind its head
   is no promise of torch's: it is believed of a class only once a tensor of the class says so itself
   (`_cdata`) and everything read that way is what the exchange table said. */
#ifndef GRISTMILL_TORCH_VIEW_H
#define GRISTMILL_TORCH_VIEW_H

#include "exchange.h"

enum { GM_TORCH_TYPES = 64 };
enum { GM_UNTRIED, GM_DIRECT, GM_INDIRECT };

/* What is known of a class: found once. */
typedef struct gm_seen {
    PyTypeObject *type;
    const Exchange *exchange; /* NULL: it has none */
    int32_t direct;           /* whether torch may be asked of its tensors */
    int32_t torch_device, device_type; /* if so: where they are, in torch's words and in DLPack's */
} gm_seen;

typedef int32_t gm_torch_number(void *tensor, int32_t *out); /* 0, or an exception was caught */

static struct {
    int32_t (*data)(void *tensor, void **out);
    gm_torch_number *dtype, *device_type, *device_index;
    uint8_t element[GM_TORCH_TYPES]; /* by torch's number of a type: ours, 0 where there is none */
} gm_torch;

/* Asks torch of a tensor: 1, or 0 where it has no answer that a kernel could use. */
GM_FUNCTION int gm_ask_torch(const gm_seen *seen, PyObject *value, gristmill_pointer *out,
                             int32_t *device) {
    void *tensor = (char *)value + sizeof(PyObject), *data;
    int32_t dtype, where;
    if (gm_torch.device_type(tensor, &where) || where != seen->torch_device ||
        gm_torch.dtype(tensor, &dtype) || (uint32_t)dtype >= GM_TORCH_TYPES ||
        gm_torch.device_index(tensor, device) || gm_torch.data(tensor, &data)) return 0;
    if (*device < 0) *device = 0; /* as DLPack has it of a device that has no number */
    out->data = data;
    out->dtype = gm_torch.element[dtype];
    return out->dtype != GRISTMILL_NONE;
}

/* Finds the functions, in the torch that this process has; 0 where one is missing. */
GM_COLD int gm_open_torch(void) {
    static const struct {
        const char *name;
        uint8_t element;
    } types[] = {
        {"bool", GRISTMILL_U1}, {"int8", GRISTMILL_I8}, {"int16", GRISTMILL_I16},
        {"int32", GRISTMILL_I32}, {"int64", GRISTMILL_I64}, {"uint8", GRISTMILL_U8},
        {"uint16", GRISTMILL_U16}, {"uint32", GRISTMILL_U32}, {"uint64", GRISTMILL_U64},
        {"float16", GRISTMILL_FP16}, {"bfloat16", GRISTMILL_BF16}, {"float32", GRISTMILL_FP32},
        {"float64", GRISTMILL_FP64}, {"float8_e4m3fn", GRISTMILL_FP8E4NV},
        {"float8_e5m2", GRISTMILL_FP8E5}, {"float8_e4m3fnuz", GRISTMILL_FP8E4B8},
        {"float8_e5m2fnuz", GRISTMILL_FP8E5B16},
    };
    void *library = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
    size_t i;
    if (!library) return 0;
    *(void **)&gm_torch.data = dlsym(library, "aoti_torch_get_data_ptr");
    *(void **)&gm_torch.dtype = dlsym(library, "aoti_torch_get_dtype");
    *(void **)&gm_torch.device_type = dlsym(library, "aoti_torch_get_device_type");
    *(void **)&gm_torch.device_index = dlsym(library, "aoti_torch_get_device_index");
    for (i = 0; i < sizeof types / sizeof *types; i++) {
        char name[64];
        int32_t (*number)(void);
        snprintf(name, sizeof name, "aoti_torch_dtype_%s", types[i].name);
        *(void **)&number = dlsym(library, name);
        if (number && (uint32_t)number() < GM_TORCH_TYPES) {
            gm_torch.element[number()] = types[i].element;
        }
    }
    return gm_torch.data && gm_torch.dtype && gm_torch.device_type && gm_torch.device_index;
}

/* Whether a class is `<module>.<name>` of a module that was imported. */
GM_COLD int gm_is_class(PyTypeObject *type, const char *module, const char *name) {
    PyObject *text = PyUnicode_FromString(module);
    PyObject *found = text ? PyImport_GetModule(text) : NULL;
    PyObject *class = found ? PyObject_GetAttrString(found, name) : NULL;
    const int same = class == (PyObject *)type;
    PyErr_Clear();
    Py_XDECREF(class);
    Py_XDECREF(found);
    Py_XDECREF(text);
    return same;
}

/* The address of a tensor's `at::Tensor` by its own word, or NULL. */
GM_COLD void *gm_stated_tensor(PyObject *value) {
    PyObject *number = PyObject_GetAttrString(value, "_cdata");
    void *stated = number ? PyLong_AsVoidPtr(number) : NULL;
    PyErr_Clear();
    Py_XDECREF(number);
    return stated;
}

/* Decides whether torch may be asked of a class, from its first tensor with memory on a GPU. Of
   subclasses, which may be anything, only `Parameter`. */
GM_COLD void gm_try_torch(gm_seen *seen, PyObject *value, const TensorView *view, int32_t element) {
    PyTypeObject *type = Py_TYPE(value);
    gm_seen tried = *seen;
    void *held, *stated;
    gristmill_pointer pointer;
    int32_t device;
    if (gm_address(view) == 0) return; /* says nothing: the next one will */
    tried.direct = GM_INDIRECT;
    tried.device_type = view->device_type;
    memcpy(&held, (char *)value + sizeof(PyObject), sizeof held);
    stated = gm_stated_tensor(value);
    if ((gm_is_class(type, "torch", "Tensor") ||
         gm_is_class(type, "torch.nn.parameter", "Parameter")) &&
        stated && stated == held && gm_open_torch() &&
        gm_torch.device_type((char *)value + sizeof(PyObject), &tried.torch_device) == 0 &&
        gm_ask_torch(&tried, value, &pointer, &device) && pointer.dtype == element &&
        pointer.data == (const void *)(uintptr_t)gm_address(view) && device == view->device_id) {
        tried.direct = GM_DIRECT;
    }
    if (seen->type == type) *seen = tried; /* Python code ran: the place may be another class's */
}

#endif
