/* Handles, the data path and the start of the engine: what of the C interface must not wait for Python.
 *
 * Reads and writes go through the function table of cowengine.core.calltable and need neither the GIL nor an object.
 * The management calls are written in Python (exports.py); declarations.py makes their C side from cowengine.h.
 *
 * Threads   A handle's table, path and root are set once, before `state` says open, and live until it is freed. Its
 *           mutex guards the error. `handles_mutex` guards the list of handles and is held by whoever forks.
 * Fork      The child has the parent's descriptors and a Python that nobody may use. So it closes the first and calls
 *           nothing of the second: `forked` is looked at before anything else.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#pragma GCC visibility push(default)
#include "cowengine.h"
#pragma GCC visibility pop
#include "calltable.h"
#include "handle.h"

enum { ERROR_BYTES = 1024, PATH_BYTES = 4096 };
enum state { NEW, OPEN, CLOSED };
enum start { NOT_STARTED, STARTED, FAILED };

struct cowengine_handle {
    const calltable_t *table;
    void *path;
    void *root;
    uint64_t snapshot_size;             /* UINT64_MAX: the live volume, which knows its own */
    int writable;
    atomic_int state;
    pthread_mutex_t mutex;
    int error_number;
    char error[ERROR_BYTES];
    cowengine_handle *next, *previous;
};

static const char FORKED[] = "this is the child of a fork: the engine belongs to the parent; fork before the first"
                             " cowengine_new, or call exec";

static atomic_int forked;
static pthread_mutex_t handles_mutex = PTHREAD_MUTEX_INITIALIZER;
static cowengine_handle *handles;
static pthread_mutex_t start_mutex = PTHREAD_MUTEX_INITIALIZER;
static enum start started;
static char start_error[ERROR_BYTES];

/* -- fork and exit -------------------------------------------------------------------------------------------------- */
static void before_fork(void) {
    pthread_mutex_lock(&handles_mutex);
}

static void after_fork_in_parent(void) {
    pthread_mutex_unlock(&handles_mutex);
}

static void after_fork_in_child(void) {
    cowengine_handle *handle;
    atomic_store(&forked, 1);
    pthread_mutex_unlock(&handles_mutex);
    for (handle = handles; handle != NULL; handle = handle->next)
        if (atomic_load(&handle->state) == OPEN && handle->snapshot_size == UINT64_MAX)
            close(handle->table->descriptor(handle->path));
}

static void at_exit(void) {
    if (!atomic_load(&forked) && Py_IsInitialized())
        py_close_all();
}

/* -- start ---------------------------------------------------------------------------------------------------------- */
/* The folder that holds the package this library is a part of; 0 if it is not known. */
static int find_site(char site[PATH_BYTES]) {
    Dl_info info;
    int depth;
    if (dladdr((void *)&handles, &info) == 0 || realpath(info.dli_fname, site) == NULL)
        return 0;
    for (depth = 0; depth < 3; depth++) {   /* cowengine/capi/libcowengine.so */
        char *slash = strrchr(site, '/');
        if (slash == NULL)
            return 0;
        *slash = 0;
    }
    return 1;
}

/* The interpreter whose packages to use: the one that is named, else that of the virtual environment around the site. */
static int find_interpreter(const char *site, char python[PATH_BYTES + 32]) {
    const char *named = secure_getenv("COWENGINE_PYTHON");
    char folder[PATH_BYTES], marker[PATH_BYTES + 32];
    char *slash;
    if (named != NULL && strlen(named) < PATH_BYTES) {
        strcpy(python, named);
        return 1;
    }
    strcpy(folder, site);
    while ((slash = strrchr(folder, '/')) != NULL) {
        snprintf(marker, sizeof marker, "%s/pyvenv.cfg", folder);
        if (access(marker, F_OK) == 0) {
            snprintf(python, PATH_BYTES + 32, "%s/bin/python3", folder);
            return 1;
        }
        *slash = 0;
    }
    return 0;
}

/* Starts an interpreter that listens to nothing of the program's surroundings: no signals, no locale, no variables. */
static int initialize(const char *site) {
    char python[PATH_BYTES + 32];
    PyPreConfig before;
    PyConfig config;
    PyStatus status;
    int found = find_interpreter(site, python);
    if (found && access(python, X_OK) != 0) {
        snprintf(start_error, sizeof start_error, "there is no interpreter %.900s; set COWENGINE_PYTHON to one", python);
        return 0;
    }
    PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1;
    status = Py_PreInitialize(&before);
    if (!PyStatus_Exception(status)) {
        PyConfig_InitIsolatedConfig(&config);
        if (found)
            status = PyConfig_SetBytesString(&config, &config.program_name, python);
        if (!PyStatus_Exception(status))
            status = Py_InitializeFromConfig(&config);
        PyConfig_Clear(&config);
    }
    if (PyStatus_Exception(status)) {
        snprintf(start_error, sizeof start_error, "Python cannot be started: %s",
                 status.err_msg != NULL ? status.err_msg : "it wants to exit");
        return 0;
    }
    PyEval_SaveThread();
    return 1;
}

/* Puts the site on the module path and imports what everything else needs. The GIL is held. */
static int import_engine(const char *site, int first) {
    PyObject *path = PySys_GetObject("path");
    PyObject *entry = PyUnicode_DecodeFSDefault(site);
    PyObject *module = NULL, *kind, *value, *trace, *text;
    if (path != NULL && entry != NULL && PyList_Insert(path, first ? 0 : PyList_GET_SIZE(path), entry) == 0)
        module = PyImport_ImportModule("_cffi_backend");
    if (module != NULL) {
        Py_DECREF(module);
        module = PyImport_ImportModule("cowengine.volume");
    }
    Py_XDECREF(entry);
    if (module != NULL) {
        Py_DECREF(module);
        return 1;
    }
    PyErr_Fetch(&kind, &value, &trace);
    text = value != NULL ? PyObject_Str(value) : NULL;
    snprintf(start_error, sizeof start_error,
             "Python has started, but not cowengine: %s; set COWENGINE_PYTHON to the interpreter that it was installed"
             " for", text != NULL ? PyUnicode_AsUTF8(text) : "no reason is known");
    Py_XDECREF(text);
    Py_XDECREF(kind);
    Py_XDECREF(value);
    Py_XDECREF(trace);
    return 0;
}

static int start(void) {
    char site[PATH_BYTES];
    Dl_info info;
    PyGILState_STATE gil;
    int first = !Py_IsInitialized(), imported;
    if (!find_site(site)) {
        strcpy(start_error, "the library cannot find the file that it was loaded from");
        return 0;
    }
    /* Extension modules expect Python's symbols to be global, but a program may have loaded this library as local. */
    if (dladdr((void *)&Py_IsInitialized, &info) != 0)
        dlopen(info.dli_fname, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
    if (first && !initialize(site))
        return 0;
    gil = PyGILState_Ensure();
    imported = import_engine(site, first);
    PyGILState_Release(gil);
    if (!imported)
        return 0;
    if (py_ready() != 1) {
        strcpy(start_error, "the Python part of the library could not be started; stderr says why");
        return 0;
    }
    if (pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) != 0 || atexit(at_exit) != 0) {
        strcpy(start_error, "no memory");
        return 0;
    }
    return 1;
}

static int start_once(void) {
    int status;
    pthread_mutex_lock(&start_mutex);
    if (started == NOT_STARTED)
        started = start() ? STARTED : FAILED;
    status = started == STARTED ? COWENGINE_OK : COWENGINE_UNAVAILABLE;
    pthread_mutex_unlock(&start_mutex);
    return status;
}

/* -- handles -------------------------------------------------------------------------------------------------------- */
uint32_t cowengine_abi(void) {
    return COWENGINE_ABI;
}

int cowengine_new(uint32_t abi, cowengine_handle **handle) {
    cowengine_handle *made;
    int status;
    if (handle == NULL)
        return COWENGINE_OUT_OF_RANGE;
    *handle = NULL;
    if (abi != COWENGINE_ABI)
        return COWENGINE_UNSUPPORTED_VERSION;
    if (atomic_load(&forked))
        return COWENGINE_CLOSED;
    status = start_once();
    if (status != COWENGINE_OK)
        return status;
    made = calloc(1, sizeof *made);
    if (made == NULL)
        return COWENGINE_NO_MEMORY;
    pthread_mutex_init(&made->mutex, NULL);
    pthread_mutex_lock(&handles_mutex);
    made->next = handles;
    if (handles != NULL)
        handles->previous = made;
    handles = made;
    pthread_mutex_unlock(&handles_mutex);
    *handle = made;
    return COWENGINE_OK;
}

void cowengine_free(cowengine_handle *handle) {
    if (handle == NULL)
        return;
    if (!atomic_load(&forked))
        py_release(handle);
    pthread_mutex_lock(&handles_mutex);
    if (handle->previous != NULL)
        handle->previous->next = handle->next;
    else
        handles = handle->next;
    if (handle->next != NULL)
        handle->next->previous = handle->previous;
    pthread_mutex_unlock(&handles_mutex);
    free(handle);
}

void ce_bind(cowengine_handle *handle, uintptr_t table, uintptr_t path, uintptr_t root, uint64_t size, int writable) {
    handle->table = (const calltable_t *)table;
    handle->path = (void *)path;
    handle->root = (void *)root;
    handle->snapshot_size = size;
    handle->writable = writable;
    atomic_store(&handle->state, OPEN);
}

void ce_unbind(cowengine_handle *handle) {
    atomic_store(&handle->state, CLOSED);
}

void ce_fail(cowengine_handle *handle, int number, const char *text) {
    pthread_mutex_lock(&handle->mutex);
    handle->error_number = number;
    snprintf(handle->error, sizeof handle->error, "%s", text);
    pthread_mutex_unlock(&handle->mutex);
}

int ce_enter(cowengine_handle *handle) {
    if (handle == NULL)
        return COWENGINE_OUT_OF_RANGE;
    return atomic_load_explicit(&forked, memory_order_relaxed) ? COWENGINE_CLOSED : COWENGINE_OK;
}

size_t cowengine_error(cowengine_handle *handle, char *text, size_t size) {
    pthread_mutex_t *mutex = handle != NULL ? &handle->mutex : &start_mutex;
    const char *error = handle != NULL ? handle->error : start_error;
    size_t length;
    if (atomic_load(&forked))
        return (size_t)snprintf(text, size, "%s", FORKED);
    pthread_mutex_lock(mutex);
    length = (size_t)snprintf(text, size, "%s", error);
    pthread_mutex_unlock(mutex);
    return length;
}

int cowengine_errno(cowengine_handle *handle) {
    int number;
    int status = ce_enter(handle);
    if (status != COWENGINE_OK)
        return status == COWENGINE_CLOSED ? EBADF : EINVAL;
    pthread_mutex_lock(&handle->mutex);
    number = handle->error_number;
    pthread_mutex_unlock(&handle->mutex);
    return number;
}

/* -- bytes ---------------------------------------------------------------------------------------------------------- */
static int check_range(cowengine_handle *handle, const char *what, const void *data, size_t length, uint64_t offset) {
    char text[160];
    uint64_t size;
    if (atomic_load_explicit(&handle->state, memory_order_acquire) != OPEN) {
        ce_fail(handle, EBADF, "this handle is not open");
        return COWENGINE_CLOSED;
    }
    size = handle->snapshot_size != UINT64_MAX ? handle->snapshot_size : handle->table->size(handle->path);
    if (length <= size && offset <= size - length && (data != NULL || length == 0))
        return COWENGINE_OK;
    snprintf(text, sizeof text, "%s of %zu bytes at %llu: %s", what, length, (unsigned long long)offset,
             data == NULL ? "the buffer is NULL" : "it does not lie in the volume");
    ce_fail(handle, EINVAL, text);
    return COWENGINE_OUT_OF_RANGE;
}

int cowengine_pread(cowengine_handle *handle, void *buffer, size_t length, uint64_t offset) {
    int status = ce_enter(handle);
    if (status == COWENGINE_OK)
        status = check_range(handle, "read", buffer, length, offset);
    if (status != COWENGINE_OK)
        return status;
    status = handle->table->read(handle->path, handle->root, buffer, length, offset);
    if (status == 0 && handle->table->is_crowded(handle->path))
        py_trim(handle);
    return status != 0 ? py_settle(handle, status) : COWENGINE_OK;
}

int cowengine_pwrite(cowengine_handle *handle, const void *data, size_t length, uint64_t offset) {
    uint64_t done = 0;
    int needed, status = ce_enter(handle);
    if (status == COWENGINE_OK)
        status = check_range(handle, "write", data, length, offset);
    if (status == COWENGINE_OK && !handle->writable) {
        ce_fail(handle, EROFS, "what this handle has open cannot be written");
        status = COWENGINE_READ_ONLY;
    }
    while (status == COWENGINE_OK && done < length) {
        needed = handle->table->write(handle->path, data, length, offset, &done);
        if (needed != 0)
            status = py_settle(handle, needed);
    }
    return status;
}
