/* madvise(2), mlock(2), msync(2) and others that speak about a mapping, on that of a secret. */
#include "probe.h"

#include <sys/prctl.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static const struct {
    const char *name;
    int advice;
} ADVICE[] = {
    {"madvise.normal", MADV_NORMAL},
    {"madvise.random", MADV_RANDOM},
    {"madvise.sequential", MADV_SEQUENTIAL},
    {"madvise.willneed", MADV_WILLNEED},
    {"madvise.dontneed", MADV_DONTNEED},
    {"madvise.free", MADV_FREE},
    {"madvise.remove", MADV_REMOVE},
    {"madvise.dontfork", MADV_DONTFORK},
    {"madvise.dofork", MADV_DOFORK},
    {"madvise.mergeable", MADV_MERGEABLE},
    {"madvise.unmergeable", MADV_UNMERGEABLE},
    {"madvise.dontdump", MADV_DONTDUMP},
    {"madvise.wipeonfork", MADV_WIPEONFORK},
    {"madvise.keeponfork", MADV_KEEPONFORK},
    {"madvise.cold", MADV_COLD},
    {"madvise.pageout", MADV_PAGEOUT},
    {"madvise.populate_read", MADV_POPULATE_READ},
    {"madvise.populate_write", MADV_POPULATE_WRITE},
    {"madvise.unknown", 9999},
};

/* An area of its own for each: an advice may change what the next would do. */
static void advise(void) {
    int kept = 1;
    for (size_t i = 0; i < sizeof ADVICE / sizeof *ADVICE; i++) {
        struct area two = area(2 * PAGE);
        SAY(ADVICE[i].name, madvise(two.map, two.size, ADVICE[i].advice));
        kept &= filled(two.map, 's', two.size);
        drop(&two);
    }
    SAY("madvise.bytes_stay", kept);
}

static void lock(const struct area *two) {
    unsigned char there[2] = {9, 9};
    SAY("msync.async", msync(two->map, two->size, MS_ASYNC));
    SAY("msync.sync", msync(two->map, two->size, MS_SYNC));
    SAY("msync.invalidate", msync(two->map, two->size, MS_INVALIDATE));
    SAY("mlock", mlock(two->map, two->size));
    SAY("mlock.on_fault", mlock2(two->map, two->size, MLOCK_ONFAULT));
    SAY("munlock", munlock(two->map, two->size));
    SAY("mincore", mincore(two->map, two->size, there));
    SAY("mincore.first", there[0] & 1);
}

static void others(const struct area *two) {
    int node = 0, status = 99;
    void *page = two->map;
    SAY("remap_file_pages", remap_file_pages(two->map, PAGE, 0, 1, 0));
    SAY("remap_file_pages.back", remap_file_pages(two->map, PAGE, 0, 0, 0));
    SAY("get_mempolicy", syscall(SYS_get_mempolicy, &node, NULL, 0, two->map, 2));
    SAY("move_pages", syscall(SYS_move_pages, 0, 1, &page, NULL, &status, 0));
    SAY("prctl.name_it", prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, two->map, PAGE, "name"));
}

static int lock_all(void *unused) {
    (void)unused;
    return mlockall(MCL_CURRENT | MCL_ONFAULT) == -1 ? errno : 0;
}

void probe_advice(void) {
    struct area two = area(2 * PAGE);
    advise();
    lock(&two);
    others(&two);
    say_fate("mlockall", lock_all, NULL);
    SAY("advice.nothing_changed", filled(two.map, 's', two.size));
    drop(&two);
}
