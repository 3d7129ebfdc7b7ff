/* A file system that fails on demand: preloaded into a program, it counts the program's operations
 * below one folder and, at a chosen one, kills the program or lets the operation fail.
 *
 *   cc -shared -fPIC -O1 -o faults.so faults.c -ldl
 *   FAULT_BELOW=/tmp/run/ FAULT_KIND=kill FAULT_AT=120 LD_PRELOAD=./faults.so python ...
 *
 *   FAULT_BELOW   folder, absolute, with a slash at its end
 *   FAULT_KIND    kill | write | read; nothing fails where it is missing
 *   FAULT_AT      number of the operation, from 1: for kill and write of those that change something
 *                 (a file opened for writing, write, rename, unlink, mkdir, rmdir), for read of those
 *                 that look (a file opened for reading, read, opendir)
 *   FAULT_TIMES   operations that fail from there on; 0 means all
 *   FAULT_ERRNO   what they fail with
 *   FAULT_LOG     file that gets a line for each operation: change or look, its number, its name, its
 *                 path below the folder
 *
 * A write that is killed is half done. ENOSPC and EDQUOT spare what takes no room.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { LOOK, TAKE, FREE }; /* reads; takes room on the disk; changes it without taking room */
enum { GO_ON, FAIL, DIE };

static struct {
    const char *below, *kind;
    size_t below_length;
    long at, times;
    int error, log;
} plan;
static _Atomic long changes, looks;

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

__attribute__((constructor)) static void read_plan(void) {
    plan.below = getenv("FAULT_BELOW");
    plan.below_length = plan.below ? strlen(plan.below) : 0;
    plan.kind = getenv("FAULT_KIND") ? getenv("FAULT_KIND") : "";
    plan.at = number("FAULT_AT");
    plan.times = number("FAULT_TIMES");
    plan.error = number("FAULT_ERRNO");
    const char *log = getenv("FAULT_LOG");
    int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC;
    plan.log = log ? syscall(SYS_openat, AT_FDCWD, log, flags, 0644) : -1;
}

/* The path of an open file, "" where it has none. */
static const char *path_of(int fd, char *buffer) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, buffer, PATH_MAX - 1);
    buffer[length < 0 ? 0 : length] = 0;
    return buffer;
}

/* `path` as seen from the folder `fd`, absolute. */
static const char *absolute(int fd, const char *path, char *buffer) {
    char folder[PATH_MAX];
    if (path[0] == '/') return path;
    if (fd != AT_FDCWD) path_of(fd, folder);
    else if (!getcwd(folder, sizeof folder)) return path;
    snprintf(buffer, 2 * PATH_MAX, "%s/%s", folder, path);
    return buffer;
}

/* Counts and logs an operation, and says what becomes of it. */
static int fate(int effect, const char *name, const char *path) {
    if (!plan.below || strncmp(path, plan.below, plan.below_length)) return GO_ON;
    int looks_only = effect == LOOK;
    long n = looks_only ? ++looks : ++changes;
    if (plan.log >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%s %ld %s %s\n", looks_only ? "look" : "change", n,
                              name, path + plan.below_length);
        syscall(SYS_write, plan.log, line, length);
    }
    if (looks_only == !!strcmp(plan.kind, "read") || plan.at == 0 || n < plan.at) return GO_ON;
    if (!strcmp(plan.kind, "kill")) return n == plan.at ? DIE : GO_ON;
    if (plan.times && n >= plan.at + plan.times) return GO_ON;
    if (effect == FREE && (plan.error == ENOSPC || plan.error == EDQUOT)) return GO_ON;
    return FAIL;
}

__attribute__((noreturn)) static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

#define REAL(name) \
    static typeof(name) *real; \
    if (!real) real = dlsym(RTLD_NEXT, #name)

/* Dies, or returns `failed` from the function around it, as the plan has it. */
#define MEET(effect, name, path, failed) \
    switch (fate(effect, name, path)) { \
    case DIE: die(); \
    case FAIL: errno = plan.error; return failed; \
    }

#define OPEN(name, folder, parameters, arguments) \
    int name parameters { \
        REAL(name); \
        char buffer[2 * PATH_MAX]; \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        int effect = flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR) ? TAKE : LOOK; \
        MEET(effect, "open", absolute(folder, path, buffer), -1) \
        return real arguments; \
    }
OPEN(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, fd, (int fd, const char *path, int flags, ...), (fd, path, flags, mode))
OPEN(openat64, fd, (int fd, const char *path, int flags, ...), (fd, path, flags, mode))

#define FOPEN(name) \
    FILE *name(const char *path, const char *mode) { \
        REAL(name); \
        char buffer[2 * PATH_MAX]; \
        MEET(strpbrk(mode, "wa+") ? TAKE : LOOK, "open", absolute(AT_FDCWD, path, buffer), NULL) \
        return real(path, mode); \
    }
FOPEN(fopen)
FOPEN(fopen64)

DIR *opendir(const char *path) {
    REAL(opendir);
    char buffer[2 * PATH_MAX];
    MEET(LOOK, "opendir", absolute(AT_FDCWD, path, buffer), NULL)
    return real(path);
}

#define READ(name, parameters, arguments) \
    ssize_t name parameters { \
        REAL(name); \
        char buffer[PATH_MAX]; \
        MEET(LOOK, "read", path_of(fd, buffer), -1) \
        return real arguments; \
    }
READ(read, (int fd, void *data, size_t size), (fd, data, size))
READ(pread, (int fd, void *data, size_t size, off_t start), (fd, data, size, start))
READ(pread64, (int fd, void *data, size_t size, off64_t start), (fd, data, size, start))

#define WRITE(name, parameters, arguments, half) \
    ssize_t name parameters { \
        REAL(name); \
        char buffer[PATH_MAX]; \
        int met = fate(TAKE, "write", path_of(fd, buffer)); \
        if (met == DIE) { \
            (void)!real half; \
            die(); \
        } \
        if (met == FAIL) { \
            errno = plan.error; \
            return -1; \
        } \
        return real arguments; \
    }
WRITE(write, (int fd, const void *data, size_t size), (fd, data, size), (fd, data, size / 2))
WRITE(pwrite, (int fd, const void *data, size_t size, off_t start), (fd, data, size, start),
      (fd, data, size / 2, start))
WRITE(pwrite64, (int fd, const void *data, size_t size, off64_t start), (fd, data, size, start),
      (fd, data, size / 2, start))
WRITE(writev, (int fd, const struct iovec *parts, int count), (fd, parts, count),
      (fd, parts, count / 2))

int posix_fallocate(int fd, off_t start, off_t size) {
    REAL(posix_fallocate);
    char buffer[PATH_MAX];
    MEET(TAKE, "write", path_of(fd, buffer), plan.error)
    return real(fd, start, size);
}

#define CHANGE(name, effect, what, folder, changed, parameters, arguments) \
    int name parameters { \
        REAL(name); \
        char buffer[2 * PATH_MAX]; \
        MEET(effect, what, absolute(folder, changed, buffer), -1) \
        return real arguments; \
    }
CHANGE(rename, FREE, "rename", AT_FDCWD, to, (const char *from, const char *to), (from, to))
CHANGE(renameat, FREE, "rename", there, to,
       (int here, const char *from, int there, const char *to), (here, from, there, to))
CHANGE(unlink, FREE, "unlink", AT_FDCWD, path, (const char *path), (path))
CHANGE(unlinkat, FREE, flags & AT_REMOVEDIR ? "rmdir" : "unlink", fd, path,
       (int fd, const char *path, int flags), (fd, path, flags))
CHANGE(rmdir, FREE, "rmdir", AT_FDCWD, path, (const char *path), (path))
CHANGE(mkdir, TAKE, "mkdir", AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
CHANGE(mkdirat, TAKE, "mkdir", fd, path, (int fd, const char *path, mode_t mode), (fd, path, mode))
