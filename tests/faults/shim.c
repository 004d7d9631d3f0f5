/* Shim between a program and the C library that makes one file operation fail; loaded with LD_PRELOAD.

   Operations on paths below one folder are counted, by whatever makes them: Python, SQLite, Arrow, Rust. The n-th of
   them fails with an errno, is cut short, or ends the process. What to do is in a file that is shared between all
   processes, see `State`; its path is in the environment variable FAULTS. tests/faults/shim.py has the other end. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT = 1, FAIL, STAY, SHORT, KILL };

struct State {
    _Atomic int32_t mode;      /* 0 for nothing, or one of the above; STAY: the same operation fails from then on */
    int32_t error;             /* the errno */
    int64_t at;                /* the number of the operation, from 0 */
    _Atomic int64_t count;     /* operations so far */
    _Atomic int64_t logged;    /* bytes of the log */
    char kind[16];             /* STAY, SHORT: the operation that has failed */
    char folder[4096];
    char log[1 << 22];         /* lines "operation path" */
};

static struct State *state;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULTS");
    int file = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *found = (void *)syscall(SYS_mmap, NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0L);
    if (found != MAP_FAILED) state = found;
    syscall(SYS_close, file);
}

static int path_of(int file, char *path) {
    char link[32];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    long size = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[size < 0 ? 0 : size] = 0;
    return size > 0;
}

static int is_below(const char *path) {
    size_t size = strlen(state->folder);
    return !strncmp(path, state->folder, size) && (path[size] == '/' || !path[size]);
}

/* Counts an operation. Returns 0 if it must take place, 1 if it must fail with the errno, 2 if only half of it must. */
static int counted(const char *kind, const char *path) {
    int mode = atomic_load(&state->mode);
    if (!mode || !is_below(path)) return 0;
    int64_t number = atomic_fetch_add(&state->count, 1);
    if (mode == COUNT) {
        char line[PATH_MAX + 32];
        int size = snprintf(line, sizeof line, "%s %s\n", kind, path);
        int64_t begin = atomic_fetch_add(&state->logged, size);
        if (begin + size <= (int64_t)sizeof state->log) memcpy(state->log + begin, line, size);
        return 0;
    }
    if (number == state->at) {
        if (mode == KILL) syscall(SYS_kill, (int)syscall(SYS_getpid), SIGKILL);
        strncpy(state->kind, kind, sizeof state->kind - 1);
        return mode == SHORT ? 2 : 1;
    }
    return number > state->at && (mode == STAY || mode == SHORT) && !strcmp(kind, state->kind);
}

static int by_path(const char *kind, int folder, const char *path) {
    if (!state || !atomic_load(&state->mode) || !path) return 0;
    int before = errno;
    char whole[2 * PATH_MAX];
    if (path[0] != '/') {
        if (folder == AT_FDCWD ? !getcwd(whole, PATH_MAX) : !path_of(folder, whole)) return 0;
        strcat(whole, "/");
        strncat(whole, path, PATH_MAX - 1);
        path = whole;
    }
    int found = counted(kind, path);
    errno = before;
    return found;
}

static int by_file(const char *kind, int file) {
    if (!state || !atomic_load(&state->mode)) return 0;
    int before = errno;
    char path[PATH_MAX];
    int found = path_of(file, path) ? counted(kind, path) : 0;
    errno = before;
    return found;
}

#define REAL(name) ({ static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name); real; })
#define FAILS(found, with) if (found) { errno = state->error; return with; }

/* name, parameters, arguments, result, operation, how it is found, result of a failure */
#define WRAP(type, name, params, args, found, with) \
    type name params { FAILS(found, with) return REAL(name) args; }

#define MODE_OF(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); }

int open(const char *path, int flags, ...) { MODE_OF(flags) FAILS(by_path("open", AT_FDCWD, path), -1) return REAL(open)(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE_OF(flags) FAILS(by_path("open", AT_FDCWD, path), -1) return REAL(open64)(path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE_OF(flags) FAILS(by_path("open", folder, path), -1) return REAL(openat)(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE_OF(flags) FAILS(by_path("open", folder, path), -1) return REAL(openat64)(folder, path, flags, mode); }
WRAP(FILE *, fopen, (const char *path, const char *how), (path, how), by_path("open", AT_FDCWD, path), NULL)
WRAP(FILE *, fopen64, (const char *path, const char *how), (path, how), by_path("open", AT_FDCWD, path), NULL)
WRAP(DIR *, opendir, (const char *path), (path), by_path("open", AT_FDCWD, path), NULL)
WRAP(DIR *, fdopendir, (int file), (file), by_file("opendir", file), NULL)
WRAP(struct dirent *, readdir, (DIR *folder), (folder), by_file("readdir", dirfd(folder)), NULL)
WRAP(struct dirent64 *, readdir64, (DIR *folder), (folder), by_file("readdir", dirfd(folder)), NULL)

WRAP(ssize_t, read, (int file, void *data, size_t size), (file, data, size), by_file("read", file), -1)
WRAP(ssize_t, pread, (int file, void *data, size_t size, off_t at), (file, data, size, at), by_file("read", file), -1)
WRAP(ssize_t, pread64, (int file, void *data, size_t size, off64_t at), (file, data, size, at), by_file("read", file), -1)
WRAP(ssize_t, readv, (int file, const struct iovec *parts, int count), (file, parts, count), by_file("read", file), -1)

#define WRAP_WRITE(name, params, whole, half) \
    ssize_t name params { \
        int found = by_file("write", file); \
        if (found == 2 && size > 1) return REAL(name) half; \
        FAILS(found, -1) \
        return REAL(name) whole; \
    }
WRAP_WRITE(write, (int file, const void *data, size_t size), (file, data, size), (file, data, size / 2))
WRAP_WRITE(pwrite, (int file, const void *data, size_t size, off_t at), (file, data, size, at), (file, data, size / 2, at))
WRAP_WRITE(pwrite64, (int file, const void *data, size_t size, off64_t at), (file, data, size, at), (file, data, size / 2, at))
WRAP(ssize_t, writev, (int file, const struct iovec *parts, int count), (file, parts, count), by_file("write", file), -1)
WRAP(ssize_t, sendfile, (int out, int in, off_t *at, size_t size), (out, in, at, size), by_file("write", out), -1)
WRAP(ssize_t, sendfile64, (int out, int in, off64_t *at, size_t size), (out, in, at, size), by_file("write", out), -1)
WRAP(ssize_t, copy_file_range, (int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags), (in, from, out, to, size, flags), by_file("write", out), -1)

WRAP(int, fsync, (int file), (file), by_file("fsync", file), -1)
WRAP(int, fdatasync, (int file), (file), by_file("fsync", file), -1)
WRAP(int, rename, (const char *from, const char *to), (from, to), by_path("rename", AT_FDCWD, to), -1)
WRAP(int, renameat, (int at, const char *from, int at2, const char *to), (at, from, at2, to), by_path("rename", at2, to), -1)
WRAP(int, link, (const char *from, const char *to), (from, to), by_path("link", AT_FDCWD, to), -1)
WRAP(int, symlink, (const char *from, const char *to), (from, to), by_path("link", AT_FDCWD, to), -1)
WRAP(void *, mmap, (void *at, size_t size, int how, int flags, int file, off_t begin), (at, size, how, flags, file, begin), file >= 0 ? by_file("mmap", file) : 0, MAP_FAILED)
WRAP(void *, mmap64, (void *at, size_t size, int how, int flags, int file, off64_t begin), (at, size, how, flags, file, begin), file >= 0 ? by_file("mmap", file) : 0, MAP_FAILED)

WRAP(int, mkdir, (const char *path, mode_t mode), (path, mode), by_path("mkdir", AT_FDCWD, path), -1)
WRAP(int, mkdirat, (int folder, const char *path, mode_t mode), (folder, path, mode), by_path("mkdir", folder, path), -1)
WRAP(int, unlink, (const char *path), (path), by_path("unlink", AT_FDCWD, path), -1)
WRAP(int, unlinkat, (int folder, const char *path, int flags), (folder, path, flags), by_path("unlink", folder, path), -1)
WRAP(int, rmdir, (const char *path), (path), by_path("unlink", AT_FDCWD, path), -1)

WRAP(int, stat, (const char *path, struct stat *found), (path, found), by_path("stat", AT_FDCWD, path), -1)
WRAP(int, lstat, (const char *path, struct stat *found), (path, found), by_path("stat", AT_FDCWD, path), -1)
WRAP(int, fstat, (int file, struct stat *found), (file, found), by_file("stat", file), -1)
WRAP(int, fstatat, (int folder, const char *path, struct stat *found, int flags), (folder, path, found, flags), by_path("stat", folder, path), -1)
WRAP(int, stat64, (const char *path, struct stat64 *found), (path, found), by_path("stat", AT_FDCWD, path), -1)
WRAP(int, lstat64, (const char *path, struct stat64 *found), (path, found), by_path("stat", AT_FDCWD, path), -1)
WRAP(int, fstat64, (int file, struct stat64 *found), (file, found), by_file("stat", file), -1)
WRAP(int, fstatat64, (int folder, const char *path, struct stat64 *found, int flags), (folder, path, found, flags), by_path("stat", folder, path), -1)
WRAP(int, statx, (int folder, const char *path, int flags, unsigned mask, struct statx *found), (folder, path, flags, mask, found), by_path("stat", folder, path), -1)
WRAP(int, access, (const char *path, int how), (path, how), by_path("stat", AT_FDCWD, path), -1)
WRAP(int, statvfs, (const char *path, struct statvfs *found), (path, found), by_path("stat", AT_FDCWD, path), -1)
WRAP(int, statvfs64, (const char *path, struct statvfs64 *found), (path, found), by_path("stat", AT_FDCWD, path), -1)

WRAP(int, ftruncate, (int file, off_t size), (file, size), by_file("truncate", file), -1)
WRAP(int, ftruncate64, (int file, off64_t size), (file, size), by_file("truncate", file), -1)
WRAP(int, truncate, (const char *path, off_t size), (path, size), by_path("truncate", AT_FDCWD, path), -1)
WRAP(int, truncate64, (const char *path, off64_t size), (path, size), by_path("truncate", AT_FDCWD, path), -1)
WRAP(int, flock, (int file, int how), (file, how), by_file("lock", file), -1)
WRAP(int, utimensat, (int folder, const char *path, const struct timespec times[2], int flags), (folder, path, times, flags), by_path("utime", folder, path), -1)
WRAP(int, futimens, (int file, const struct timespec times[2]), (file, times), by_file("utime", file), -1)
WRAP(int, fchmod, (int file, mode_t mode), (file, mode), by_file("chmod", file), -1)

/* It is closed in any case, as Linux does it. Network file systems report here that a write has failed. */
int close(int file) {
    int is_written = state && atomic_load(&state->mode) && (fcntl(file, F_GETFL) & O_ACCMODE) != O_RDONLY;
    int found = is_written ? by_file("close", file) : 0;
    int done = REAL(close)(file);
    FAILS(found, -1)
    return done;
}
