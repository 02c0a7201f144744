/* memfd_secret(2) itself: its flags, the descriptor that it returns, its size, what it says of itself. */
#include "probe.h"

#include <sys/resource.h>
#include <sys/vfs.h>

static void flags(void) {
    SAY_OPENED("create.none", secret(0));
    SAY_OPENED("create.cloexec", secret(O_CLOEXEC));
    SAY_OPENED("create.flag_1", secret(1));
    SAY_OPENED("create.flag_2", secret(2));
    SAY_OPENED("create.mfd_cloexec_and_more", secret(O_CLOEXEC | 1));
    SAY_OPENED("create.nonblock", secret(O_NONBLOCK));
    SAY_OPENED("create.append", secret(O_APPEND));
    SAY_OPENED("create.rdwr", secret(O_RDWR));
    SAY_OPENED("create.all_bits", secret(0xffffffffUL));
    SAY_OPENED("create.beyond_32_bits", secret(0x100000000UL));
}

static void fresh_descriptor(void) {
    int lowest = dup(0), plain, closing;
    close(lowest);
    plain = secret(0);
    SAY("create.lowest_free_number", plain == lowest);
    SAY("create.getfd", fcntl(plain, F_GETFD));
    SAY("create.getfl", fcntl(plain, F_GETFL));
    closing = secret(O_CLOEXEC);
    SAY("create.getfd_cloexec", fcntl(closing, F_GETFD));
    SAY("create.getfl_cloexec", fcntl(closing, F_GETFL));
    close(plain);
    close(closing);
    SAY("create.read_after_close", read(plain, &lowest, 1));
    SAY("create.close_twice", close(plain));
}

static void limit_descriptors(rlim_t number) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = number;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static int out_of_descriptors(void *unused) {
    (void)unused;
    int next = dup(0);
    close(next);
    limit_descriptors((rlim_t)next);
    return secret(0) == -1 ? errno : 0;
}

static int few_descriptors(void *unused) {
    (void)unused;
    limit_descriptors(256);
    return secret(0) == -1 ? errno : 0;
}

static int open_many(void *number) {
    int fds[200], made = 0;
    while (made < *(int *)number && (fds[made] = secret(O_CLOEXEC)) != -1)
        made++;
    for (int i = 0; i < made; i++)
        close(fds[i]);
    return made;
}

static void sizes(void) {
    struct area fresh = sized(0);
    SAY("size.negative", ftruncate(fresh.fd, -1));
    SAY("size.zero_while_zero", ftruncate(fresh.fd, 0));
    SAY("size.first", ftruncate(fresh.fd, 100));
    SAY("size.same_again", ftruncate(fresh.fd, 100));
    SAY("size.larger", ftruncate(fresh.fd, 8192));
    SAY("size.smaller", ftruncate(fresh.fd, 1));
    SAY("size.zero_again", ftruncate(fresh.fd, 0));
    SAY("size.negative_again", ftruncate(fresh.fd, -1));
    drop(&fresh);
    fresh = sized(0);
    SAY("size.huge", ftruncate(fresh.fd, 1L << 40));
    drop(&fresh);
}

static void said_of_it(void) {
    struct area two = area(2 * PAGE);
    struct stat said;
    struct statfs system;
    struct statx more;
    SAY("fstat", fstat(two.fd, &said));
    SAY("fstat.mode", said.st_mode);
    SAY("fstat.nlink", said.st_nlink);
    SAY("fstat.size", said.st_size);
    SAY("fstat.blksize", said.st_blksize);
    SAY("fstat.blocks", said.st_blocks);
    SAY("fstat.rdev", said.st_rdev);
    SAY("fstat.uid_is_mine", said.st_uid == geteuid());
    SAY("fstat.gid_is_mine", said.st_gid == getegid());
    SAY("fstat.atime_is_mtime", said.st_atime == said.st_mtime);
    SAY("statx", statx(two.fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &more));
    SAY("statx.attributes", (long)(more.stx_attributes & ~(unsigned long)STATX_ATTR_MOUNT_ROOT));
    SAY("fstatfs", fstatfs(two.fd, &system));
    SAY("fstatfs.type", system.f_type);
    SAY("fstatfs.bsize", system.f_bsize);
    SAY("fstatfs.namelen", system.f_namelen);
    SAY("fstatfs.blocks", (long)system.f_blocks);
    SAY("fstatfs.flags", system.f_flags);
    drop(&two);
}

void probe_create(void) {
    flags();
    fresh_descriptor();
    say_fate("create.limit_reached", out_of_descriptors, NULL);
    say_fate("create.limit_256", few_descriptors, NULL);
    say_fate("create.fifty_open", open_many, &(int){50});
    say_fate("create.two_hundred_open", open_many, &(int){200});
    sizes();
    said_of_it();
}
