/* Calls on the descriptor that are not about bytes: fcntl, ioctl, locks, seals, attributes, duplicates. */
#include "probe.h"

#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <sys/xattr.h>
#include <termios.h>

static void space(int fd) {
    SAY("fallocate", fallocate(fd, 0, 0, PAGE));
    SAY("fallocate.punch", fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE));
    SAY("fallocate.empty", fallocate(fd, 0, 0, 0));
    SAY("fsync", fsync(fd));
    SAY("fdatasync", fdatasync(fd));
    SAY("sync_file_range", sync_file_range(fd, 0, PAGE, SYNC_FILE_RANGE_WRITE));
    SAY("syncfs", syncfs(fd));
    SAY("readahead", readahead(fd, 0, PAGE));
    SAY("fadvise.willneed", (errno = posix_fadvise(fd, 0, PAGE, POSIX_FADV_WILLNEED)) ? -1 : 0);
    SAY("fadvise.dontneed", (errno = posix_fadvise(fd, 0, PAGE, POSIX_FADV_DONTNEED)) ? -1 : 0);
}

static void ioctls(int fd) {
    int number = 0;
    struct termios terminal;
    SAY("ioctl.unknown", ioctl(fd, 0x1234, &number));
    SAY("ioctl.terminal", ioctl(fd, TCGETS, &terminal));
    SAY("ioctl.readable", ioctl(fd, FIONREAD, &number));
    SAY("ioctl.nonblocking", ioctl(fd, FIONBIO, &number));
    SAY("ioctl.cloexec", ioctl(fd, FIOCLEX));
    SAY("ioctl.get_flags", ioctl(fd, FS_IOC_GETFLAGS, &number));
    SAY("ioctl.rfc_exclusive", ioctl(fd, 0x40082d13, 0));
    SAY("ioctl.clone", ioctl(fd, FICLONE, fd));
}

static void flags(int fd) {
    SAY("setfd.none", fcntl(fd, F_SETFD, 0));
    SAY("setfd.read_back", fcntl(fd, F_GETFD));
    SAY("setfd.cloexec", fcntl(fd, F_SETFD, FD_CLOEXEC));
    SAY("setfl.nonblock", fcntl(fd, F_SETFL, O_NONBLOCK));
    SAY("setfl.read_back", fcntl(fd, F_GETFL));
    SAY("setfl.append", fcntl(fd, F_SETFL, O_APPEND));
    SAY("setfl.direct", fcntl(fd, F_SETFL, O_DIRECT));
    SAY("setfl.async", fcntl(fd, F_SETFL, O_ASYNC));
    SAY("setfl.none", fcntl(fd, F_SETFL, 0));
    SAY("fcntl.owner", fcntl(fd, F_SETOWN, 0));
    SAY("fcntl.signal", fcntl(fd, F_GETSIG));
    SAY("fcntl.pipe_size", fcntl(fd, F_GETPIPE_SZ));
    SAY("fcntl.notify", fcntl(fd, F_NOTIFY, DN_MODIFY));
    SAY("fcntl.unknown", fcntl(fd, 9999, 0));
}

static void locks(int fd) {
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET}, shared = {.l_type = F_RDLCK};
    SAY("lock.set", fcntl(fd, F_SETLK, &whole));
    SAY("lock.get", fcntl(fd, F_GETLK, &shared));
    SAY("lock.description", fcntl(fd, F_OFD_SETLK, &(struct flock){.l_type = F_UNLCK}));
    SAY("flock.exclusive", flock(fd, LOCK_EX | LOCK_NB));
    SAY("flock.release", flock(fd, LOCK_UN));
    SAY("lease.read", fcntl(fd, F_SETLEASE, F_RDLCK));
    SAY("lease.write", fcntl(fd, F_SETLEASE, F_WRLCK));
    SAY("lease.give_back", fcntl(fd, F_SETLEASE, F_UNLCK));
    SAY("lease.get", fcntl(fd, F_GETLEASE));
    SAY("seals.get", fcntl(fd, F_GET_SEALS));
    SAY("seals.add", fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK));
}

static void attributes(int fd) {
    char value[16];
    struct stat said;
    SAY("xattr.set", fsetxattr(fd, "user.a", "x", 1, 0));
    SAY("xattr.get", fgetxattr(fd, "user.a", value, sizeof value));
    SAY("xattr.list", flistxattr(fd, value, 0));
    SAY("xattr.remove", fremovexattr(fd, "user.a"));
    SAY("fchmod", fchmod(fd, 0640));
    fstat(fd, &said);
    SAY("fchmod.read_back", said.st_mode);
    SAY("fchown.nothing", fchown(fd, (uid_t)-1, (gid_t)-1));
    SAY("futimens", futimens(fd, NULL));
}

static void duplicates(int fd) {
    int copy, chosen = dup(0), more;
    SAY("dup", (copy = dup(fd)) == -1 ? -1 : 0);
    struct area same = {copy, NULL, 2 * PAGE};
    SAY("dup.getfd", fcntl(copy, F_GETFD));
    SAY("dup.read", read(copy, &more, 1));
    SAY_MAPPED("dup.map", map_shared(&same, PROT_READ), same.size);
    SAY("dup2.itself", dup2(fd, fd) == fd);
    SAY("dup3.itself", dup3(fd, fd, 0));
    SAY("dup2.over_a_file", dup2(fd, chosen) == chosen);
    SAY("dup3.over_a_file", dup3(fd, chosen, O_CLOEXEC) == chosen);
    SAY("dup3.bad_flag", dup3(fd, chosen, 1));
    SAY("dup2.file_over_it", dup2(0, copy) == copy);
    SAY_OPENED("dup.fcntl", fcntl(fd, F_DUPFD, 0));
    SAY("dup.fcntl_from", (more = fcntl(fd, F_DUPFD_CLOEXEC, 100)) >= 100);
    close(more);
    SAY("dup.fcntl_beyond", fcntl(fd, F_DUPFD, 1 << 30));
    close(copy);
    close(chosen);
}

void probe_file(void) {
    struct area two = area(2 * PAGE);
    space(two.fd);
    ioctls(two.fd);
    flags(two.fd);
    locks(two.fd);
    attributes(two.fd);
    duplicates(two.fd);
    SAY("file.nothing_changed", filled(two.map, 's', two.size));
    drop(&two);
}
