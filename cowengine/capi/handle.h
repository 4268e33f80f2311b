/* Between handle.c and exports.py: neither is for anybody else. */
#ifndef COWENGINE_CAPI_HANDLE_H
#define COWENGINE_CAPI_HANDLE_H

#include "cowengine.h"

/* Called by Python. */
void ce_bind(cowengine_handle *handle, uintptr_t table, uintptr_t path, uintptr_t root, uint64_t size, int writable);
void ce_unbind(cowengine_handle *handle);
void ce_fail(cowengine_handle *handle, int number, const char *text);

/* Called by C. Whether Python may be called for this handle: a status. */
int ce_enter(cowengine_handle *handle);

/* Written in Python. */
int py_ready(void);
int py_settle(cowengine_handle *handle, int status);
int py_trim(cowengine_handle *handle);
int py_release(cowengine_handle *handle);
int py_close_all(void);

#endif
