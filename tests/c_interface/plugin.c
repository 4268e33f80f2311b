/* A host that loads the library as a plugin, with all its symbols local: plugin LIBRARY PATH. Prints "ok". */
#include <cowengine.h>

#include <dlfcn.h>
#include <stdio.h>

/* POSIX's way to make a function of what dlsym returns. */
#define FIND(function) (*(void **)(&function) = dlsym(library, "cowengine_" #function))

int main(int count, char **arguments) {
    int (*new)(uint32_t abi, cowengine_handle **handle);
    int (*create)(cowengine_handle *handle, const char *path, uint64_t size, uint32_t block_size);
    int (*allocated_extents)(cowengine_handle *handle, uint64_t start, uint64_t length, cowengine_extent *extents,
                             size_t extents_max, size_t *found);
    void (*free)(cowengine_handle *handle);
    cowengine_handle *volume;
    cowengine_extent extent;
    size_t found;
    void *library = count == 3 ? dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL) : NULL;
    if (library == NULL || !FIND(new) || !FIND(create) || !FIND(allocated_extents) || !FIND(free))
        return 2;
    if (new (COWENGINE_ABI, &volume) != 0 || create(volume, arguments[2], 1 << 20, 0) != 0)
        return 3;
    if (allocated_extents(volume, 0, UINT64_MAX, &extent, 1, &found) != 0 || found != 0) /* needs numpy */
        return 4;
    free(volume);
    dlclose(library); /* what the library started goes on */
    puts("ok");
    return 0;
}
