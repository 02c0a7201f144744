/* Calls that would move bytes through the descriptor: read, write, splice and their kind. */
#include "probe.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/sendfile.h>
#include <sys/uio.h>

static char buffer[64];
static struct iovec vector[2] = {{buffer, 16}, {buffer + 16, 16}};

static void read_and_write(int fd) {
    SAY("read", read(fd, buffer, 16));
    SAY("read.nothing", read(fd, buffer, 0));
    SAY("read.bad_pointer", syscall(SYS_read, fd, 1L, 16));
    SAY("write", write(fd, buffer, 16));
    SAY("write.nothing", write(fd, buffer, 0));
    SAY("pread", pread(fd, buffer, 16, 0));
    SAY("pread.negative", pread(fd, buffer, 16, -1));
    SAY("pwrite", pwrite(fd, buffer, 16, 0));
    SAY("readv", readv(fd, vector, 2));
    SAY("readv.too_many", syscall(SYS_readv, fd, vector, 5000));
    SAY("writev", writev(fd, vector, 2));
    SAY("preadv", preadv(fd, vector, 2, 0));
    SAY("pwritev", pwritev(fd, vector, 2, 0));
    SAY("preadv2", preadv2(fd, vector, 2, 0, 0));
    SAY("preadv2.no_offset", preadv2(fd, vector, 2, -1, 0));
    SAY("preadv2.nowait", preadv2(fd, vector, 2, 0, RWF_NOWAIT));
    SAY("pwritev2", pwritev2(fd, vector, 2, 0, 0));
}

static void seek(int fd) {
    SAY("lseek.set", lseek(fd, 0, SEEK_SET));
    SAY("lseek.cur", lseek(fd, 0, SEEK_CUR));
    SAY("lseek.end", lseek(fd, 0, SEEK_END));
    SAY("lseek.data", lseek(fd, 0, SEEK_DATA));
    SAY("lseek.hole", lseek(fd, 0, SEEK_HOLE));
    SAY("lseek.bad", lseek(fd, 0, 99));
}

static void pipes(int fd) {
    int ends[2], other[2];
    off_t start = 0;
    if (pipe(ends) == -1 || pipe(other) == -1 || write(ends[1], "0123456789abcdef", 16) != 16)
        exit(2);
    SAY("splice.from", splice(fd, NULL, other[1], NULL, 16, 0));
    SAY("splice.from_offset", splice(fd, &start, other[1], NULL, 16, 0));
    SAY("splice.to", splice(ends[0], NULL, fd, NULL, 16, 0));
    SAY("splice.to_offset", splice(ends[0], NULL, fd, &start, 16, 0));
    SAY("tee.from", tee(fd, other[1], 16, 0));
    SAY("tee.to", tee(ends[0], fd, 16, 0));
    SAY("vmsplice.on_it", vmsplice(fd, vector, 1, 0));
    SAY("sendfile.from", sendfile(ends[1], fd, NULL, 16));
    SAY("sendfile.from_offset", sendfile(ends[1], fd, &start, 16));
    for (int i = 0; i < 2; i++) {
        close(ends[i]);
        close(other[i]);
    }
}

static void other_files(int fd) {
    char name[] = "probe-XXXXXX";
    int file = mkstemp(name);
    off_t start = 0, begin = 0;
    if (file == -1 || unlink(name) == -1 || pwrite(file, buffer, 64, 0) != 64)
        exit(2);
    SAY("sendfile.to", sendfile(fd, file, &start, 16));
    SAY("copy_file_range.from", copy_file_range(fd, NULL, file, NULL, 16, 0));
    SAY("copy_file_range.from_offset", copy_file_range(fd, &begin, file, NULL, 16, 0));
    SAY("copy_file_range.to", copy_file_range(file, NULL, fd, NULL, 16, 0));
    SAY("copy_file_range.itself", copy_file_range(fd, NULL, fd, NULL, 16, 0));
    close(file);
}

static void waiting(int fd) {
    struct pollfd asked = {fd, POLLIN | POLLOUT, 0};
    struct epoll_event event = {.events = EPOLLIN};
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    SAY("poll", poll(&asked, 1, 0));
    SAY("poll.events", asked.revents);
    SAY("epoll_ctl", epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event));
    close(epoll);
}

static void as_what_it_is_not(int fd) {
    SAY("getdents", syscall(SYS_getdents64, fd, buffer, sizeof buffer));
    SAY("fchdir", fchdir(fd));
    SAY("openat.below", openat(fd, "name", O_RDONLY));
    SAY("accept", syscall(SYS_accept, fd, NULL, NULL));
    SAY("fexecve", syscall(SYS_execveat, fd, "", (char *[]){NULL}, (char *[]){NULL}, AT_EMPTY_PATH));
}

void probe_descriptor(void) {
    struct area two = area(2 * PAGE);
    read_and_write(two.fd);
    seek(two.fd);
    pipes(two.fd);
    other_files(two.fd);
    waiting(two.fd);
    as_what_it_is_not(two.fd);
    SAY("descriptor.nothing_changed", filled(two.map, 's', two.size));
    drop(&two);
}
