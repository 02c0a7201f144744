/* mmap(2), mprotect(2), mremap(2) and munmap(2) of a secret, and what touching it does. */
#include "probe.h"

static int touch(void *address) {
    return *(volatile char *)address;
}

static int store(void *address) {
    *(volatile char *)address = 'x';
    return 0;
}

static int run(void *address) {
    return ((int (*)(void))address)();
}

#define MAP(protection, flags, offset) mmap(NULL, PAGE, protection, flags, two->fd, offset)

static void kinds(const struct area *two) {
    int both = PROT_READ | PROT_WRITE;
    SAY_MAPPED("mmap.shared", MAP(both, MAP_SHARED, 0), PAGE);
    SAY_MAPPED("mmap.read", MAP(PROT_READ, MAP_SHARED, 0), PAGE);
    SAY_MAPPED("mmap.write", MAP(PROT_WRITE, MAP_SHARED, 0), PAGE);
    SAY_MAPPED("mmap.none", MAP(PROT_NONE, MAP_SHARED, 0), PAGE);
    SAY_MAPPED("mmap.exec", MAP(PROT_READ | PROT_EXEC, MAP_SHARED, 0), PAGE);
    SAY_MAPPED("mmap.all", MAP(both | PROT_EXEC, MAP_SHARED, 0), PAGE);
    SAY_MAPPED("mmap.private", MAP(both, MAP_PRIVATE, 0), PAGE);
    SAY_MAPPED("mmap.private_read", MAP(PROT_READ, MAP_PRIVATE, 0), PAGE);
    SAY_MAPPED("mmap.no_kind", MAP(both, 0, 0), PAGE);
    SAY_MAPPED("mmap.validate", MAP(both, MAP_SHARED_VALIDATE, 0), PAGE);
    SAY_MAPPED("mmap.sync", MAP(both, MAP_SHARED_VALIDATE | MAP_SYNC, 0), PAGE);
    SAY_MAPPED("mmap.populate", MAP(both, MAP_SHARED | MAP_POPULATE, 0), PAGE);
    SAY_MAPPED("mmap.locked", MAP(both, MAP_SHARED | MAP_LOCKED, 0), PAGE);
    SAY_MAPPED("mmap.noreserve", MAP(both, MAP_SHARED | MAP_NORESERVE, 0), PAGE);
    SAY_MAPPED("mmap.huge", MAP(both, MAP_SHARED | MAP_HUGETLB, 0), PAGE);
    SAY_MAPPED("mmap.second_page", MAP(both, MAP_SHARED, PAGE), PAGE);
    SAY_MAPPED("mmap.beyond", MAP(both, MAP_SHARED, 4 * PAGE), PAGE);
    SAY_MAPPED("mmap.unaligned", MAP(both, MAP_SHARED, 100), PAGE);
    SAY_MAPPED("mmap.nothing", mmap(NULL, 0, both, MAP_SHARED, two->fd, 0), PAGE);
    SAY_MAPPED("mmap.anonymous_with_it", MAP(both, MAP_PRIVATE | MAP_ANONYMOUS, 0), PAGE);
}

static void places(const struct area *two) {
    int both = PROT_READ | PROT_WRITE;
    char *room = mmap(NULL, 4 * PAGE, both, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    SAY("mmap.fixed", mmap(room, PAGE, both, MAP_SHARED | MAP_FIXED, two->fd, 0) == room);
    SAY("mmap.fixed_same_bytes", room[0] == 's');
    SAY("mmap.fixed_unaligned",
        mmap(room + 1, PAGE, both, MAP_SHARED | MAP_FIXED, two->fd, 0) == MAP_FAILED ? -1 : 0);
    SAY("mmap.no_replace",
        mmap(room, PAGE, both, MAP_SHARED | MAP_FIXED_NOREPLACE, two->fd, 0) == MAP_FAILED ? -1 : 0);
    munmap(room, 4 * PAGE);
}

static void protections(const struct area *two) {
    char *map = map_shared(two, PROT_READ), *seen;
    say_fate("touch.read_only_read", touch, map);
    say_fate("touch.read_only_write", store, map);
    SAY("mprotect.read_write", mprotect(map, two->size, PROT_READ | PROT_WRITE));
    map[0] = 'w';
    SAY("mapping.two_views", two->map[0]);
    two->map[0] = 's';
    SAY("mprotect.half", mprotect(map, PAGE, PROT_READ));
    SAY("mprotect.none", mprotect(map, two->size, PROT_NONE));
    say_fate("touch.none", touch, map);
    SAY("mprotect.exec", mprotect(map, two->size, PROT_READ | PROT_EXEC));
    SAY("mprotect.all", mprotect(map, two->size, PROT_READ | PROT_WRITE | PROT_EXEC));
    SAY("mprotect.back", mprotect(map, two->size, PROT_READ));
    say_fate("touch.run", run, map);
    SAY("munmap.half", munmap(map, PAGE));
    say_fate("touch.unmapped_half", touch, map);
    say_fate("touch.other_half", touch, map + PAGE);
    SAY("munmap.rest", munmap(map + PAGE, PAGE));
    seen = map_shared(two, PROT_READ);
    SAY("munmap.bytes_stay", filled(seen, 's', two->size));
    munmap(seen, two->size);
}

static void moves(const struct area *two) {
    char *map = map_shared(two, PROT_READ | PROT_WRITE), *moved;
    SAY("mremap.shrink", mremap(map, two->size, PAGE, 0) == map);
    SAY("mremap.grow", (moved = mremap(map, PAGE, 2 * PAGE, MREMAP_MAYMOVE)) == MAP_FAILED ? -1 : 0);
    if (moved == MAP_FAILED)
        moved = map;
    SAY("mremap.grown_bytes", filled(moved, 's', PAGE));
    SAY("mremap.copy", (map = mremap(moved, 0, PAGE, MREMAP_MAYMOVE)) == MAP_FAILED ? -1 : 0);
    if (map != MAP_FAILED)
        munmap(map, PAGE);
    map = mremap(moved, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL);
    say("mremap.dont_unmap", map == MAP_FAILED ? -1 : 0);
    if (map != MAP_FAILED)
        munmap(map, PAGE);
    munmap(moved, 2 * PAGE);
}

static void exit_with_code(int number, siginfo_t *about, void *context) {
    (void)number;
    (void)context;
    _exit(about->si_code);
}

static int code_of_touch(void *address) {
    struct sigaction action = {.sa_sigaction = exit_with_code, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGSEGV, &action, NULL);
    touch(address);
    return 100;
}

static void ends(void) {
    struct area odd = sized(100), none = sized(0);
    odd.size = 3 * PAGE;
    SAY("mmap.longer_than_it", (odd.map = map_shared(&odd, PROT_READ | PROT_WRITE)) == MAP_FAILED ? -1 : 0);
    SAY("touch.fresh_is_zero", filled(odd.map, 0, PAGE));
    say_fate("touch.last_page", touch, odd.map + PAGE - 1);
    say_fate("touch.beyond", touch, odd.map + PAGE);
    say_fate("touch.beyond_write", store, odd.map + 2 * PAGE);
    say_fate("touch.beyond_code", code_of_touch, odd.map + PAGE);
    none.size = PAGE;
    SAY("mmap.of_size_zero", (none.map = map_shared(&none, PROT_READ | PROT_WRITE)) == MAP_FAILED ? -1 : 0);
    say_fate("touch.of_size_zero", touch, none.map);
    SAY("size.while_mapped", ftruncate(none.fd, PAGE));
    say_fate("touch.sized_later", touch, none.map);
    SAY("size.while_mapped_again", ftruncate(none.fd, 2 * PAGE));
    drop(&odd);
    drop(&none);
}

static void after_close(void) {
    struct area one = area(PAGE);
    close(one.fd);
    SAY("close.bytes_stay", filled(one.map, 's', PAGE));
    SAY_MAPPED("close.map_again", map_shared(&one, PROT_READ), PAGE);
    one.fd = -1;
    drop(&one);
    one = sized(PAGE);
    one.map = map_shared(&one, PROT_READ);
    SAY("close.fresh_is_zero", filled(one.map, 0, PAGE));
    drop(&one);
}

void probe_mapping(void) {
    struct area two = area(2 * PAGE);
    kinds(&two);
    places(&two);
    protections(&two);
    moves(&two);
    drop(&two);
    ends();
    after_close();
}
