/* cowengine.h: copy-on-write volumes, snapshots and exact lists of changes, for programs in C and C++.
 *
 * Link with `pkg-config --cflags --libs cowengine`; `python -m cowengine.capi` prints the folder for PKG_CONFIG_PATH.
 * The whole guide: docs/c-interface.md.
 *
 * Units      Offsets, lengths and sizes are bytes. Strings are UTF-8 that ends in NUL; paths are the file system's bytes.
 * Status     Every function that returns an int returns 0 (COWENGINE_OK) or one of cowengine_status. A call that fails
 *            leaves its results untouched, and its handle knows why: cowengine_error, cowengine_errno.
 * Threads    Any thread may call anything at any time, also on the same handle. Two exceptions: a handle that is being
 *            created or freed is used by no other thread. cowengine_pread and cowengine_pwrite run in parallel and take
 *            no lock for long; writes that touch the same block wait for each other. The others take turns.
 * Durability What a call has made durable when it returns stands with it; nothing else is. A crash at any instant leaves
 *            the state of the last flush, snapshot, rollback, deletion or close that returned, or of the one running.
 * Fork       In the child of a fork every call on every handle, and cowengine_new, returns COWENGINE_CLOSED. Fork
 *            before the first cowengine_new, or call exec.
 * Exit       exit() and a return from main close what is still open, as cowengine_close does; _exit and signals do not.
 */
#ifndef COWENGINE_H
#define COWENGINE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What this header describes. It grows by one whenever a program that was compiled with it could not go on working;
 * new functions and new statuses do not change it. */
enum {
    COWENGINE_ABI = 1
};

/* What calls return. Those above 0 are the `code` of the exception of the same name in cowengine.errors, and are never
 * given another meaning. Treat an unknown one as a failure. */
enum cowengine_status {
    COWENGINE_OK = 0,
    COWENGINE_ERROR = 1,                 /* none of those below */
    COWENGINE_FORMAT = 2,                /* not a volume, or one that breaks its format: check the path */
    COWENGINE_UNSUPPORTED_VERSION = 3,   /* made by a newer cowengine; or a library of another ABI: upgrade */
    COWENGINE_CORRUPTION = 4,            /* a checksum or an invariant does not hold: restore from a backup */
    COWENGINE_OUT_OF_RANGE = 5,          /* an argument that cannot be; nothing was done: fix the call */
    COWENGINE_EXISTS = 6,                /* the name is taken */
    COWENGINE_NOT_FOUND = 7,             /* no such volume or snapshot; or the snapshot was deleted */
    COWENGINE_BUSY = 8,                  /* owned by another process or handle: try again later */
    COWENGINE_NO_SPACE = 9,              /* the file system is full; nothing acknowledged was lost: delete snapshots */
    COWENGINE_READ_ONLY = 10,            /* opened read-only, or a snapshot */
    COWENGINE_POISONED = 11,             /* a sync or commit failed: close, mend the disk, open again */
    COWENGINE_FULL_BACKUP_REQUIRED = 12, /* no exact list of changes exists for this base */
    COWENGINE_RETENTION = 13,            /* protected until a date that has not come */
    COWENGINE_CLOSED = 19,               /* not open, closed, or in the child of a fork */
    COWENGINE_STORAGE = 21,              /* the file system failed a call; cowengine_errno says how */
    COWENGINE_ANCHOR = 22,               /* the snapshot is an anchor: its data was given up */
    COWENGINE_NO_MEMORY = -1,            /* memory ran out */
    COWENGINE_INTERNAL = -2,             /* a fault of cowengine: please report the text of the error */
    COWENGINE_UNAVAILABLE = -3           /* the library could not be started; see cowengine_error(NULL, ...) */
};

/* For cowengine_open. */
enum {
    COWENGINE_OPEN_READ_ONLY = 1         /* writes nothing to the file */
};

/* A volume or a snapshot of one: made by cowengine_new, opened once, closed, freed. */
typedef struct cowengine_handle cowengine_handle;

/* A contiguous range of bytes. */
typedef struct {
    uint64_t offset;
    uint64_t length;
} cowengine_extent;

/* What a snapshot is. */
typedef struct {
    uint64_t id;          /* its number in the volume; never reused */
    uint64_t epoch;       /* the epoch that it ended */
    uint64_t size;        /* bytes, of the volume at that point */
    uint64_t created_ns;  /* Unix time in nanoseconds */
    char name[256];       /* 1 to 255 bytes */
    char change_id[96];   /* names this state for ever, also in copies of the file: keep it with a backup */
} cowengine_snapshot_info;

/* The ABI of the library that is loaded, to be compared with COWENGINE_ABI. Cannot fail; starts nothing. */
uint32_t cowengine_abi(void);

/* Makes a handle that is not open yet; `abi` is COWENGINE_ABI. The first call of a process starts the engine, which
 * takes some tenths of a second. COWENGINE_UNSUPPORTED_VERSION if the library has another ABI, COWENGINE_UNAVAILABLE,
 * COWENGINE_NO_MEMORY; then *handle is NULL. */
int cowengine_new(uint32_t abi, cowengine_handle **handle);

/* Closes the handle if it is open, without saying whether that went well, and frees it. NULL is ignored. */
void cowengine_free(cowengine_handle *handle);

/* Copies the text of the last failure of this handle, at most `size` bytes of it with the NUL that ends it. Returns the
 * length of the whole text without the NUL, 0 if nothing has failed: if it is not below `size`, the copy was cut. With
 * NULL as handle: why the engine could not be started (COWENGINE_UNAVAILABLE). */
size_t cowengine_error(cowengine_handle *handle, char *text, size_t size);

/* The system's errno of the last failure of this handle; 0 if it has none. */
int cowengine_errno(cowengine_handle *handle);

/* Creates a volume file of `size` bytes, a multiple of 512, and opens it. It takes space only as it is written. Nothing
 * may stand under its name. `block_size`: a power of two from 4096 to 1048576, 0 for the default. Durable. */
int cowengine_create(cowengine_handle *handle, const char *path, uint64_t size, uint32_t block_size);

/* Opens a volume file as its owner, or with COWENGINE_OPEN_READ_ONLY; `flags` is 0 otherwise. */
int cowengine_open(cowengine_handle *handle, const char *path, uint32_t flags);

/* Closes. For a volume: everything written is durable, and its snapshots' handles return COWENGINE_CLOSED from now on;
 * waits for calls that run. If that fails the handle is closed all the same and its error says what was not done. A
 * handle that is closed or was never opened: 0. */
int cowengine_close(cowengine_handle *handle);

/* The size of the volume or snapshot and the size of its blocks, in bytes; each pointer may be NULL. */
int cowengine_geometry(cowengine_handle *handle, uint64_t *size, uint32_t *block_size);

/* Reads exactly `length` bytes from `offset`: all of them or an error, after which the buffer may hold anything. What
 * was never written reads as zeros. COWENGINE_OUT_OF_RANGE past the end. */
int cowengine_pread(cowengine_handle *handle, void *buffer, size_t length, uint64_t offset);

/* Writes exactly `length` bytes at `offset`. All calls see them when it returns, but they are durable only after a
 * later cowengine_flush, cowengine_snapshot or cowengine_close: until then a crash may leave each block old, new or torn.
 * After an error a part of the range may have been written. COWENGINE_OUT_OF_RANGE past the end: nothing was. */
int cowengine_pwrite(cowengine_handle *handle, const void *data, size_t length, uint64_t offset);

/* Whole blocks in the range read as zeros from now on and give their space back; partial ends are unchanged. Counts as
 * a change. Durable as cowengine_pwrite is. */
int cowengine_discard(cowengine_handle *handle, uint64_t offset, uint64_t length);

/* Makes every write and discard durable that returned before the call. */
int cowengine_flush(cowengine_handle *volume);

/* Takes a snapshot. Durable, and so is every write that returned before. `name` is 1 to 255 bytes without '/', unique in
 * the volume. `info` tells what was taken; it may be NULL. */
int cowengine_snapshot(cowengine_handle *volume, const char *name, cowengine_snapshot_info *info);

/* The snapshots, oldest first, from position `start` on: at most `infos_max` of them; *count says how many. */
int cowengine_list_snapshots(cowengine_handle *volume, uint64_t start, cowengine_snapshot_info *infos, size_t infos_max,
                             size_t *count);

/* Opens a snapshot for reading in a handle of its own, which was not opened before. The volume stays open meanwhile.
 * Errors are told by the volume's handle. */
int cowengine_open_snapshot(cowengine_handle *volume, const char *name, cowengine_handle *snapshot);

/* Deletes a snapshot: gone when it returns, durably; then its space is given back. Works on a full file system. Reads of
 * it that run end well, later ones return COWENGINE_NOT_FOUND. */
int cowengine_delete_snapshot(cowengine_handle *volume, const char *name);

/* Makes the live volume what a snapshot is. Durable. Newer snapshots stay; `info` (or NULL) tells of the one that was
 * taken of what it replaces. */
int cowengine_rollback(cowengine_handle *volume, const char *name, cowengine_snapshot_info *info);

/* What was ever written in a range of the volume or snapshot and not discarded: whole blocks (the last one cut at the
 * end), ascending, disjoint; everything else reads as zeros. At most `extents_max` extents (1 or more); *count says how
 * many. For the rest call again with `start` at the end of the last one, until *count is 0. `length` UINT64_MAX means to
 * the end. */
int cowengine_allocated_extents(cowengine_handle *handle, uint64_t start, uint64_t length, cowengine_extent *extents,
                                size_t extents_max, size_t *count);

/* What differs in a range between the volume or snapshot and the snapshot `base`, a name or a change id; otherwise as
 * cowengine_allocated_extents. Writes to a live volume that returned are in it, flushed or not.
 * COWENGINE_FULL_BACKUP_REQUIRED if no exact answer exists. */
int cowengine_changed_extents(cowengine_handle *handle, const char *base, uint64_t start, uint64_t length,
                              cowengine_extent *extents, size_t extents_max, size_t *count);

#ifdef __cplusplus
}
#endif

#endif
