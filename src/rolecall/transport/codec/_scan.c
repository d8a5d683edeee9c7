/* Whether a value holds nothing but exact None, bool, int, float, str, list and dict (see native.py, which has the same
 * function in Python). It allocates nothing and runs no Python code, so that no other thread changes the value meanwhile:
 * it never gives up the GIL, and a free-threaded interpreter takes its GIL back for a module that does not declare more.
 */
#include <Python.h>

enum { NATIVE, TUPLES, FOREIGN };

#define DEEPEST 256 /* levels of recursion; each takes less than 100 bytes of the C stack */

static inline int
is_scalar(PyObject *value)
{
    PyTypeObject *kind = Py_TYPE(value);
    return kind == &PyUnicode_Type || kind == &PyLong_Type || kind == &PyFloat_Type || kind == &PyBool_Type ||
           value == Py_None;
}

static int items_are_native(PyObject *sequence, long room, Py_ssize_t *left);

/* `room`: levels of containers that may follow; `left`: items that may follow, this one not among them. */
static int
is_native(PyObject *value, long room, Py_ssize_t *left)
{
    if (is_scalar(value)) {
        return 1;
    }
    if (room <= 0) {
        return 0;
    }
    if (PyList_CheckExact(value)) {
        return items_are_native(value, room - 1, left);
    }
    if (!PyDict_CheckExact(value) || (*left -= PyDict_GET_SIZE(value)) < 0) {
        return 0;
    }
    PyObject *key, *item;
    Py_ssize_t at = 0;
    while (PyDict_Next(value, &at, &key, &item)) {
        if (!is_scalar(key) || !is_native(item, room - 1, left)) {
            return 0;
        }
    }
    return 1;
}

static int
items_are_native(PyObject *sequence, long room, Py_ssize_t *left)
{
    Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence);
    PyObject **items = PySequence_Fast_ITEMS(sequence);
    if ((*left -= count) < 0) {
        return 0;
    }
    for (Py_ssize_t at = 0; at < count; at++) {
        if (!is_scalar(items[at]) && !is_native(items[at], room, left)) {
            return 0;
        }
    }
    return 1;
}

static int
items_are_tuples(PyObject *sequence, long room, Py_ssize_t *left)
{
    Py_ssize_t count = PySequence_Fast_GET_SIZE(sequence);
    PyObject **items = PySequence_Fast_ITEMS(sequence);
    if (room <= 0 || (*left -= count) < 0) {
        return 0;
    }
    for (Py_ssize_t at = 0; at < count; at++) {
        if (!PyTuple_CheckExact(items[at]) || !items_are_native(items[at], room - 1, left)) {
            return 0;
        }
    }
    return 1;
}

static PyObject *
scan(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "scan takes a value, levels and items");
        return NULL;
    }
    PyObject *value = args[0];
    long room = PyLong_AsLong(args[1]);
    Py_ssize_t left = PyLong_AsSsize_t(args[2]);
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (room > DEEPEST) {
        PyErr_Format(PyExc_ValueError, "%ld levels are more than %d", room, DEEPEST);
        return NULL;
    }
    int found;
    if (!PyList_CheckExact(value) && !PyTuple_CheckExact(value)) {
        found = is_native(value, room, &left) ? NATIVE : FOREIGN;
    } else if (PySequence_Fast_GET_SIZE(value) && PyTuple_CheckExact(PySequence_Fast_GET_ITEM(value, 0))) {
        found = items_are_tuples(value, room - 1, &left) ? TUPLES : FOREIGN;
    } else {
        found = room > 0 && items_are_native(value, room - 1, &left) ? NATIVE : FOREIGN;
    }
    return PyLong_FromLong(found);
}

static PyMethodDef methods[] = {
    {"scan", (PyCFunction)(void (*)(void))scan, METH_FASTCALL, "As rolecall.transport.codec.native.scan."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_scan", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC
PyInit__scan(void)
{
    return PyModuleDef_Init(&module);
}
