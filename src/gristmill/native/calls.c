/* Bound calls without Python between the arguments and the driver.
 *
 * A Table maps the keys of calls to what they run: a Program (allocate outputs, launch) or any Python
 * callable. Calling it with arguments that it has no entry for, or that need more than values, gives
 * MISS and does nothing: the caller's own path, in Python, is always right.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include "bound.h"
#include "launches.h"
#include "modes.h"
#include "tensors.h"

/* ------------------------------------------------------------------------------------ programs */

/* How a tensor of ours is made: a callable with constant arguments, the first from the call's. */
typedef struct {
  PyObject *function, *arguments, *keywords; /* a tuple of values; a tuple of names or NULL */
  int from; /* the call's argument that is the first; -1: none */
} Maker;

enum { MAX_MADE = 8, MAX_LAUNCHES = 4, MAX_MAKER_ARGUMENTS = 6 };

typedef struct {
  PyObject_HEAD PyObject *owner; /* keeps kernels and constants alive */
  int arguments, given, made, outputs, launches;
  Maker maker[MAX_MADE];
  Launch *launch;
} Program;

static void program_clear(Program *self) {
  for (int i = 0; i < self->made; i++) {
    Py_CLEAR(self->maker[i].function);
    Py_CLEAR(self->maker[i].arguments);
    Py_CLEAR(self->maker[i].keywords);
  }
  Py_CLEAR(self->owner);
}

static int program_traverse(Program *self, visitproc visit, void *arg) {
  for (int i = 0; i < self->made; i++) {
    Py_VISIT(self->maker[i].function);
    Py_VISIT(self->maker[i].arguments);
    Py_VISIT(self->maker[i].keywords);
  }
  Py_VISIT(self->owner);
  Py_VISIT(Py_TYPE(self));
  return 0;
}

static void program_dealloc(Program *self) {
  PyTypeObject *type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  program_clear(self);
  for (int i = 0; i < self->launches; i++) PyMem_Free(self->launch[i].map);
  PyMem_Free(self->launch);
  type->tp_free(self);
  Py_DECREF(type);
}

static int read_map(Map *map, PyObject *given) {
  PyObject *box, *size, *stride;
  if (!PyArg_ParseTuple(given, "iiiiiO!O!O!", &map->offset, &map->slot, &map->type, &map->swizzle,
                        &map->fill, &PyTuple_Type, &box, &PyTuple_Type, &size, &PyTuple_Type,
                        &stride))
    return 0;
  map->rank = (uint32_t)PyTuple_GET_SIZE(box);
  if (map->rank > MAP_RANK || PyTuple_GET_SIZE(size) != map->rank ||
      PyTuple_GET_SIZE(stride) != map->rank) {
    PyErr_SetString(PyExc_ValueError, "a descriptor's block, sizes and strides differ in rank");
    return 0;
  }
  for (uint32_t i = 0; i < map->rank; i++) {
    map->box[i] = (uint32_t)PyLong_AsUnsignedLong(PyTuple_GET_ITEM(box, i));
    map->size[i] = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(size, i));
    map->stride[i] = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(stride, i));
    map->ones[i] = 1;
  }
  return !PyErr_Occurred();
}

static int out_of_room(const char *what) {
  PyErr_Format(PyExc_ValueError, "a launch has more %s than a bound call takes", what);
  return 0;
}

static void add_attribute(Launch *launch, int id, int value) {
  gm_cuda_attribute *attribute = &launch->attributes[launch->config.attribute_count++];
  memset(attribute, 0, sizeof *attribute);
  attribute->id = id;
  attribute->value.number = value;
  if (id == GM_CUDA_LAUNCH_CLUSTER) attribute->value.cluster.y = attribute->value.cluster.z = 1;
}

/* (function, grid, threads, shared bytes, cluster, cooperative, overlap, image, offsets of
 * parameters, addresses as (offset, slot), descriptors). */
static int read_launch(Launch *launch, PyObject *given) {
  unsigned long long function;
  int cluster, cooperative, overlap;
  const char *image;
  Py_ssize_t bytes;
  PyObject *offsets, *patches, *maps;
  gm_cuda_config *config = &launch->config;
  if (!PyArg_ParseTuple(given, "K(III)IIippy#O!O!O!", &function, &config->grid[0], &config->grid[1],
                        &config->grid[2], &config->block[0], &config->shared, &cluster,
                        &cooperative, &overlap, &image, &bytes, &PyTuple_Type, &offsets,
                        &PyTuple_Type, &patches, &PyTuple_Type, &maps))
    return 0;
  launch->function = (void *)(uintptr_t)function;
  config->grid[0] *= (unsigned)cluster;
  config->block[1] = config->block[2] = 1;
  if (overlap) add_attribute(launch, GM_CUDA_LAUNCH_PDL, 1);
  if (cooperative) add_attribute(launch, GM_CUDA_LAUNCH_COOPERATIVE, 1);
  if (cluster != 1) {
    add_attribute(launch, GM_CUDA_LAUNCH_CLUSTER, cluster);
    add_attribute(launch, GM_CUDA_LAUNCH_CLUSTER_POLICY, GM_CUDA_CLUSTER_SPREAD);
  }
  if (bytes > MAX_IMAGE) return out_of_room("bytes of parameters");
  if (PyTuple_GET_SIZE(offsets) > MAX_PARAMETERS) return out_of_room("parameters");
  if (PyTuple_GET_SIZE(patches) > MAX_PATCHES) return out_of_room("tensors");
  if (PyTuple_GET_SIZE(maps) > MAX_MAPS) return out_of_room("descriptors");
  memcpy(launch->image, image, (size_t)bytes);
  launch->bytes = (int)bytes;
  launch->parameters = (int)PyTuple_GET_SIZE(offsets);
  for (int i = 0; i < launch->parameters; i++)
    launch->offset[i] = (uint16_t)PyLong_AsLong(PyTuple_GET_ITEM(offsets, i));
  launch->patches = (int)PyTuple_GET_SIZE(patches);
  for (int i = 0; i < launch->patches; i++)
    if (!PyArg_ParseTuple(PyTuple_GET_ITEM(patches, i), "HH", &launch->patch_offset[i],
                          &launch->patch_slot[i]))
      return 0;
  launch->maps = (int)PyTuple_GET_SIZE(maps);
  if (launch->maps == 0) return !PyErr_Occurred();
  if (driver.encode == NULL) {
    PyErr_SetString(PyExc_OSError, "this driver has no cuTensorMapEncodeTiled");
    return 0;
  }
  launch->map = PyMem_Calloc((size_t)launch->maps, sizeof(Map));
  if (launch->map == NULL) return PyErr_NoMemory() != NULL;
  for (int i = 0; i < launch->maps; i++)
    if (!read_map(&launch->map[i], PyTuple_GET_ITEM(maps, i))) return 0;
  return 1;
}

static int read_maker(Maker *maker, PyObject *given, int arguments) {
  PyObject *function, *values, *keywords;
  if (!PyArg_ParseTuple(given, "OO!Oi", &function, &PyTuple_Type, &values, &keywords, &maker->from))
    return 0;
  if (PyTuple_GET_SIZE(values) > MAX_MAKER_ARGUMENTS || maker->from >= arguments ||
      (maker->from >= 0 && PyTuple_GET_SIZE(values) == 0)) {
    PyErr_SetString(PyExc_ValueError, "a tensor is made from more than a bound call takes");
    return 0;
  }
  maker->function = Py_NewRef(function);
  maker->arguments = Py_NewRef(values);
  maker->keywords = keywords == Py_None ? NULL : Py_NewRef(keywords);
  return 1;
}

/* `makers` make the outputs and then the workspace; slot i of a launch is argument i, slot
 * `arguments` + i what maker i made. With `given`, the last arguments are the outputs. */
static PyObject *program_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  int arguments, outputs, given = 0;
  PyObject *makers, *launches, *owner;
  (void)kwargs;
  if (!PyArg_ParseTuple(args, "iiO!O!O|i", &arguments, &outputs, &PyTuple_Type, &makers,
                        &PyTuple_Type, &launches, &owner, &given))
    return NULL;
  if (driver.launch == NULL) {
    PyErr_SetString(PyExc_OSError, "no driver is open");
    return NULL;
  }
  Py_ssize_t made = PyTuple_GET_SIZE(makers), count = PyTuple_GET_SIZE(launches);
  if (arguments > MAX_ARGUMENTS || made > MAX_MADE || count > MAX_LAUNCHES || given < 0 ||
      given > arguments || outputs < 0 || outputs > made || (outputs == 0) == (given == 0)) {
    PyErr_SetString(PyExc_ValueError, "a call has more tensors or launches than a program takes");
    return NULL;
  }
  Program *self = (Program *)type->tp_alloc(type, 0);
  if (self == NULL) return NULL;
  self->owner = Py_NewRef(owner);
  self->arguments = arguments;
  self->given = given;
  self->outputs = outputs;
  self->launch = PyMem_Calloc((size_t)(count ? count : 1), sizeof(Launch));
  int good = self->launch != NULL || PyErr_NoMemory() != NULL;
  for (Py_ssize_t i = 0; good && i < made; i++, self->made++)
    good = read_maker(&self->maker[i], PyTuple_GET_ITEM(makers, i), arguments);
  for (Py_ssize_t i = 0; good && i < count; i++) {
    self->launches++;
    good = read_launch(&self->launch[i], PyTuple_GET_ITEM(launches, i));
    for (int p = 0; good && p < self->launch[i].patches; p++)
      good = self->launch[i].patch_slot[p] < arguments + made;
    for (int m = 0; good && m < self->launch[i].maps; m++)
      good = self->launch[i].map[m].slot < arguments + made;
    if (!good && !PyErr_Occurred()) out_of_room("slots");
  }
  if (good) return (PyObject *)self;
  Py_DECREF(self);
  return NULL;
}

static PyObject *make(const Maker *maker, PyObject *const *args) {
  PyObject *values[MAX_MAKER_ARGUMENTS];
  Py_ssize_t count = PyTuple_GET_SIZE(maker->arguments);
  for (Py_ssize_t i = 0; i < count; i++) values[i] = PyTuple_GET_ITEM(maker->arguments, i);
  if (maker->from >= 0) values[0] = args[maker->from];
  Py_ssize_t named = maker->keywords == NULL ? 0 : PyTuple_GET_SIZE(maker->keywords);
  return PyObject_Vectorcall(maker->function, values, (size_t)(count - named), maker->keywords);
}

/* What a call returns: one tensor, or a tuple of several. */
static PyObject *returned(PyObject *const *tensors, int count) {
  if (count == 1) return Py_NewRef(tensors[0]);
  PyObject *result = PyTuple_New(count);
  for (int i = 0; result != NULL && i < count; i++)
    PyTuple_SET_ITEM(result, i, Py_NewRef(tensors[i]));
  return result;
}

/* The outputs, after the launches; NULL with an exception, or without one where the call has to take
 * the other path (another device is current, an output that was given is an input too). */
static PyObject *program_run(Program *self, PyObject *const *args, const Key *key) {
  uint64_t slots[MAX_ARGUMENTS + MAX_MADE];
  PyObject *made[MAX_MADE], *result = NULL;
  void *stream = NULL;
  int inputs = self->arguments - self->given;
  for (int i = inputs; i < self->arguments; i++)
    if (key->pointer[i] == 0 || overlaps(key, self->arguments, i)) return NULL;
  if (key->device_type == KIND_CUDA) {
    int device;
    if (driver.current_device(&device) != 0 || device != key->device_id) return NULL;
    if (exchange->stream(key->device_type, key->device_id, &stream) != 0) return NULL;
  }
  memcpy(slots, key->pointer, sizeof(uint64_t) * (size_t)self->arguments);
  int count = 0;
  for (; count < self->made; count++) {
    TensorView view;
    made[count] = make(&self->maker[count], args);
    if (made[count] == NULL) goto done;
    if (exchange->view(made[count], &view) != 0) {
      count++;
      goto done;
    }
    slots[self->arguments + count] = gm_address(&view);
  }
  for (int i = 0; i < self->launches; i++)
    if (!launch_one(&self->launch[i], slots, stream)) goto done;
  result = self->given ? returned(args + inputs, self->given) : returned(made, self->outputs);
done:
  for (int i = 0; i < count; i++) Py_DECREF(made[i]);
  return result;
}

/* -------------------------------------------------------------------------------------- tables */

typedef struct {
  uint64_t hash, age;
  int words;
  uint64_t *word;
  PyObject *kept; /* what the words name by address */
  PyObject *run;  /* a Program or a callable */
} Entry;

typedef struct {
  PyObject_HEAD vectorcallfunc vectorcall;
  int checked; /* whether modes and gradients are looked at */
  uint64_t ages; /* entries that were ever added */
  Py_ssize_t size, used;
  Entry *entry; /* open addressing; `size` is a power of two, or 0 */
} Table;

static PyTypeObject *program_type = NULL;
/* Pairs of an object and the name of its attribute, a hook whose `calls` are empty. */
static PyObject *hooks = NULL, *s_calls = NULL;

static int is_hooked(void) {
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(hooks); i += 2) { /* an object, and its attribute */
    PyObject *hook = PyObject_GetAttr(PyTuple_GET_ITEM(hooks, i), PyTuple_GET_ITEM(hooks, i + 1));
    PyObject *calls = hook == NULL ? NULL : PyObject_GetAttr(hook, s_calls);
    int empty = hook == Py_None ||
                (calls != NULL && PyList_CheckExact(calls) && PyList_GET_SIZE(calls) == 0);
    if (hook == NULL || calls == NULL) PyErr_Clear();
    Py_XDECREF(hook);
    Py_XDECREF(calls);
    if (!empty) return 1;
  }
  return 0;
}

static int read_key(Key *key, PyObject *const *args, Py_ssize_t count, int checked) {
  int grad = checked && is_grad_enabled();
  if (count > MAX_ARGUMENTS) return 0;
  key->words = key->tensors = key->device_type = key->device_id = 0;
  for (int i = 0; i < count; i++)
    if (!put_value(key, i, args[i], grad)) return 0;
  return key->tensors > 0;
}

static uint64_t hash_of(const Key *key) {
  uint64_t hash = 0x9E3779B97F4A7C15ull;
  for (int i = 0; i < key->words; i++) {
    hash ^= key->word[i];
    hash *= 0xFF51AFD7ED558CCDull;
    hash ^= hash >> 32;
  }
  return hash;
}

static Entry *find(const Table *self, const Key *key, uint64_t hash) {
  if (self->size == 0) return NULL;
  for (uint64_t at = hash & (uint64_t)(self->size - 1);; at = (at + 1) & (uint64_t)(self->size - 1)) {
    Entry *entry = &self->entry[at];
    if (entry->run == NULL) return entry;
    if (entry->hash == hash && entry->words == key->words &&
        memcmp(entry->word, key->word, sizeof(uint64_t) * (size_t)key->words) == 0)
      return entry;
  }
}

static PyObject *table_call(PyObject *object, PyObject *const *args, size_t flags,
                            PyObject *names) {
  Table *self = (Table *)object;
  Py_ssize_t count = PyVectorcall_NARGS(flags);
  Key key;
  if (names != NULL || self->used == 0 || (self->checked && !is_plain()) ||
      !read_key(&key, args, count, self->checked))
    return Py_NewRef(miss);
  Entry *entry = find(self, &key, hash_of(&key));
  if (entry == NULL || entry->run == NULL) return Py_NewRef(miss);
  PyObject *run = Py_NewRef(entry->run), *result; /* the table may be cleared meanwhile */
  if (Py_TYPE(run) == program_type) {
    result = is_hooked() ? NULL : program_run((Program *)run, args, &key);
    if (result == NULL && !PyErr_Occurred()) result = Py_NewRef(miss);
  } else {
    result = PyObject_Vectorcall(run, args, (size_t)count, NULL);
  }
  Py_DECREF(run);
  return result;
}

static void let_go(Entry *entry) {
  PyMem_Free(entry->word);
  Py_XDECREF(entry->kept);
  Py_XDECREF(entry->run);
}

/* Into `size` slots, all but what is older than `age`. */
static int rebuild(Table *self, Py_ssize_t size, uint64_t age) {
  Entry *old = self->entry, *entries = PyMem_Calloc((size_t)size, sizeof(Entry));
  Py_ssize_t before = self->size;
  if (entries == NULL) return PyErr_NoMemory() != NULL;
  self->used = 0;
  for (Py_ssize_t i = 0; i < before; i++) {
    if (old[i].run == NULL || old[i].age < age) continue;
    uint64_t at = old[i].hash & (uint64_t)(size - 1);
    while (entries[at].run != NULL) at = (at + 1) & (uint64_t)(size - 1);
    entries[at] = old[i];
    self->used++;
  }
  self->entry = entries;
  self->size = size;
  for (Py_ssize_t i = 0; i < before; i++)
    if (old[i].run != NULL && old[i].age < age) let_go(&old[i]); /* last: it may call */
  PyMem_Free(old);
  return 1;
}

PyDoc_STRVAR(table_add_doc,
             "add(arguments, run) -> bool\n\nRun `run` for calls like the one with these arguments "
             "from now on. False: such\narguments have no key.");

static PyObject *table_add(Table *self, PyObject *args) {
  PyObject *values, *run;
  Key key;
  if (!PyArg_ParseTuple(args, "O!O", &PyTuple_Type, &values, &run)) return NULL;
  Py_ssize_t count = PyTuple_GET_SIZE(values);
  if (!read_key(&key, &PyTuple_GET_ITEM(values, 0), count, self->checked)) Py_RETURN_FALSE;
  PyObject *kept = PyList_New(0); /* first: it may collect garbage, whose destructors may come here */
  uint64_t *word = PyMem_Malloc(sizeof(uint64_t) * (size_t)key.words);
  int good = kept != NULL && (word != NULL || PyErr_NoMemory() != NULL);
  for (Py_ssize_t i = 0; good && i < count; i++)
    good = key.kept[i] == NULL || PyList_Append(kept, key.kept[i]) == 0;
  if (!good || word == NULL) {
    Py_XDECREF(kept);
    PyMem_Free(word);
    return NULL;
  }
  memcpy(word, key.word, sizeof(uint64_t) * (size_t)key.words);
  uint64_t hash = hash_of(&key);
  Entry *entry = find(self, &key, hash);
  if (entry != NULL && entry->run != NULL) {
    PyObject *old = entry->run;
    entry->run = Py_NewRef(run);
    PyMem_Free(word);
    Py_DECREF(kept);
    Py_DECREF(old); /* last: its destructor may come here too */
    Py_RETURN_TRUE;
  }
  if (4 * (self->used + 1) > 3 * self->size) {
    if (!rebuild(self, self->size ? 2 * self->size : 16, 0)) { /* lets go of nothing */
      PyMem_Free(word);
      Py_DECREF(kept);
      return NULL;
    }
    entry = find(self, &key, hash);
  }
  *entry = (Entry){hash, self->ages++, key.words, word, kept, Py_NewRef(run)};
  self->used++;
  Py_RETURN_TRUE;
}

PyDoc_STRVAR(table_knows_doc,
             "knows(arguments) -> bool\n\nWhether there is an entry for calls like the one with these "
             "arguments.");

static PyObject *table_knows(Table *self, PyObject *args) {
  PyObject *values;
  Key key;
  if (!PyArg_ParseTuple(args, "O!", &PyTuple_Type, &values)) return NULL;
  if (!read_key(&key, &PyTuple_GET_ITEM(values, 0), PyTuple_GET_SIZE(values), self->checked))
    Py_RETURN_FALSE;
  Entry *entry = find(self, &key, hash_of(&key));
  return PyBool_FromLong(entry != NULL && entry->run != NULL);
}

static int table_clear(Table *self) {
  Entry *entries = self->entry;
  Py_ssize_t size = self->size;
  self->entry = NULL; /* first: what is let go may call */
  self->size = self->used = 0;
  for (Py_ssize_t i = 0; i < size; i++) let_go(&entries[i]);
  PyMem_Free(entries);
  return 0;
}

static int table_traverse(Table *self, visitproc visit, void *arg) {
  for (Py_ssize_t i = 0; i < self->size; i++) {
    Py_VISIT(self->entry[i].kept);
    Py_VISIT(self->entry[i].run);
  }
  Py_VISIT(Py_TYPE(self));
  return 0;
}

static void table_dealloc(Table *self) {
  PyTypeObject *type = Py_TYPE(self);
  PyObject_GC_UnTrack(self);
  table_clear(self);
  type->tp_free(self);
  Py_DECREF(type);
}

static PyObject *table_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  static char *names[] = {"checked", NULL};
  int checked = 1;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$p", names, &checked)) return NULL;
  if (exchange == NULL || torch_modes.included == NULL) {
    PyErr_SetString(PyExc_RuntimeError, "`set_up` and `set_modes` come first");
    return NULL;
  }
  Table *self = (Table *)type->tp_alloc(type, 0);
  if (self == NULL) return NULL;
  self->vectorcall = table_call;
  self->checked = checked;
  return (PyObject *)self;
}

static PyObject *table_empty(Table *self, PyObject *unused) {
  (void)unused;
  table_clear(self);
  Py_RETURN_NONE;
}

PyDoc_STRVAR(table_drop_doc, "drop(count)\n\nForget about as many of the oldest entries.");

static PyObject *table_drop(Table *self, PyObject *argument) {
  Py_ssize_t count = PyLong_AsSsize_t(argument);
  if (count == -1 && PyErr_Occurred()) return NULL;
  uint64_t oldest = UINT64_MAX;
  for (Py_ssize_t i = 0; i < self->size; i++)
    if (self->entry[i].run != NULL && self->entry[i].age < oldest) oldest = self->entry[i].age;
  if (self->used > 0 && count > 0 && !rebuild(self, self->size, oldest + (uint64_t)count))
    return NULL;
  Py_RETURN_NONE;
}

static Py_ssize_t table_length(Table *self) { return self->used; }

static PyMethodDef table_methods[] = {
    {"add", (PyCFunction)table_add, METH_VARARGS, table_add_doc},
    {"knows", (PyCFunction)table_knows, METH_VARARGS, table_knows_doc},
    {"drop", (PyCFunction)table_drop, METH_O, table_drop_doc},
    {"clear", (PyCFunction)table_empty, METH_NOARGS, "clear()\n\nForget every entry."},
    {NULL, NULL, 0, NULL}};
static PyMemberDef table_members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Table, vectorcall), READONLY, NULL},
    {NULL, 0, 0, 0, NULL}};
static PyType_Slot table_slots[] = {
    {Py_tp_doc, "Table(*, checked=True)\n\nWhat calls run, by the key of their arguments. "
                "`checked`: modes and gradients count."},
    {Py_tp_new, table_new},           {Py_tp_dealloc, table_dealloc},
    {Py_tp_call, PyVectorcall_Call},  {Py_tp_traverse, table_traverse},
    {Py_tp_clear, table_clear},       {Py_tp_methods, table_methods},
    {Py_tp_members, table_members},   {Py_sq_length, table_length},
    {0, NULL}};
static PyType_Spec table_spec = {
    "gristmill.native.Table", sizeof(Table), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL, table_slots};

static PyType_Slot program_slots[] = {
    {Py_tp_doc, "Program(arguments, outputs, makers, launches, owner, given=0)\n\nAllocations and "
                "launches. `given`: as many of the last arguments\nare the outputs."},
    {Py_tp_new, program_new},
    {Py_tp_dealloc, program_dealloc},
    {Py_tp_traverse, program_traverse}, /* no tp_clear: cycles end at a table or a function */
    {0, NULL}};
static PyType_Spec program_spec = {"gristmill.native.Program", sizeof(Program), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, program_slots};

/* -------------------------------------------------------------------------------------- module */

/* What was here before is let go after. */
static void keep(PyObject **place, PyObject *value) {
  PyObject *before = *place;
  *place = Py_NewRef(value);
  Py_XDECREF(before);
}

PyDoc_STRVAR(set_up_doc,
             "set_up(exchange, tensor, parameter, is_neg, requires_grad, "
             "increment_version,\nforward_mode)\n\nWhat torch has to say: DLPack's exchange table (a "
             "capsule), the two tensor classes, the\ndescriptors of two members, what tells autograd "
             "of writes, the names of forward mode.");


static PyObject *set_up(PyObject *module, PyObject *args) {
  PyObject *capsule, *tensor, *parameter, *negated, *needs, *increment, *forward;
  (void)module;
  if (!PyArg_ParseTuple(args, "OO!O!O!O!OO!", &capsule, &PyType_Type, &tensor, &PyType_Type,
                        &parameter, &PyMethodDescr_Type, &negated, &PyGetSetDescr_Type, &needs,
                        &increment, &PyDict_Type, &forward))
    return NULL;
  Exchange *found = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
  if (found == NULL) return NULL;
  found = gm_known_exchange(found);
  PyMethodDef *method = ((PyMethodDescrObject *)negated)->d_method;
  if (found == NULL || method->ml_flags != METH_NOARGS) {
    PyErr_SetString(PyExc_ImportError, "torch's tensors have another C interface");
    return NULL;
  }
  is_negated = method->ml_meth;
  requires_grad = ((PyGetSetDescrObject *)needs)->d_getset;
  keep((PyObject **)&tensor_type, tensor);
  keep((PyObject **)&parameter_type, parameter);
  keep(&increment_version, increment);
  keep(&forward_mode, forward);
  exchange = found;
  Py_RETURN_NONE;
}

PyDoc_STRVAR(set_modes_doc,
             "set_modes(library, functions_library, included, excluded)\n\nWhere torch keeps its "
             "modes: two libraries that are loaded, the dispatch key sets of\nwhich none may be "
             "included, and the one that has to be excluded.");

static PyObject *set_modes(PyObject *module, PyObject *args) {
  const char *core, *functions;
  PyObject *included;
  unsigned long long excluded;
  (void)module;
  if (!PyArg_ParseTuple(args, "ssO!K", &core, &functions, &PyTuple_Type, &included, &excluded))
    return NULL;
  if (!find_modes(core, functions, included, excluded)) return NULL;
  Py_RETURN_NONE;
}

PyDoc_STRVAR(modes_doc,
             "modes() -> (bool, bool)\n\nWhether a call here is plain (no mode, autocast, function "
             "transform or tracing), and\nwhether gradients are recorded.");

static PyObject *modes(PyObject *module, PyObject *unused) {
  (void)module;
  (void)unused;
  return Py_BuildValue("NN", PyBool_FromLong(is_plain()), PyBool_FromLong(is_grad_enabled()));
}

PyDoc_STRVAR(open_driver_doc,
             "open_driver(path, hooks)\n\nLaunch through this library, where hooks have no calls: "
             "pairs of an object and the\nname of the attribute that has a hook.");

static PyObject *set_driver(PyObject *module, PyObject *args) {
  const char *path;
  PyObject *pairs;
  (void)module;
  if (!PyArg_ParseTuple(args, "sO!", &path, &PyTuple_Type, &pairs) || !open_driver(path))
    return NULL;
  keep(&hooks, pairs);
  Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"set_up", set_up, METH_VARARGS, set_up_doc},
    {"set_modes", set_modes, METH_VARARGS, set_modes_doc},
    {"modes", modes, METH_NOARGS, modes_doc},
    {"open_driver", set_driver, METH_VARARGS, open_driver_doc},
    {"hasten", hasten, METH_O, hasten_doc},
    {NULL, NULL, 0, NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_calls", NULL, -1, methods,
                                        NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__calls(void) {
  PyObject *module = PyModule_Create(&definition);
  if (module == NULL) return NULL;
  s_calls = PyUnicode_InternFromString("calls");
  s_call = PyUnicode_InternFromString("__call__");
  s_out = PyUnicode_InternFromString("out");
  s_level = PyUnicode_InternFromString("_current_level");
  miss = PyObject_CallNoArgs((PyObject *)&PyBaseObject_Type);
  table_type = (PyTypeObject *)PyType_FromSpec(&table_spec);
  program_type = (PyTypeObject *)PyType_FromSpec(&program_spec);
  bound_type = (PyTypeObject *)PyType_FromSpec(&bound_spec);
  if (s_calls == NULL || s_call == NULL || s_out == NULL || s_level == NULL || miss == NULL ||
      table_type == NULL || program_type == NULL || bound_type == NULL ||
      PyModule_AddObjectRef(module, "MISS", miss) < 0 ||
      PyModule_AddObjectRef(module, "Table", (PyObject *)table_type) < 0 ||
      PyModule_AddObjectRef(module, "Bound", (PyObject *)bound_type) < 0 ||
      PyModule_AddObjectRef(module, "Program", (PyObject *)program_type) < 0) {
    Py_DECREF(module);
    return NULL;
  }
  return module;
}
