/* Tensors that say that they are on a GPU, where there is none: a class with DLPack's C exchange
   interface (on a device of type -1 it shows nothing), and the interface of another class with its device changed. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "exchange.h"

enum { MAX_RANK = 8 };

typedef struct {
    PyObject_HEAD TensorView view;
    int64_t shape[MAX_RANK], strides[MAX_RANK];
} Tensor;

static void *current_stream;
static int32_t stated_device;
static long views;
static Exchange *wrapped;

static PyObject *tensor_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"address", "dtype", "shape", "strides", "device", "device_type", NULL};
    unsigned long long address;
    int code = 2, bits = 16, device = 0, device_type = KIND_CUDA;
    PyObject *shape = NULL, *strides = NULL;
    Py_ssize_t i, rank;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "K|(ii)O!O!ii", names, &address, &code, &bits,
                                     &PyTuple_Type, &shape, &PyTuple_Type, &strides, &device,
                                     &device_type))
        return NULL;
    Tensor *self = (Tensor *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    rank = shape ? PyTuple_GET_SIZE(shape) : 0;
    for (i = 0; i < rank && i < MAX_RANK; i++) {
        self->shape[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i));
        self->strides[i] = strides ? PyLong_AsLongLong(PyTuple_GET_ITEM(strides, i)) : 1;
    }
    self->view = (TensorView){(void *)(uintptr_t)address, device_type, device, (int32_t)rank,
                              (uint8_t)code, (uint8_t)bits, 1, self->shape, self->strides, 0};
    return (PyObject *)self;
}

static int view(void *tensor, TensorView *out) {
    *out = ((Tensor *)tensor)->view;
    if (out->device_type >= 0) return 0;
    PyErr_SetString(PyExc_BufferError, "it is a ghost\nand more of the kind");
    return -1;
}

static int wrapped_view(void *tensor, TensorView *out) {
    int status = wrapped->view(tensor, out);
    views++;
    out->device_type = KIND_CUDA;
    out->device_id = stated_device;
    return status;
}

static int stream(int32_t device_type, int32_t device, void **out) {
    (void)device_type;
    (void)device;
    *out = current_stream;
    return 0;
}

static Exchange table = {EXCHANGE_MAJOR, 3, NULL, NULL, NULL, NULL, view, stream};
static Exchange newer = {EXCHANGE_MAJOR + 1, 0, &table, NULL, NULL, NULL, NULL, NULL};
static Exchange wrapper = {EXCHANGE_MAJOR, 3, NULL, NULL, NULL, NULL, wrapped_view, stream};

/* wrap(capsule, device): the tables of a class whose tensors are to look as if on a GPU. */
static PyObject *wrap(PyObject *module, PyObject *args) {
    PyObject *capsule;
    (void)module;
    stated_device = 0;
    if (!PyArg_ParseTuple(args, "O|i", &capsule, &stated_device)) return NULL;
    wrapped = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    return wrapped ? PyCapsule_New(&wrapper, "dlpack_exchange_api", NULL) : NULL;
}

static PyObject *set_stream(PyObject *module, PyObject *address) {
    (void)module;
    current_stream = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

/* seen(): how often the wrapped interface was asked for a view. */
static PyObject *seen(PyObject *module, PyObject *unused) {
    (void)module;
    (void)unused;
    return PyLong_FromLong(views);
}

static PyMethodDef methods[] = {{"seen", seen, METH_NOARGS, NULL},
                                {"wrap", wrap, METH_VARARGS, NULL},
                                {"set_stream", set_stream, METH_O, NULL},
                                {NULL, NULL, 0, NULL}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "device_tensors", NULL, -1, methods,
                                 NULL, NULL, NULL, NULL};
static PyTypeObject type = {PyVarObject_HEAD_INIT(NULL, 0).tp_name = "device_tensors.Tensor",
                            .tp_basicsize = sizeof(Tensor),
                            .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
                            .tp_new = tensor_new};

PyMODINIT_FUNC PyInit_device_tensors(void) {
    PyObject *module = PyModule_Create(&definition);
    PyObject *capsule = PyCapsule_New(&newer, "dlpack_exchange_api", NULL);
    if (!module || !capsule || PyType_Ready(&type) < 0 ||
        PyDict_SetItemString(type.tp_dict, "__dlpack_c_exchange_api__", capsule) < 0 ||
        PyModule_AddObjectRef(module, "Tensor", (PyObject *)&type) < 0)
        return NULL;
    return module;
}
