/* What a vendor's agent does with cowengine.h, scene by scene: program SCENE PATH. Prints "ok" when all was as it must be.
 *
 * test_c_interface.py compiles it, runs every scene, and looks at what lies on the disk afterwards. */
#define _GNU_SOURCE
#include <cowengine.h>

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BLOCK = 4096, MIB = 1 << 20, ROUNDS = 4, BLOCKS_A_THREAD = 1024 };

#define REQUIRE(condition)                                                       \
    do {                                                                         \
        if (!(condition)) {                                                      \
            fprintf(stderr, "program.c:%d: not so: %s\n", __LINE__, #condition); \
            _exit(1);                                                            \
        }                                                                        \
    } while (0)

/* A status, and if it is another one, what the handle says. */
static void require(cowengine_handle *handle, int line, int status, int wanted) {
    char text[512] = "";
    if (status == wanted)
        return;
    cowengine_error(handle, text, sizeof text);
    fprintf(stderr, "program.c:%d: status %d instead of %d: %s\n", line, status, wanted, text);
    _exit(1);
}

#define GIVES(handle, wanted, call) require(handle, __LINE__, call, wanted)
#define WORKS(handle, call) GIVES(handle, COWENGINE_OK, call)

static cowengine_handle *made(void) {
    cowengine_handle *handle;
    int status = cowengine_new(COWENGINE_ABI, &handle);
    require(NULL, __LINE__, status, COWENGINE_OK);
    return handle;
}

static cowengine_handle *created(const char *path, uint64_t size) {
    cowengine_handle *handle = made();
    WORKS(handle, cowengine_create(handle, path, size, 0));
    return handle;
}

static void says(cowengine_handle *handle, const char *part) {
    char text[512];
    size_t length = cowengine_error(handle, text, sizeof text);
    if (length == 0 || strstr(text, part) == NULL) {
        fprintf(stderr, "the error is \"%s\", without \"%s\"\n", text, part);
        _exit(1);
    }
}

/* -- a session: every call once, on the way it is meant to be used -------------------------------------------------- */
static void session(const char *path) {
    static char data[2 * MIB], seen[2 * MIB];
    cowengine_handle *volume = created(path, 64 * MIB), *monday = made();
    cowengine_snapshot_info info, infos[4];
    cowengine_extent extents[8];
    uint64_t size = 0;
    uint32_t block_size = 0;
    size_t count, i;

    for (i = 0; i < sizeof data; i++)
        data[i] = (char)(i * 31 + i / 251);
    WORKS(volume, cowengine_geometry(volume, &size, &block_size));
    REQUIRE(size == 64 * MIB && block_size == BLOCK);
    WORKS(volume, cowengine_pwrite(volume, data, sizeof data, 1000));
    WORKS(volume, cowengine_pread(volume, seen, sizeof seen, 1000));
    REQUIRE(memcmp(data, seen, sizeof data) == 0);
    WORKS(volume, cowengine_flush(volume));

    WORKS(volume, cowengine_snapshot(volume, "monday", &info));
    REQUIRE(strcmp(info.name, "monday") == 0 && info.id == 1 && info.size == size);
    REQUIRE(info.created_ns > 1600000000000000000u);
    WORKS(volume, cowengine_open_snapshot(volume, "monday", monday));
    WORKS(volume, cowengine_pwrite(volume, "tuesday", 7, 10 * BLOCK));
    WORKS(volume, cowengine_discard(volume, 20 * BLOCK, 2 * BLOCK));
    WORKS(volume, cowengine_changed_extents(volume, info.change_id, 0, UINT64_MAX, extents, 8, &count));
    REQUIRE(count == 2 && extents[0].offset == 10 * BLOCK && extents[0].length == BLOCK);
    REQUIRE(extents[1].offset == 20 * BLOCK && extents[1].length == 2 * BLOCK);
    WORKS(monday, cowengine_allocated_extents(monday, 0, UINT64_MAX, extents, 8, &count));
    REQUIRE(count == 1 && extents[0].offset == 0 && extents[0].length == 2 * MIB + BLOCK);
    WORKS(volume, cowengine_allocated_extents(volume, 0, UINT64_MAX, extents, 1, &count));
    REQUIRE(count == 1 && extents[0].length == 20 * BLOCK);
    WORKS(volume, cowengine_allocated_extents(volume, 20 * BLOCK, 30 * BLOCK, extents, 1, &count));
    REQUIRE(count == 1 && extents[0].offset == 22 * BLOCK && extents[0].length == 28 * BLOCK);
    WORKS(volume, cowengine_allocated_extents(volume, 50 * MIB, UINT64_MAX, extents, 8, &count));
    REQUIRE(count == 0);

    WORKS(monday, cowengine_pread(monday, seen, sizeof seen, 1000));
    REQUIRE(memcmp(data, seen, sizeof data) == 0);
    WORKS(volume, cowengine_snapshot(volume, "tuesday", NULL));
    WORKS(volume, cowengine_list_snapshots(volume, 0, infos, 4, &count));
    REQUIRE(count == 2 && strcmp(infos[0].name, "monday") == 0 && strcmp(infos[1].name, "tuesday") == 0);
    REQUIRE(strcmp(infos[0].change_id, info.change_id) == 0);
    WORKS(volume, cowengine_list_snapshots(volume, 1, infos, 1, &count));
    REQUIRE(count == 1 && infos[0].id == 2);

    WORKS(volume, cowengine_rollback(volume, "monday", &info));
    WORKS(volume, cowengine_pread(volume, seen, sizeof seen, 1000));
    REQUIRE(memcmp(data, seen, sizeof data) == 0 && strstr(info.name, "rollback") != NULL);
    WORKS(volume, cowengine_delete_snapshot(volume, "tuesday"));
    WORKS(monday, cowengine_close(monday));
    GIVES(monday, COWENGINE_CLOSED, cowengine_pread(monday, seen, 1, 0));
    WORKS(volume, cowengine_close(volume));
    WORKS(volume, cowengine_close(volume));
    cowengine_free(monday);
    cowengine_free(volume);
}

/* -- threads: two write and read at once, while a third takes snapshots --------------------------------------------- */
struct half {
    cowengine_handle *volume, *before;
    unsigned number;
};

/* What the block of a half holds after a round; no two of them are alike. */
static void fill(uint32_t block[BLOCK / 4], unsigned number, unsigned place, unsigned round) {
    uint32_t word;
    for (word = 0; word < BLOCK / 4; word++)
        block[word] = ((number * BLOCKS_A_THREAD + place) * (ROUNDS + 1) + round) * 2654435761u + word;
}

static void *write_and_read(void *argument) {
    struct half *half = argument;
    uint32_t block[BLOCK / 4], seen[BLOCK / 4];
    unsigned round, i, place;
    uint64_t offset;
    for (round = 1; round <= ROUNDS; round++)
        for (i = 0; i < BLOCKS_A_THREAD; i++) {
            place = i * 389 % BLOCKS_A_THREAD;
            offset = (uint64_t)(2 * place + half->number) * BLOCK; /* the halves lie interleaved */
            fill(block, half->number, place, round);
            WORKS(half->volume, cowengine_pwrite(half->volume, block, BLOCK, offset));
            WORKS(half->volume, cowengine_pread(half->volume, seen, BLOCK, offset));
            REQUIRE(memcmp(block, seen, BLOCK) == 0);
            fill(block, half->number, place, 0);
            WORKS(half->before, cowengine_pread(half->before, seen, BLOCK, offset));
            REQUIRE(memcmp(block, seen, BLOCK) == 0);
        }
    WORKS(half->volume, cowengine_flush(half->volume));
    return NULL;
}

static void threads(const char *path) {
    cowengine_handle *volume = created(path, 2ull * BLOCKS_A_THREAD * BLOCK), *before = made();
    struct half halves[2];
    pthread_t thread[2];
    uint32_t block[BLOCK / 4];
    char name[32];
    unsigned number, place, taken;
    for (number = 0; number < 2; number++)
        for (place = 0; place < BLOCKS_A_THREAD; place++) {
            fill(block, number, place, 0);
            WORKS(volume, cowengine_pwrite(volume, block, BLOCK, (uint64_t)(2 * place + number) * BLOCK));
        }
    WORKS(volume, cowengine_snapshot(volume, "before", NULL));
    WORKS(volume, cowengine_open_snapshot(volume, "before", before));
    for (number = 0; number < 2; number++) {
        halves[number].volume = volume;
        halves[number].before = before;
        halves[number].number = number;
        REQUIRE(pthread_create(&thread[number], NULL, write_and_read, &halves[number]) == 0);
    }
    for (taken = 0; taken < 10; taken++) {
        snprintf(name, sizeof name, "meanwhile-%u", taken);
        WORKS(volume, cowengine_snapshot(volume, name, NULL));
        if (taken % 3 == 2)
            WORKS(volume, cowengine_delete_snapshot(volume, name));
    }
    REQUIRE(pthread_join(thread[0], NULL) == 0 && pthread_join(thread[1], NULL) == 0);
    cowengine_free(before);
    WORKS(volume, cowengine_close(volume));
    cowengine_free(volume);
}

/* -- the lock of the interpreter: reads and writes in place do not wait for who has it ------------------------------- */
static void *read_and_write(void *argument) {
    struct half *half = argument;
    char block[BLOCK];
    int i;
    for (i = 0; i < 100; i++) {
        WORKS(half->before, cowengine_pread(half->before, block, BLOCK, 0));
        REQUIRE(block[0] == 'a');
        WORKS(half->volume, cowengine_pread(half->volume, block, BLOCK, 0));
        REQUIRE(block[0] == 'b');
        WORKS(half->volume, cowengine_pwrite(half->volume, block, BLOCK, 0));
    }
    return NULL;
}

static void unlocked(const char *path) {
    struct half half = {created(path, MIB), made(), 0};
    int (*acquire)(void), held;
    void (*release)(int held);
    pthread_t thread;
    *(void **)(&acquire) = dlsym(RTLD_DEFAULT, "PyGILState_Ensure");
    *(void **)(&release) = dlsym(RTLD_DEFAULT, "PyGILState_Release");
    REQUIRE(acquire != NULL && release != NULL);
    WORKS(half.volume, cowengine_pwrite(half.volume, "a", 1, 0));
    WORKS(half.volume, cowengine_snapshot(half.volume, "before", NULL));
    WORKS(half.volume, cowengine_open_snapshot(half.volume, "before", half.before));
    WORKS(half.volume, cowengine_pwrite(half.volume, "b", 1, 0));
    held = acquire();
    REQUIRE(pthread_create(&thread, NULL, read_and_write, &half) == 0);
    REQUIRE(pthread_join(thread, NULL) == 0); /* never comes if the thread needs the lock */
    release(held);
    cowengine_free(half.before);
    cowengine_free(half.volume);
}

/* -- errors: each is a status and a text, and leaves all as it was -------------------------------------------------- */
static void refused_before_open(cowengine_handle *volume, const char *path) {
    char byte = 1, few[8];
    size_t length;
    REQUIRE(cowengine_error(volume, few, sizeof few) == 0 && few[0] == 0 && cowengine_errno(volume) == 0);
    GIVES(volume, COWENGINE_CLOSED, cowengine_pread(volume, &byte, 1, 0));
    GIVES(volume, COWENGINE_CLOSED, cowengine_flush(volume));
    GIVES(volume, COWENGINE_NOT_FOUND, cowengine_open(volume, "/nowhere/at/all", 0));
    REQUIRE(cowengine_errno(volume) == ENOENT);
    says(volume, "/nowhere/at/all");
    length = cowengine_error(volume, few, sizeof few);
    REQUIRE(length > sizeof few && strlen(few) == sizeof few - 1);
    REQUIRE(cowengine_error(volume, NULL, 0) == length);
    GIVES(volume, COWENGINE_FORMAT, cowengine_open(volume, "/dev/null", 0));
    GIVES(volume, COWENGINE_OUT_OF_RANGE, cowengine_open(volume, NULL, 0));
    GIVES(volume, COWENGINE_OUT_OF_RANGE, cowengine_open(volume, path, 1u << 31));
    GIVES(volume, COWENGINE_OUT_OF_RANGE, cowengine_create(volume, path, 1000, 0));
}

static void refused_by_volume(cowengine_handle *volume, cowengine_handle *other, const char *path) {
    cowengine_snapshot_info info;
    cowengine_extent extent;
    const char *foreign = "00000000-0000-4000-8000-000000000000/1/0123456789abcdef";
    char byte = 1;
    size_t count;
    GIVES(volume, COWENGINE_BUSY, cowengine_open(volume, path, 0));
    GIVES(other, COWENGINE_BUSY, cowengine_open(other, path, 0));
    GIVES(other, COWENGINE_EXISTS, cowengine_create(other, path, MIB, 0));
    GIVES(volume, COWENGINE_OUT_OF_RANGE, cowengine_pread(volume, &byte, 1, MIB));
    GIVES(volume, COWENGINE_OUT_OF_RANGE, cowengine_pwrite(volume, &byte, 1, UINT64_MAX));
    says(volume, "1 bytes at 18446744073709551615");
    GIVES(volume, COWENGINE_OUT_OF_RANGE, cowengine_pwrite(volume, NULL, 1, 0));
    GIVES(volume, COWENGINE_OUT_OF_RANGE, cowengine_discard(volume, MIB, 1));
    WORKS(volume, cowengine_pwrite(volume, NULL, 0, MIB));
    GIVES(volume, COWENGINE_NOT_FOUND, cowengine_open_snapshot(volume, "none", other));
    GIVES(volume, COWENGINE_NOT_FOUND, cowengine_delete_snapshot(volume, "none"));
    GIVES(volume, COWENGINE_NOT_FOUND, cowengine_rollback(volume, "none", &info));
    GIVES(volume, COWENGINE_OUT_OF_RANGE, cowengine_snapshot(volume, "a/b", NULL));
    GIVES(volume, COWENGINE_OUT_OF_RANGE, cowengine_snapshot(volume, "not UTF-8: \xff", NULL));
    GIVES(volume, COWENGINE_OUT_OF_RANGE, cowengine_allocated_extents(volume, 0, UINT64_MAX, &extent, 0, &count));
    GIVES(volume, COWENGINE_OUT_OF_RANGE, cowengine_allocated_extents(volume, 0, UINT64_MAX, &extent, 1, NULL));
    GIVES(volume, COWENGINE_FULL_BACKUP_REQUIRED,
          cowengine_changed_extents(volume, foreign, 0, UINT64_MAX, &extent, 1, &count));
    says(volume, "full backup");
}

static void refused_after_close(cowengine_handle *volume, cowengine_handle *snapshot) {
    char byte = 1;
    GIVES(volume, COWENGINE_CLOSED, cowengine_pread(volume, &byte, 1, 0));
    GIVES(volume, COWENGINE_CLOSED, cowengine_pwrite(volume, &byte, 1, 0));
    GIVES(volume, COWENGINE_CLOSED, cowengine_snapshot(volume, "three", NULL));
    GIVES(snapshot, COWENGINE_CLOSED, cowengine_pread(snapshot, &byte, 1, 0));
}

static void errors(const char *path) {
    cowengine_handle *volume, *other, *snapshot, *reader, *none = (cowengine_handle *)&none;
    char byte = 1;

    REQUIRE(cowengine_abi() == COWENGINE_ABI);
    REQUIRE(cowengine_new(COWENGINE_ABI + 1, &none) == COWENGINE_UNSUPPORTED_VERSION && none == NULL);
    REQUIRE(cowengine_new(COWENGINE_ABI, NULL) == COWENGINE_OUT_OF_RANGE);
    REQUIRE(cowengine_flush(NULL) == COWENGINE_OUT_OF_RANGE);
    cowengine_free(NULL);

    volume = made();
    other = made();
    refused_before_open(volume, path);
    WORKS(volume, cowengine_create(volume, path, MIB, 65536));
    refused_by_volume(volume, other, path);

    snapshot = made();
    WORKS(volume, cowengine_snapshot(volume, "one", NULL));
    GIVES(volume, COWENGINE_EXISTS, cowengine_snapshot(volume, "one", NULL));
    WORKS(volume, cowengine_open_snapshot(volume, "one", snapshot));
    GIVES(snapshot, COWENGINE_READ_ONLY, cowengine_pwrite(snapshot, &byte, 1, 0));
    GIVES(snapshot, COWENGINE_OUT_OF_RANGE, cowengine_flush(snapshot));
    WORKS(volume, cowengine_delete_snapshot(volume, "one"));
    GIVES(snapshot, COWENGINE_NOT_FOUND, cowengine_pread(snapshot, &byte, 1, 0));
    cowengine_free(snapshot);

    snapshot = made();
    WORKS(volume, cowengine_snapshot(volume, "two", NULL));
    WORKS(volume, cowengine_open_snapshot(volume, "two", snapshot));
    WORKS(volume, cowengine_close(volume));
    refused_after_close(volume, snapshot);
    cowengine_free(volume);
    cowengine_free(snapshot);

    reader = made();
    WORKS(reader, cowengine_open(reader, path, COWENGINE_OPEN_READ_ONLY));
    GIVES(reader, COWENGINE_READ_ONLY, cowengine_pwrite(reader, &byte, 1, 0));
    GIVES(reader, COWENGINE_READ_ONLY, cowengine_flush(reader));
    WORKS(reader, cowengine_pread(reader, &byte, 1, 0));
    cowengine_free(reader);
    cowengine_free(other);
}

/* -- descriptors: none is left open --------------------------------------------------------------------------------- */
static int descriptors(void) {
    int count = 0;
    DIR *folder = opendir("/proc/self/fd");
    REQUIRE(folder != NULL);
    while (readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count;
}

static void leaks(const char *path) {
    cowengine_handle *volume = created(path, MIB), *snapshot;
    int before, round;
    char byte;
    WORKS(volume, cowengine_snapshot(volume, "one", NULL));
    cowengine_free(volume);
    before = descriptors();
    for (round = 0; round < 20; round++) {
        volume = made();
        snapshot = made();
        GIVES(volume, COWENGINE_FORMAT, cowengine_open(volume, "/dev/null", 0));
        WORKS(volume, cowengine_open(volume, path, 0));
        WORKS(volume, cowengine_open_snapshot(volume, "one", snapshot));
        WORKS(snapshot, cowengine_pread(snapshot, &byte, 1, 0));
        cowengine_free(volume); /* before its snapshot */
        cowengine_free(snapshot);
    }
    REQUIRE(descriptors() == before);
}

/* -- fork: dead in the child, at once and without a hang; alive in the parent --------------------------------------- */
static void forks(const char *path) {
    cowengine_handle *volume = created(path, MIB), *again = made(), *none;
    int status = 0;
    pid_t child;
    char byte = 7;
    WORKS(volume, cowengine_pwrite(volume, &byte, 1, 0));
    child = fork();
    if (child == 0) {
        GIVES(volume, COWENGINE_CLOSED, cowengine_pread(volume, &byte, 1, 0));
        GIVES(volume, COWENGINE_CLOSED, cowengine_pwrite(volume, &byte, 1, 0));
        GIVES(volume, COWENGINE_CLOSED, cowengine_flush(volume));
        GIVES(volume, COWENGINE_CLOSED, cowengine_close(volume));
        REQUIRE(cowengine_new(COWENGINE_ABI, &none) == COWENGINE_CLOSED && none == NULL);
        REQUIRE(cowengine_errno(volume) == EBADF);
        says(volume, "child of a fork");
        cowengine_free(volume);
        exit(0); /* runs what is to run at exit, here too */
    }
    REQUIRE(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);

    /* A child that lives on keeps nothing: the parent can close and open again. */
    child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pause();
        _exit(0);
    }
    WORKS(volume, cowengine_pread(volume, &byte, 1, 0));
    REQUIRE(byte == 7);
    WORKS(volume, cowengine_close(volume));
    WORKS(again, cowengine_open(again, path, 0));
    kill(child, SIGKILL);
    REQUIRE(waitpid(child, &status, 0) == child);
    cowengine_free(again);
    cowengine_free(volume);
}

/* -- exit: what is open is closed ----------------------------------------------------------------------------------- */
static void leaves(const char *path) {
    cowengine_handle *volume = created(path, MIB);
    WORKS(volume, cowengine_pwrite(volume, "not flushed", 11, 4000));
}

/* -- damaged: block 1 of the volume and of its snapshot "sealed" rotted ---------------------------------------------- */
static void damaged(const char *path) {
    char data[3 * BLOCK], part[64];
    cowengine_handle *volume = made(), *snapshot = made();
    WORKS(volume, cowengine_open(volume, path, 0));
    WORKS(volume, cowengine_open_snapshot(volume, "sealed", snapshot));
    snprintf(part, sizeof part, "block at byte %d in slot", (int)BLOCK);
    GIVES(volume, COWENGINE_CORRUPTION, cowengine_pread(volume, data, sizeof data, 0));
    says(volume, part);
    says(volume, path);
    GIVES(snapshot, COWENGINE_CORRUPTION, cowengine_pread(snapshot, data, 1, 2 * BLOCK - 1));
    says(snapshot, part);
    says(snapshot, "snapshot 'sealed'");
    GIVES(volume, COWENGINE_CORRUPTION, cowengine_pwrite(volume, data, 1, BLOCK));
    says(volume, part);
    WORKS(snapshot, cowengine_pread(snapshot, data, BLOCK, 0));
    WORKS(volume, cowengine_pread(volume, data, BLOCK, 2 * BLOCK));
    WORKS(volume, cowengine_pwrite(volume, data, BLOCK, BLOCK));
    WORKS(volume, cowengine_pread(volume, data, sizeof data, 0));
    cowengine_free(snapshot);
    cowengine_free(volume);
}

int main(int count, char **arguments) {
    static const struct {
        const char *name;
        void (*run)(const char *path);
    } scenes[] = {{"session", session}, {"threads", threads}, {"errors", errors},
                  {"leaks", leaks},     {"forks", forks},     {"leaves", leaves}, {"unlocked", unlocked},
                  {"damaged", damaged}};
    size_t i;
    REQUIRE(count == 3);
    for (i = 0; i < sizeof scenes / sizeof *scenes; i++)
        if (strcmp(scenes[i].name, arguments[1]) == 0) {
            scenes[i].run(arguments[2]);
            puts("ok");
            return 0;
        }
    return 2;
}
