/* Reads through cowengine.h beside pread of a raw file of the same size, in turns: c_reads WHAT VOLUME RAW ROUNDS COUNT.
 *
 * WHAT is "random" (4 KiB) or "sequential" (1 MiB), with "-snapshot" behind it for a read of the snapshot "read". Prints
 * a line for each round: seconds per read of the volume, and of the raw file. */
#define _GNU_SOURCE
#include <cowengine.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char buffer[1 << 20];

static void stop(cowengine_handle *handle, const char *what) {
    char text[512] = "";
    cowengine_error(handle, text, sizeof text);
    fprintf(stderr, "%s: %s\n", what, text);
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Where the reads of a round begin; both sides get the same. */
static void plan(uint64_t *offsets, unsigned count, uint64_t size, size_t length, int random, uint64_t *state) {
    unsigned i;
    for (i = 0; i < count; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        offsets[i] = ((random ? *state >> 33 : i) % (size / length)) * length;
    }
}

int main(int argc, char **argv) {
    cowengine_handle *volume, *view, *snapshot;
    uint64_t size, state = 20240229, *offsets;
    unsigned rounds, count, round, i;
    double started, raw_time, cow_time;
    size_t length;
    int fd, is_random;
    if (argc != 6)
        return 2;
    is_random = strncmp(argv[1], "random", 6) == 0;
    length = is_random ? 4096 : sizeof buffer;
    rounds = (unsigned)atoi(argv[4]);
    count = (unsigned)atoi(argv[5]);
    offsets = calloc(count, sizeof *offsets);
    fd = open(argv[3], O_RDONLY);
    if (offsets == NULL || fd < 0 || cowengine_new(COWENGINE_ABI, &volume) || cowengine_new(COWENGINE_ABI, &snapshot))
        stop(NULL, "start");
    if (cowengine_open(volume, argv[2], 0) || cowengine_geometry(volume, &size, NULL))
        stop(volume, "open");
    view = strstr(argv[1], "-snapshot") != NULL ? snapshot : volume;
    if (view == snapshot && cowengine_open_snapshot(volume, "read", snapshot))
        stop(volume, "open snapshot");

    /* A volume that was just opened is not in the page cache. Neither is the raw file, then, and both are read once. */
    if (fdatasync(fd) || posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED))
        stop(NULL, "posix_fadvise");
    for (uint64_t offset = 0; offset < size; offset += length)
        if (pread(fd, buffer, length, (off_t)offset) != (ssize_t)length ||
            cowengine_pread(view, buffer, length, offset) != COWENGINE_OK)
            stop(view, "the first reads");
    for (round = 0; round < rounds; round++) {
        plan(offsets, count, size, length, is_random, &state);
        started = now();
        for (i = 0; i < count; i++)
            if (pread(fd, buffer, length, (off_t)offsets[i]) != (ssize_t)length)
                stop(NULL, "pread");
        raw_time = now() - started;
        started = now();
        for (i = 0; i < count; i++)
            if (cowengine_pread(view, buffer, length, offsets[i]) != COWENGINE_OK)
                stop(view, "cowengine_pread");
        cow_time = now() - started;
        printf("%.9f %.9f\n", cow_time / count, raw_time / count);
    }
    close(fd);
    free(offsets);
    cowengine_free(snapshot);
    cowengine_free(volume);
    return 0;
}
