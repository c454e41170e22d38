/* A library for LD_PRELOAD: it tells which calls of a process touch one folder, and makes a chosen one fail.

   Driven by reliability/syscalls.py. What counts as "in the folder": a path that begins with it, or a descriptor that
   was opened through such a path. One call at a time, so that what is recorded is the order in which it happened. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { NONE, KILL, ERROR, ERROR_FROM_THERE, SHORT, SHORT_THEN_ERROR, DELAY };
#define MAX_FD 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char root[PATH_MAX];
static size_t root_length;
static int log_descriptor = -1;
static char *opened[MAX_FD]; /* the path below the folder that a descriptor was opened through */
static char armed_call[16];
static long armed_at, seen;
static int fault, number, sticks, has_no_links;

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) {
        dprintf(2, "syscalls.c: there is no '%s' in the C library\n", name);
        _exit(99);
    }
    return found;
}

#define REAL(result, name, ...) ((result(*)(__VA_ARGS__))({ static void *f_; if (!f_) f_ = real(name); f_; }))

/* Return the absolute path of a name if it lies in the folder, in `out`; NULL if not. */
static const char *inside(int at, const char *path, char *out) {
    if (!root_length || !path)
        return NULL;
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
    } else {
        char link[64], base[PATH_MAX];
        ssize_t n;
        if (at == AT_FDCWD)
            snprintf(link, sizeof link, "/proc/self/cwd");
        else
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        n = syscall(SYS_readlinkat, AT_FDCWD, link, base, sizeof base - 1);
        if (n < 0)
            return NULL;
        base[n] = 0;
        if (snprintf(out, PATH_MAX, "%s/%s", base, path) >= PATH_MAX)
            return NULL;
    }
    if (strncmp(out, root, root_length) || (out[root_length] && out[root_length] != '/'))
        return NULL;
    return out;
}

static const char *held(int descriptor) {
    return descriptor >= 0 && descriptor < MAX_FD ? opened[descriptor] : NULL;
}

static void record(const char *call, int descriptor, const char *path, const char *to, long result, int error,
                   long offset, int flags, const void *data, size_t size) {
    char head[3 * PATH_MAX];
    int n;
    if (log_descriptor < 0)
        return;
    n = snprintf(head, sizeof head, "%s%c%d%c%d%c%s%c%s%c%ld%c%d%c%ld%c%d%c%zu%c", call, 0, (int)getpid(), 0,
                 descriptor, 0, path ? path : "", 0, to ? to : "", 0, result, 0, error, 0, offset, 0, flags, 0, size, 0);
    struct iovec parts[2] = {{head, (size_t)n}, {(void *)data, size}};
    syscall(SYS_writev, log_descriptor, parts, data ? 2 : 1);
}

/* Count a call and say what becomes of it. `needs_space`: a full disk would refuse it too. */
static int judged(const char *call, int needs_space) {
    if (sticks && needs_space)
        return ERROR;
    if (!fault || strcmp(call, armed_call) || ++seen != armed_at)
        return NONE;
    if (fault == KILL) {
        kill(getpid(), SIGKILL);
        for (;;)
            pause();
    }
    if (fault == DELAY) {
        struct timespec wait = {number / 1000, number % 1000 * 1000000L};
        syscall(SYS_nanosleep, &wait, NULL);
        return NONE;
    }
    if (fault == ERROR_FROM_THERE || fault == SHORT_THEN_ERROR)
        sticks = 1;
    return fault == ERROR_FROM_THERE ? ERROR : fault == SHORT_THEN_ERROR ? SHORT : fault;
}

/* Every wrapper: is it in the folder; else the real call. */
#define FAIL(call) ((record(call, -1, path, to, -1, number, 0, flags, NULL, 0)), errno = number, -1)
#define AROUND(call, needs_space, is_inside, do_it, descriptor, with_data, data_length)                                \
    do {                                                                                                               \
        int what_, error_;                                                                                             \
        if (!(is_inside))                                                                                              \
            return do_it;                                                                                              \
        pthread_mutex_lock(&lock);                                                                                     \
        what_ = judged(call, needs_space);                                                                             \
        if (what_ == ERROR) {                                                                                          \
            result = FAIL(call);                                                                                       \
        } else {                                                                                                       \
            if (what_ == SHORT && size > 1)                                                                            \
                size /= 2;                                                                                             \
            result = do_it;                                                                                            \
            error_ = errno;                                                                                            \
            record(call, descriptor, path, to, (long)result, result < 0 ? error_ : 0,                                  \
                   (with_data) ? lseek_end(descriptor, (long)result) : 0, flags, (with_data) ? (data_length) : NULL,   \
                   (with_data) && result > 0 ? (size_t)result : 0);                                                    \
            errno = error_;                                                                                            \
        }                                                                                                              \
        error_ = errno;                                                                                                \
        pthread_mutex_unlock(&lock);                                                                                   \
        errno = error_;                                                                                                \
    } while (0)

/* Where a write of `length` bytes that has just happened began. */
static long lseek_end(int descriptor, long length) {
    return syscall(SYS_lseek, descriptor, 0L, SEEK_CUR) - (length > 0 ? length : 0);
}

static int opening(int at, const char *name, int flags, mode_t mode) {
    char absolute[PATH_MAX];
    const char *path = inside(at, name, absolute), *to = NULL;
    int is_new = (flags & (O_CREAT | O_TRUNC)) != 0, result = -1;
    size_t size = 0;
    AROUND(is_new || (flags & O_ACCMODE) ? "open" : "openr", is_new, path,
           REAL(int, "openat", int, const char *, int, ...)(at, name, flags, mode), result, 0, NULL);
    if (result >= 0 && result < MAX_FD) {
        free(opened[result]);
        opened[result] = strdup(path);
    }
    return result;
}

#define MODE                                                                                                           \
    mode_t mode = 0;                                                                                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                               \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode = va_arg(more, mode_t);                                                                                   \
        va_end(more);                                                                                                  \
    }

int open(const char *name, int flags, ...) { MODE return opening(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE return opening(AT_FDCWD, name, flags, mode); }
int openat(int at, const char *name, int flags, ...) { MODE return opening(at, name, flags, mode); }
int openat64(int at, const char *name, int flags, ...) { MODE return opening(at, name, flags, mode); }
int creat(const char *name, mode_t mode) { return opening(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *name, mode_t mode) { return opening(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }

/* Like open, but the C library opens the folder where we do not see it. */
DIR *opendir(const char *name) {
    char absolute[PATH_MAX];
    const char *path = inside(AT_FDCWD, name, absolute), *to = NULL;
    if (path) {
        pthread_mutex_lock(&lock);
        int what = judged("opendir", 0);
        record("opendir", -1, path, to, 0, what == ERROR ? number : 0, 0, 0, NULL, 0);
        pthread_mutex_unlock(&lock);
        if (what == ERROR) {
            errno = number;
            return NULL;
        }
    }
    return REAL(DIR *, "opendir", const char *)(name);
}

ssize_t write(int descriptor, const void *data, size_t size) {
    const char *path = held(descriptor), *to = NULL;
    ssize_t result;
    int flags = 0;
    AROUND("write", 1, path, REAL(ssize_t, "write", int, const void *, size_t)(descriptor, data, size), descriptor, 1,
           data);
    return result;
}

ssize_t sendfile64(int out, int in, off_t *offset, size_t size) {
    const char *path = held(out), *to = NULL;
    ssize_t result;
    int flags = 1; /* no data with it: a recording that holds one of these can't be replayed */
    AROUND("write", 1, path, REAL(ssize_t, "sendfile64", int, int, off_t *, size_t)(out, in, offset, size), out, 0,
           NULL);
    return result;
}

ssize_t sendfile(int out, int in, off_t *offset, size_t size) { return sendfile64(out, in, offset, size); }

#define READING(name, ...)                                                                                             \
    const char *path = held(descriptor), *to = NULL;                                                                   \
    ssize_t result;                                                                                                    \
    size_t size = 0;                                                                                                   \
    int flags = 0;                                                                                                     \
    (void)size;                                                                                                        \
    AROUND("read", 0, path, name(__VA_ARGS__), descriptor, 0, NULL);                                                   \
    return result;

ssize_t read(int descriptor, void *data, size_t count) {
    READING(REAL(ssize_t, "read", int, void *, size_t), descriptor, data, count)
}
ssize_t preadv64(int descriptor, const struct iovec *parts, int count, off64_t offset) {
    READING(REAL(ssize_t, "preadv64", int, const struct iovec *, int, off64_t), descriptor, parts, count, offset)
}
ssize_t preadv64v2(int descriptor, const struct iovec *parts, int count, off64_t offset, int how) {
    READING(REAL(ssize_t, "preadv64v2", int, const struct iovec *, int, off64_t, int), descriptor, parts, count, offset,
            how)
}

#define ON_DESCRIPTOR(call, name, needs_space)                                                                         \
    const char *path = held(descriptor), *to = NULL;                                                                   \
    int result, flags = 0;                                                                                             \
    size_t size = 0;                                                                                                   \
    (void)size;                                                                                                        \
    AROUND(call, needs_space, path, REAL(int, name, int)(descriptor), descriptor, 0, NULL);                            \
    return result;

int fsync(int descriptor) { ON_DESCRIPTOR("fsync", "fsync", 0) }
int fdatasync(int descriptor) { ON_DESCRIPTOR("fsync", "fdatasync", 0) }

/* A close that fails has closed all the same. */
int close(int descriptor) {
    const char *path = held(descriptor), *to = NULL;
    int result, flags = 0;
    if (!path)
        return REAL(int, "close", int)(descriptor);
    pthread_mutex_lock(&lock);
    int what = judged("close", 0);
    result = (int)syscall(SYS_close, descriptor);
    record("close", descriptor, path, NULL, 0, 0, 0, 0, NULL, 0);
    free(opened[descriptor]);
    opened[descriptor] = NULL;
    path = NULL;
    if (what == ERROR)
        result = FAIL("close");
    pthread_mutex_unlock(&lock);
    if (what == ERROR)
        errno = number;
    return result;
}

int flock(int descriptor, int flags) {
    const char *path = held(descriptor), *to = NULL;
    int result;
    size_t size = 0;
    (void)size;
    AROUND("flock", 0, path, REAL(int, "flock", int, int)(descriptor, flags), descriptor, 0, NULL);
    return result;
}

int ftruncate64(int descriptor, off64_t length) {
    const char *path = held(descriptor), *to = NULL;
    int result, flags = (int)length;
    size_t size = 0;
    (void)size;
    AROUND("truncate", 0, path, REAL(int, "ftruncate64", int, off64_t)(descriptor, length), descriptor, 0, NULL);
    return result;
}
int ftruncate(int descriptor, off_t length) { return ftruncate64(descriptor, length); }

#define TWO_PATHS(call, do_it)                                                                                         \
    char absolute[PATH_MAX], absolute_to[PATH_MAX];                                                                    \
    const char *path = inside(from_at, from, absolute), *to = inside(to_at, name, absolute_to);                        \
    int result;                                                                                                        \
    size_t size = 0;                                                                                                   \
    (void)size;                                                                                                        \
    AROUND(call, 1, path || to, do_it, -1, 0, NULL);                                                                   \
    return result;

static int linking(int from_at, const char *from, int to_at, const char *name, int flags) {
    if (has_no_links && root_length) {
        errno = EPERM;
        return -1;
    }
    TWO_PATHS("link", REAL(int, "linkat", int, const char *, int, const char *, int)(from_at, from, to_at, name, flags))
}
int link(const char *from, const char *name) { return linking(AT_FDCWD, from, AT_FDCWD, name, 0); }
int linkat(int from_at, const char *from, int to_at, const char *name, int flags) {
    return linking(from_at, from, to_at, name, flags);
}

static int renaming(int from_at, const char *from, int to_at, const char *name) {
    int flags = 0;
    TWO_PATHS("rename", REAL(int, "renameat", int, const char *, int, const char *)(from_at, from, to_at, name))
}
int rename(const char *from, const char *name) { return renaming(AT_FDCWD, from, AT_FDCWD, name); }
int renameat(int from_at, const char *from, int to_at, const char *name) {
    return renaming(from_at, from, to_at, name);
}

/* `to` is what the link says; only where it is made counts. */
static int symlinking(const char *says, int at, const char *name) {
    char absolute[PATH_MAX];
    const char *path = inside(at, name, absolute), *to = says;
    int result, flags = 0;
    size_t size = 0;
    (void)size;
    AROUND("symlink", 1, path, REAL(int, "symlinkat", const char *, int, const char *)(says, at, name), -1, 0, NULL);
    return result;
}
int symlink(const char *says, const char *name) { return symlinking(says, AT_FDCWD, name); }
int symlinkat(const char *says, int at, const char *name) { return symlinking(says, at, name); }

#define ONE_PATH(call, needs_space, do_it)                                                                             \
    char absolute[PATH_MAX];                                                                                           \
    const char *path = inside(at, name, absolute), *to = NULL;                                                         \
    int result;                                                                                                        \
    size_t size = 0;                                                                                                   \
    (void)size;                                                                                                        \
    AROUND(call, needs_space, path, do_it, -1, 0, NULL);                                                               \
    return result;

static int unlinking(int at, const char *name, int flags) {
    ONE_PATH(flags & AT_REMOVEDIR ? "rmdir" : "unlink", 0,
             REAL(int, "unlinkat", int, const char *, int)(at, name, flags))
}
int unlink(const char *name) { return unlinking(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinking(AT_FDCWD, name, AT_REMOVEDIR); }
int unlinkat(int at, const char *name, int flags) { return unlinking(at, name, flags); }

static int making(int at, const char *name, mode_t mode) {
    int flags = 0;
    ONE_PATH("mkdir", 1, REAL(int, "mkdirat", int, const char *, mode_t)(at, name, mode))
}
int mkdir(const char *name, mode_t mode) { return making(AT_FDCWD, name, mode); }
int mkdirat(int at, const char *name, mode_t mode) { return making(at, name, mode); }

#define STAT(symbol)                                                                                                   \
    int symbol(const char *name, void *status) {                                                                       \
        int at = AT_FDCWD, flags = 0;                                                                                  \
        ONE_PATH("stat", 0, REAL(int, #symbol, const char *, void *)(name, status))                                    \
    }
#undef stat
#undef stat64
STAT(stat64)
STAT(lstat64)
int fstatat64(int at, const char *name, void *status, int flags) {
    ONE_PATH("stat", 0, REAL(int, "fstatat64", int, const char *, void *, int)(at, name, status, flags))
}
int fstat64(int descriptor, void *status) {
    const char *path = held(descriptor), *to = NULL;
    int result, flags = 0;
    size_t size = 0;
    (void)size;
    AROUND("stat", 0, path, REAL(int, "fstat64", int, void *)(descriptor, status), descriptor, 0, NULL);
    return result;
}

/* What Python says through ctypes. */

/* Look at the calls below `folder` from now on; record them to `log` (NULL: do not). */
void faults_watch(const char *folder, const char *log) {
    pthread_mutex_lock(&lock);
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    if (log_descriptor >= 0)
        syscall(SYS_close, log_descriptor);
    log_descriptor =
        log ? (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    pthread_mutex_unlock(&lock);
}

/* Let the `at`-th call of that name from now on go wrong; what == 0: nothing any more. */
void faults_arm(const char *call, long at, int what, int value) {
    pthread_mutex_lock(&lock);
    snprintf(armed_call, sizeof armed_call, "%s", call);
    armed_at = at, fault = what, number = value, seen = 0, sticks = 0;
    pthread_mutex_unlock(&lock);
}

/* Whether the armed call was reached. */
int faults_reached(void) { return armed_at > 0 && seen >= armed_at; }

void faults_no_links(int yes) { has_no_links = yes; }

/* Put a word of the caller's into the record. */
void faults_mark(const char *word) {
    pthread_mutex_lock(&lock);
    record("mark", -1, word, NULL, 0, 0, 0, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("FAULTS_ROOT"), *log = getenv("FAULTS_LOG");
    if (folder)
        faults_watch(folder, log);
}
