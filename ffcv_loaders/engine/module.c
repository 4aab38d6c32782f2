/* What Python finds when it loads the library: a module without functions. native.py binds them through ctypes, which
 * calls them without the interpreter lock. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_engine", NULL, -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__engine(void) {
    return PyModule_Create(&module);
}
