/* Below the I/O table: the calls of libc do less than they were asked to, are interrupted, and fail where that counts
 * for nothing. Loaded in front of libc (LD_PRELOAD) by short_calls.py; concerns regular files under SHORT_FOLDER alone
 * that were opened as the table opens them (O_NOFOLLOW), and not what the tests read there by themselves.
 *
 *   pread, pwrite, copy_file_range   a part of the bytes, from 1 on; or EINTR
 *   preadv2                          some of the parts, from 1 on; or EINTR
 *   ftruncate                        EINTR
 *   close                            EIO or EINTR, and the descriptor is closed all the same
 *   fcntl                            ENOLCK for the unlocking of a whole file
 *   posix_fadvise                    EIO for a range
 *
 * What comes follows from SHORT_SEED and from the calls before it. With SHORT_LIES one write in so many says that it
 * wrote all, and wrote half. At the end the file SHORT_TOLD gets the numbers: cut short, interrupted, failed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { CUT, INTERRUPTED, FAILED, COUNTS };

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static unsigned long long state, counts[COUNTS];
static const char *folder;
static unsigned long lies;

__attribute__((constructor)) static void begin(void)
{
    const char *seed = getenv("SHORT_SEED"), *lying = getenv("SHORT_LIES");
    folder = getenv("SHORT_FOLDER");
    lies = lying ? strtoul(lying, NULL, 10) : 0;
    state = 0x9e3779b97f4a7c15ULL * (1 + strtoull(seed ? seed : "0", NULL, 10));
}

__attribute__((destructor)) static void end(void)
{
    const char *path = getenv("SHORT_TOLD");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (file == NULL)
        return;
    fprintf(file, "%llu %llu %llu\n", counts[CUT], counts[INTERRUPTED], counts[FAILED]);
    fclose(file);
}

/* A number below `limit`. */
static unsigned long long below(unsigned long long limit)
{
    unsigned long long drawn;
    pthread_mutex_lock(&turn);
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    drawn = state;
    pthread_mutex_unlock(&turn);
    return drawn % limit;
}

/* Whether it happens this time, which is once in so many; it is counted. */
static int happens(unsigned long long in, int what)
{
    if (below(in))
        return 0;
    __atomic_add_fetch(&counts[what], 1, __ATOMIC_RELAXED);
    return 1;
}

static int is_ours(int fd)
{
    char link[64], path[4096];
    struct stat about;
    ssize_t length;
    int number = errno, ours = 0;
    long flags = syscall(SYS_fcntl, fd, F_GETFL);
    if (folder != NULL && flags >= 0 && flags & O_NOFOLLOW && fstat(fd, &about) == 0 && S_ISREG(about.st_mode)) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        length = readlink(link, path, sizeof path);
        ours = length > 0 && (size_t)length >= strlen(folder) && memcmp(path, folder, strlen(folder)) == 0;
    }
    errno = number;
    return ours;
}

static int interrupted(void)
{
    if (!happens(8, INTERRUPTED))
        return 0;
    errno = EINTR;
    return 1;
}

/* How much of a call is done. */
static size_t part(size_t length)
{
    if (length < 2 || below(4) == 0)
        return length;
    __atomic_add_fetch(&counts[CUT], 1, __ATOMIC_RELAXED);
    return 1 + below(length - 1);
}

ssize_t pread64(int fd, void *buffer, size_t length, off64_t offset)
{
    if (!is_ours(fd))
        return syscall(SYS_pread64, fd, buffer, length, offset);
    if (interrupted())
        return -1;
    return syscall(SYS_pread64, fd, buffer, part(length), offset);
}

ssize_t pwrite64(int fd, const void *buffer, size_t length, off64_t offset)
{
    ssize_t done;
    if (!is_ours(fd))
        return syscall(SYS_pwrite64, fd, buffer, length, offset);
    if (interrupted())
        return -1;
    if (lies && below(lies) == 0) {
        done = syscall(SYS_pwrite64, fd, buffer, length / 2, offset);
        return done < 0 ? done : (ssize_t)length;
    }
    return syscall(SYS_pwrite64, fd, buffer, part(length), offset);
}

ssize_t preadv64v2(int fd, const struct iovec *parts, int count, off64_t offset, int flags)
{
    if (is_ours(fd)) {
        if (interrupted())
            return -1;
        count = part(count);
    }
    return syscall(SYS_preadv2, fd, parts, count, offset, 0L, flags);
}

ssize_t preadv2(int fd, const struct iovec *parts, int count, off_t offset, int flags)
{
    return preadv64v2(fd, parts, count, offset, flags);
}

ssize_t pread(int fd, void *buffer, size_t length, off_t offset)
{
    return pread64(fd, buffer, length, offset);
}

ssize_t pwrite(int fd, const void *buffer, size_t length, off_t offset)
{
    return pwrite64(fd, buffer, length, offset);
}

ssize_t copy_file_range(int source, off64_t *from, int target, off64_t *to, size_t length, unsigned int flags)
{
    if (is_ours(source)) {
        if (interrupted())
            return -1;
        length = part(length);
    }
    return syscall(SYS_copy_file_range, source, from, target, to, length, flags);
}

int ftruncate64(int fd, off64_t length)
{
    if (is_ours(fd) && interrupted())
        return -1;
    return (int)syscall(SYS_ftruncate, fd, length);
}

int ftruncate(int fd, off_t length)
{
    return ftruncate64(fd, length);
}

int close(int fd)
{
    int ours = is_ours(fd), result = (int)syscall(SYS_close, fd);
    if (result == 0 && ours && happens(2, FAILED)) {
        errno = below(2) ? EIO : EINTR;
        return -1;
    }
    return result;
}

int posix_fadvise64(int fd, off64_t offset, off64_t length, int advice)
{
    static int (*real)(int, off64_t, off64_t, int);
    if (length != 0 && is_ours(fd) && happens(2, FAILED))
        return EIO;
    if (real == NULL)
        real = (int (*)(int, off64_t, off64_t, int))dlsym(RTLD_NEXT, "posix_fadvise64");
    return real(fd, offset, length, advice);
}

int posix_fadvise(int fd, off_t offset, off_t length, int advice)
{
    return posix_fadvise64(fd, offset, length, advice);
}

int fcntl64(int fd, int command, ...)
{
    va_list rest;
    void *argument;
    va_start(rest, command);
    argument = va_arg(rest, void *);
    va_end(rest);
    if (command == F_OFD_SETLK) {
        const struct flock *wanted = argument;
        if (wanted->l_type == F_UNLCK && wanted->l_start == 0 && wanted->l_len == 0 && is_ours(fd) &&
            happens(2, FAILED)) {
            errno = ENOLCK;
            return -1;
        }
    }
    return (int)syscall(SYS_fcntl, fd, command, argument);
}

int fcntl(int fd, int command, ...)
{
    va_list rest;
    void *argument;
    va_start(rest, command);
    argument = va_arg(rest, void *);
    va_end(rest);
    return fcntl64(fd, command, argument);
}
