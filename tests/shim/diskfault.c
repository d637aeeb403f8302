/* In front of libc: the n-th call of everlog that changes something below a directory fails.
 *
 * DISKFAULT_BELOW names the directory; DISKFAULT_NUMBERS a file of four native 64-bit numbers, shared with the test:
 * which call fails (0: none, all bits: every one from now on), with which errno, how many calls there were, how many failed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct numbers {
    uint64_t nth, error;
    _Atomic uint64_t calls, failed;
};

static struct numbers *numbers;
static const char *below;
static size_t below_length;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("DISKFAULT_NUMBERS");
    below = getenv("DISKFAULT_BELOW");
    if (!path || !below || strcmp(program_invocation_short_name, "everlog") != 0)
        return;
    below_length = strlen(below);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    void *shared = mmap(NULL, sizeof(struct numbers), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (shared != MAP_FAILED)
        numbers = shared;
}

/* Whether a path, as text, lies below the directory. */
static int is_below(const char *path) {
    return strncmp(path, below, below_length) == 0 && (path[below_length] == '/' || path[below_length] == 0);
}

static int fd_is_below(int fd) {
    char link[64], target[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, target, sizeof target - 1);
    if (n <= 0)
        return 0;
    target[n] = 0;
    return is_below(target);
}

static int path_is_below(int dirfd, const char *path) {
    int fd;
    if (sscanf(path, "/proc/self/fd/%d/", &fd) == 1)
        return fd_is_below(fd);
    if (path[0] != '/')
        return dirfd != AT_FDCWD && fd_is_below(dirfd);
    return is_below(path);
}

/* Counts a call; 1: it fails now. */
static int fails(int counts) {
    if (!counts)
        return 0;
    uint64_t call = atomic_fetch_add(&numbers->calls, 1) + 1;
    if (call != numbers->nth && numbers->nth != UINT64_MAX)
        return 0;
    atomic_fetch_add(&numbers->failed, 1);
    errno = (int)numbers->error;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ON_FD(name, result, parameters, arguments)                 \
    result name parameters {                                       \
        static __typeof__(&name) real;                             \
        if (!real)                                                 \
            real = REAL(name);                                     \
        if (numbers && fails(fd_is_below(fd)))                     \
            return -1;                                             \
        return real arguments;                                     \
    }
#define ON_PATH(name, result, parameters, arguments, dirfd, path)  \
    result name parameters {                                       \
        static __typeof__(&name) real;                             \
        if (!real)                                                 \
            real = REAL(name);                                     \
        if (numbers && fails(path_is_below(dirfd, path)))          \
            return -1;                                             \
        return real arguments;                                     \
    }

ON_FD(write, ssize_t, (int fd, const void *b, size_t n), (fd, b, n))
ON_FD(pwrite, ssize_t, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o))
ON_FD(pwrite64, ssize_t, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o))
ON_FD(writev, ssize_t, (int fd, const struct iovec *v, int n), (fd, v, n))
ON_FD(fsync, int, (int fd), (fd))
ON_FD(fdatasync, int, (int fd), (fd))
ON_FD(ftruncate, int, (int fd, off_t o), (fd, o))
ON_FD(ftruncate64, int, (int fd, off64_t o), (fd, o))
ON_FD(fchmod, int, (int fd, mode_t m), (fd, m))
ON_FD(fchown, int, (int fd, uid_t u, gid_t g), (fd, u, g))
ON_FD(futimens, int, (int fd, const struct timespec t[2]), (fd, t))
ON_PATH(rename, int, (const char *from, const char *to), (from, to), AT_FDCWD, to)
ON_PATH(unlink, int, (const char *p), (p), AT_FDCWD, p)
ON_PATH(unlinkat, int, (int d, const char *p, int f), (d, p, f), d, p)
ON_PATH(rmdir, int, (const char *p), (p), AT_FDCWD, p)
ON_PATH(mkdir, int, (const char *p, mode_t m), (p, m), AT_FDCWD, p)
ON_PATH(link, int, (const char *from, const char *to), (from, to), AT_FDCWD, to)
ON_PATH(linkat, int, (int a, const char *from, int b, const char *to, int f), (a, from, b, to, f), b, to)

/* Opening counts where it may make a file. */
#define OPENS(name)                                                        \
    int name(const char *path, int flags, ...) {                           \
        static int (*real)(const char *, int, ...);                        \
        mode_t mode = 0;                                                   \
        if (flags & (O_CREAT | O_TMPFILE)) {                               \
            va_list list;                                                  \
            va_start(list, flags);                                         \
            mode = va_arg(list, mode_t);                                   \
            va_end(list);                                                  \
        }                                                                  \
        if (!real)                                                         \
            real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, #name); \
        if (numbers && (flags & O_CREAT) && fails(path_is_below(AT_FDCWD, path))) \
            return -1;                                                     \
        return real(path, flags, mode);                                    \
    }
OPENS(open)
OPENS(open64)
