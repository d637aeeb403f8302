/* In front of libc: every call of everlog that changes something below some directories is written down, in the order in which it was done.
 *
 * RECORD_BELOW names the directories, with ':' between them; RECORD_LOG the file that the records are appended to: a head, two paths, bytes.
 * One lock is held over a call and its record, so the order is the real one. tests/power_loss makes images of a disk from it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct head {
    uint32_t length; /* of the whole record */
    uint16_t kind, from, to, pad; /* a letter; lengths of the two paths */
    uint32_t mode;
    uint64_t ino;
    int64_t at; /* position of a write, or the new length */
    int64_t mtime_ns;
};

static int record_fd = -1;
static const char *below;
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("RECORD_LOG");
    below = getenv("RECORD_BELOW");
    if (path && below && strcmp(program_invocation_short_name, "everlog") == 0)
        record_fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CLOEXEC);
}

static int is_below(const char *path) {
    for (const char *dir = below; *dir;) {
        size_t n = strcspn(dir, ":");
        if (strncmp(path, dir, n) == 0 && (path[n] == '/' || path[n] == 0))
            return 1;
        dir += n + (dir[n] == ':');
    }
    return 0;
}

static ssize_t path_of(int fd, char *target) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, target, PATH_MAX - 1);
    target[n > 0 ? n : 0] = 0;
    return n;
}

static int fd_is_below(int fd) {
    char target[PATH_MAX];
    return record_fd >= 0 && path_of(fd, target) > 0 && is_below(target);
}

/* A path without open directories in it. 1: it is below one of the directories. */
static int resolve(int dirfd, const char *path, char *full) {
    int fd, used = 0;
    char dir[PATH_MAX];
    if (record_fd < 0)
        return 0;
    if (sscanf(path, "/proc/self/fd/%d/%n", &fd, &used) == 1 && used > 0) {
        dirfd = fd;
        path += used;
    }
    if (path[0] == '/')
        snprintf(full, PATH_MAX, "%s", path);
    else if (dirfd == AT_FDCWD || path_of(dirfd, dir) <= 0 || snprintf(full, PATH_MAX, "%s/%s", dir, path) >= PATH_MAX)
        return 0;
    return is_below(full);
}

static void record(char kind, const struct stat *st, int64_t at, const char *from, const char *to, const struct iovec *bytes, int pieces) {
    struct iovec all[pieces + 3];
    struct head h = {.kind = (uint16_t)kind, .from = (uint16_t)strlen(from), .to = (uint16_t)strlen(to), .at = at};
    if (st) {
        h.mode = st->st_mode;
        h.ino = st->st_ino;
        h.mtime_ns = st->st_mtim.tv_sec * 1000000000LL + st->st_mtim.tv_nsec;
    }
    all[0] = (struct iovec){&h, sizeof h};
    all[1] = (struct iovec){(void *)from, h.from};
    all[2] = (struct iovec){(void *)to, h.to};
    for (int i = 0; i < pieces; i++)
        all[3 + i] = bytes[i];
    h.length = 0;
    for (int i = 0; i < pieces + 3; i++)
        h.length += (uint32_t)all[i].iov_len;
    if (syscall(SYS_writev, record_fd, all, pieces + 3) != (long)h.length)
        abort(); /* A recording with a hole in it proves nothing. */
}

static void record_fd_call(char kind, int fd, int64_t at, const struct iovec *bytes, int pieces) {
    struct stat st;
    if (fstat(fd, &st) == 0)
        record(kind, &st, at, "", "", bytes, pieces);
}

static void record_path_call(char kind, const char *from, const char *to) {
    struct stat st;
    int found = lstat(*to ? to : from, &st) == 0;
    record(kind, found ? &st : NULL, 0, from, to, NULL, 0);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
/* `done` runs after a call that succeeded, with its result `r`, while the lock is held. */
#define CALL(name, result, parameters, arguments, is_watched, done) \
    result name parameters {                                        \
        static __typeof__(&name) real;                              \
        if (!real)                                                  \
            real = REAL(name);                                      \
        if (!(is_watched))                                          \
            return real arguments;                                  \
        pthread_mutex_lock(&order);                                 \
        result r = real arguments;                                  \
        int error = errno;                                          \
        if (r >= 0) {                                               \
            done;                                                   \
        }                                                           \
        pthread_mutex_unlock(&order);                               \
        errno = error;                                              \
        return r;                                                   \
    }
#define ON_FD(name, result, parameters, arguments, done) CALL(name, result, parameters, arguments, fd_is_below(fd), done)

static void wrote(int fd, int64_t at, const struct iovec *v, int pieces, ssize_t n) {
    struct iovec some[pieces];
    int used = 0;
    for (; used < pieces && n > 0; used++) {
        some[used] = v[used];
        if ((ssize_t)some[used].iov_len > n)
            some[used].iov_len = (size_t)n;
        n -= (ssize_t)some[used].iov_len;
    }
    record_fd_call('W', fd, at, some, used);
}

#define ONE(b, n) (&(struct iovec){(void *)(b), (size_t)(n)}), 1
#define HERE(fd, r) (lseek(fd, 0, SEEK_CUR) - (r))
ON_FD(write, ssize_t, (int fd, const void *b, size_t n), (fd, b, n), wrote(fd, HERE(fd, r), ONE(b, n), r))
ON_FD(pwrite, ssize_t, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o), wrote(fd, o, ONE(b, n), r))
ON_FD(pwrite64, ssize_t, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o), wrote(fd, o, ONE(b, n), r))
ON_FD(writev, ssize_t, (int fd, const struct iovec *v, int n), (fd, v, n), wrote(fd, HERE(fd, r), v, n, r))
ON_FD(pwritev, ssize_t, (int fd, const struct iovec *v, int n, off_t o), (fd, v, n, o), wrote(fd, o, v, n, r))
ON_FD(pwritev64, ssize_t, (int fd, const struct iovec *v, int n, off64_t o), (fd, v, n, o), wrote(fd, o, v, n, r))
ON_FD(fsync, int, (int fd), (fd), record_fd_call('S', fd, 0, NULL, 0))
ON_FD(fdatasync, int, (int fd), (fd), record_fd_call('D', fd, 0, NULL, 0))
ON_FD(ftruncate, int, (int fd, off_t o), (fd, o), record_fd_call('T', fd, o, NULL, 0))
ON_FD(ftruncate64, int, (int fd, off64_t o), (fd, o), record_fd_call('T', fd, o, NULL, 0))

/* A path may lead through an open directory whose name changes: it is looked up again while the lock is held. */
#define ON_PATH(name, parameters, arguments, dirfd, path, letter)                           \
    CALL(name, int, parameters, arguments, resolve(dirfd, path, (char[PATH_MAX]){0}),       \
         char full[PATH_MAX]; if (resolve(dirfd, path, full)) record_path_call(letter, full, ""))
ON_PATH(unlink, (const char *p), (p), AT_FDCWD, p, 'U')
ON_PATH(unlinkat, (int d, const char *p, int f), (d, p, f), d, p, (f & AT_REMOVEDIR) ? 'X' : 'U')
ON_PATH(rmdir, (const char *p), (p), AT_FDCWD, p, 'X')
ON_PATH(mkdir, (const char *p, mode_t m), (p, m), AT_FDCWD, p, 'K')
ON_PATH(mkdirat, (int d, const char *p, mode_t m), (d, p, m), d, p, 'K')
ON_PATH(truncate, (const char *p, off_t n), (p, n), AT_FDCWD, p, '?')
ON_PATH(truncate64, (const char *p, off64_t n), (p, n), AT_FDCWD, p, '?')
ON_PATH(symlink, (const char *t, const char *p), (t, p), AT_FDCWD, p, '?')

#define ON_PATHS(name, parameters, arguments, a, from, b, to, letter)                          \
    CALL(name, int, parameters, arguments, resolve(b, to, (char[PATH_MAX]){0}),                \
         char one[PATH_MAX] = ""; char other[PATH_MAX] = ""; resolve(a, from, one); resolve(b, to, other); \
         record_path_call(letter, one, other))
ON_PATHS(rename, (const char *from, const char *to), (from, to), AT_FDCWD, from, AT_FDCWD, to, 'R')
ON_PATHS(renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), a, from, b, to, 'R')
ON_PATHS(renameat2, (int a, const char *from, int b, const char *to, unsigned f), (a, from, b, to, f), a, from, b, to, f ? '?' : 'R')
ON_PATHS(link, (const char *from, const char *to), (from, to), AT_FDCWD, from, AT_FDCWD, to, 'L')
ON_PATHS(linkat, (int a, const char *from, int b, const char *to, int f), (a, from, b, to, f), a, from, b, to, 'L')

static int open_recorded(int dirfd, const char *path, int flags, mode_t mode, int (*real)(int, const char *, int, ...)) {
    char full[PATH_MAX];
    if (!(flags & (O_CREAT | O_TRUNC)) || !resolve(dirfd, path, full))
        return real(dirfd, path, flags, mode);
    pthread_mutex_lock(&order);
    struct stat before, after;
    resolve(dirfd, path, full);
    int was_there = lstat(full, &before) == 0;
    int fd = real(dirfd, path, flags, mode);
    int error = errno;
    if (fd >= 0 && fstat(fd, &after) == 0) {
        if (!was_there)
            record('C', &after, 0, full, "", NULL, 0);
        else if ((flags & O_TRUNC) && before.st_size > 0)
            record('T', &after, 0, "", "", NULL, 0);
    }
    pthread_mutex_unlock(&order);
    errno = error;
    return fd;
}

#define OPENS(name, parameters, dirfd, like)                                     \
    int name parameters {                                                        \
        static int (*real)(int, const char *, int, ...);                         \
        mode_t mode = 0;                                                         \
        if (flags & (O_CREAT | O_TMPFILE)) {                                     \
            va_list list;                                                        \
            va_start(list, flags);                                               \
            mode = va_arg(list, mode_t);                                         \
            va_end(list);                                                        \
        }                                                                        \
        if (!real)                                                               \
            real = (int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, like); \
        return open_recorded(dirfd, path, flags, mode, real);                    \
    }
OPENS(open, (const char *path, int flags, ...), AT_FDCWD, "openat")
OPENS(open64, (const char *path, int flags, ...), AT_FDCWD, "openat64")
OPENS(openat, (int dirfd, const char *path, int flags, ...), dirfd, "openat")
OPENS(openat64, (int dirfd, const char *path, int flags, ...), dirfd, "openat64")
