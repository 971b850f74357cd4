/* Counts a process's calls that change files below one folder, and fails or kills at the n-th.

   Loaded before the C library, it sees what Python, torch, SQLite and Arrow write alike. Threads count together;
   processes that are started later don't count. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL, FULL };

static char root[PATH_MAX];
static size_t length;
static long at;
static int action;
static pid_t armed;
static atomic_long calls;

void faults_arm(const char *folder, int what, long n) {
    strncpy(root, folder, sizeof root - 1);
    length = strlen(root);
    at = n;
    action = what;
    atomic_store(&calls, 0);
    armed = getpid();
}

long faults_count(void) { return atomic_load(&calls); }

/* Whether this call is to fail for want of room. */
static int hit(const char *path, int takes_room) {
    if (armed != getpid() || path == NULL || strncmp(path, root, length) != 0) return 0;
    long n = atomic_fetch_add(&calls, 1) + 1;
    if (action == KILL && n == at) kill(getpid(), SIGKILL);
    if (action != FULL || n < at || !takes_room) return 0;
    errno = ENOSPC;
    return 1;
}

static int hit_fd(int fd, int takes_room) {
    char link[64], path[PATH_MAX];
    if (armed != getpid()) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return hit(path, takes_room);
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define ON_FD(type, name, room, declared, ...) \
    type name declared { REAL(name); return hit_fd(fd, room) ? -1 : real(__VA_ARGS__); }
#define ON_PATH(name, room, declared, ...) \
    int name declared { REAL(name); return hit(path, room) ? -1 : real(__VA_ARGS__); }

ON_FD(ssize_t, write, 1, (int fd, const void *data, size_t size), fd, data, size)
ON_FD(ssize_t, writev, 1, (int fd, const struct iovec *parts, int count), fd, parts, count)
ON_FD(ssize_t, pwrite, 1, (int fd, const void *data, size_t size, off_t place), fd, data, size, place)
ON_FD(ssize_t, pwrite64, 1, (int fd, const void *data, size_t size, off64_t place), fd, data, size, place)
ON_FD(int, fsync, 1, (int fd), fd)
ON_FD(int, fdatasync, 1, (int fd), fd)
ON_FD(int, ftruncate, 0, (int fd, off_t size), fd, size)
ON_FD(int, ftruncate64, 0, (int fd, off64_t size), fd, size)
ON_PATH(mkdir, 1, (const char *path, mode_t mode), path, mode)
ON_PATH(rename, 0, (const char *path, const char *other), path, other)
ON_PATH(unlink, 0, (const char *path), path)
ON_PATH(rmdir, 0, (const char *path), path)

#define OPEN(name)                                                          \
    int name(const char *path, int flags, ...) {                            \
        va_list rest;                                                       \
        va_start(rest, flags);                                              \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                       \
        REAL(name);                                                         \
        return flags & O_CREAT && access(path, F_OK) != 0 && hit(path, 1) ? -1 : real(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
