/* The lock limit, step by step, in a child that has no CAP_IPC_LOCK. */
#include "probe.h"

#include <linux/capability.h>
#include <sys/resource.h>

static void limit_pages(size_t pages) {
    struct rlimit limit;
    getrlimit(RLIMIT_MEMLOCK, &limit);
    limit.rlim_cur = pages * PAGE;
    setrlimit(RLIMIT_MEMLOCK, &limit);
}

static void without_privilege(void) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct caps[2] = {{0}, {0}};
    syscall(SYS_capget, &head, caps);
    caps[0].effective &= ~(1U << CAP_IPC_LOCK);
    syscall(SYS_capset, &head, caps);
}

static char *map_pages(struct area *fresh, size_t pages) {
    *fresh = sized(pages * PAGE);
    errno = 0;
    return fresh->map = map_shared(fresh, PROT_READ | PROT_WRITE);
}

static long could_map(size_t pages) {
    struct area fresh;
    if (map_pages(&fresh, pages) == MAP_FAILED) {
        int why = errno;
        close(fresh.fd);
        errno = why;
        return -1;
    }
    drop(&fresh);
    return 0;
}

static int child_has_its_own(void *unused) {
    (void)unused;
    return could_map(1) == -1 ? errno : 0;
}

static void fill_up(void) {
    struct area first, second;
    SAY("limits.half", map_pages(&first, 2) == MAP_FAILED ? -1 : 0);
    SAY("limits.full", map_pages(&second, 2) == MAP_FAILED ? -1 : 0);
    SAY("limits.one_more", could_map(1));
    SAY("limits.same_again", mapped(map_shared(&first, PROT_READ), PAGE));
    say_fate("limits.child", child_has_its_own, NULL);
    close(first.fd);
    first.fd = -1;
    SAY("limits.closed_still_counts", could_map(1));
    munmap(first.map, PAGE);
    SAY("limits.half_unmapped", could_map(1));
    SAY("limits.half_unmapped_two", could_map(2));
    first.map += PAGE;
    first.size = PAGE;
    char *grown = mremap(first.map, PAGE, 3 * PAGE, MREMAP_MAYMOVE);
    say("limits.grow", grown == MAP_FAILED ? -1 : 0);
    if (grown != MAP_FAILED)
        first.map = mremap(grown, 3 * PAGE, PAGE, 0);
    drop(&second);
    SAY("limits.after_unmap", could_map(2));
    limit_pages(8);
    SAY("limits.raised", could_map(6));
    limit_pages(0);
    SAY("limits.zero", could_map(1));
    SAY("limits.zero_mlock", mlock(&first, 1));
    drop(&first);
}

static void mixed(void) {
    struct area two;
    char *ordinary = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    limit_pages(4);
    map_pages(&two, 2);
    SAY("limits.mlock_beside_it", mlock(ordinary, 2 * PAGE));
    SAY("limits.mlock_too_much", mlock(ordinary, 3 * PAGE));
    SAY("limits.map_beside_mlock", could_map(1));
    munlock(ordinary, 4 * PAGE);
    SAY("limits.map_after_munlock", could_map(2));
    munmap(ordinary, 4 * PAGE);
    drop(&two);
}

static int steps(void *unused) {
    (void)unused;
    without_privilege();
    limit_pages(4);
    SAY("limits.too_large_at_once", could_map(5));
    fill_up();
    mixed();
    limit_pages(4);
    struct area odd = sized(100);
    SAY("limits.longer_than_it", mapped(mmap(NULL, 5 * PAGE, PROT_READ, MAP_SHARED, odd.fd, 0), 5 * PAGE));
    drop(&odd);
    return 0;
}

static int privileged(void *unused) {
    (void)unused;
    limit_pages(1);
    return could_map(2) == -1 ? errno : 0;
}

void probe_limits(void) {
    say_fate("limits.steps", steps, NULL);
    say_fate("limits.with_the_capability", privileged, NULL);
}
