/* A program of July 2020: secret memory by the interface of the patches of that time, which no kernel has had.
 *
 * It asks as the one known client does: system call 440 first, and memfd_create() with an ioctl only where that says
 * ENOSYS. Then it asks, as a program of today may, for a memfd that cannot be executed, whose flag is the same bit. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define SYS_SECRETMEMFD_OF_2020 440
#define MFD_SECRET 0x0008U
#define MFD_SECRET_EXCLUSIVE _IOW('-', 0x13, unsigned long)
#define MFD_SECRET_UNCACHED _IOW('-', 0x14, unsigned long)
#define SIZE 4096UL

#define SAY(name, call) (errno = 0, say(name, (long)(call)))

static void say(const char *name, long result) {
    printf("%s=%ld %s\n", name, result, result == -1 ? strerrorname_np(errno) : "0");
}

static long map(int fd, int kind) {
    void *there = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, kind, fd, 0);
    if (there == MAP_FAILED)
        return -1;
    munmap(there, SIZE);
    return 0;
}

static int secret(const char *name, unsigned flags, unsigned long mode) {
    int fd = memfd_create(name, flags | MFD_SECRET);
    char line[64];
    SAY(name, fd == -1 ? -1 : 0);
    snprintf(line, sizeof line, "%s.mode", name);
    SAY(line, ioctl(fd, mode));
    return fd;
}

static void use(int fd) {
    char got[16];
    struct iovec to = {got, 16}, from;
    SAY("second_mode", ioctl(fd, MFD_SECRET_UNCACHED));
    SAY("same_mode", ioctl(fd, MFD_SECRET_EXCLUSIVE));
    SAY("unknown_mode", ioctl(fd, _IOW('-', 0x15, unsigned long)));
    SAY("size", ftruncate(fd, SIZE));
    SAY("read", read(fd, got, 1));
    char *bytes = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    SAY("map", bytes == MAP_FAILED ? -1 : 0);
    memset(bytes, 's', SIZE);
    from = (struct iovec){bytes, 16};
    SAY("process_vm_readv", process_vm_readv(getpid(), &to, 1, &from, 1, 0));
    SAY("bytes", bytes[0] == 's' && bytes[SIZE - 1] == 's');
    munmap(bytes, SIZE);
}

static void over_the_limit(void) {
    int fd = secret("limited", MFD_CLOEXEC, MFD_SECRET_EXCLUSIVE);
    struct rlimit none = {0, 0};
    getrlimit(RLIMIT_MEMLOCK, &none);
    none.rlim_cur = 0;
    SAY("limited.size", ftruncate(fd, SIZE));
    setrlimit(RLIMIT_MEMLOCK, &none);
    SAY("limited.map", map(fd, MAP_SHARED));
    close(fd);
}

static void modern(void) {
    char got[4];
    int fd = memfd_create("modern", MFD_CLOEXEC | MFD_SECRET);
    SAY("modern", fd == -1 ? -1 : 0);
    SAY("modern.write", write(fd, "abc", 3));
    SAY("modern.read", pread(fd, got, 3, 0));
    SAY("modern.size", ftruncate(fd, SIZE));
    SAY("modern.size_again", ftruncate(fd, 2 * SIZE));
    SAY("modern.shared", map(fd, MAP_SHARED));
    SAY("modern.private", map(fd, MAP_PRIVATE));
    SAY("modern.seals", fcntl(fd, F_GET_SEALS));
    SAY("modern.seal", fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
    SAY("modern.shrink", ftruncate(fd, 0));
    close(fd);
}

int main(void) {
    SAY("call_440", syscall(SYS_SECRETMEMFD_OF_2020, 1));
    SAY("call_440_uncached", syscall(SYS_SECRETMEMFD_OF_2020, 2));
    int fd = secret("exclusive", MFD_CLOEXEC, MFD_SECRET_EXCLUSIVE);
    SAY("exclusive.getfd", fcntl(fd, F_GETFD));
    use(fd);
    close(fd);
    fd = secret("uncached", 0, MFD_SECRET_UNCACHED);
    SAY("uncached.getfd", fcntl(fd, F_GETFD));
    use(fd);
    close(fd);
    over_the_limit();
    modern();
    return 0;
}
