/* Fork, exec, threads, numbers that are used again: how long a secret lives and who has it. */
#include "probe.h"

#include <pthread.h>
#include <sys/wait.h>

static int change_it(void *of) {
    struct area *shared = of;
    int seen = filled(shared->map, 's', shared->size);
    memset(shared->map, 'c', shared->size);
    return seen;
}

static int map_again(void *of) {
    struct area *shared = of;
    char *map = map_shared(shared, PROT_READ);
    return map == MAP_FAILED ? 0 : filled(map, 's', shared->size);
}

static int close_and_reuse(void *of) {
    struct area *shared = of;
    char byte;
    close(shared->fd);
    int file = open("/dev/zero", O_RDONLY);
    int same = dup2(file, shared->fd) == shared->fd;
    return same && read(shared->fd, &byte, 1) == 1 && byte == 0;
}

static int create_here(void *unused) {
    (void)unused;
    struct area own = area(PAGE);
    return filled(own.map, 's', PAGE);
}

static int read_it(void *of) {
    char byte;
    return read(((struct area *)of)->fd, &byte, 1) == -1 ? errno : 0;
}

static int grandchild(void *of) {
    return in_child(map_again, of);
}

static int address_left_out(void *of) {
    return *(volatile char *)((struct area *)of)->map;
}

static void forks(void) {
    struct area two = area(2 * PAGE);
    say_fate("fork.maps_again", map_again, &two);
    say_fate("fork.read", read_it, &two);
    say_fate("fork.grandchild", grandchild, &two);
    say_fate("fork.closes_and_reuses", close_and_reuse, &two);
    say_fate("fork.creates", create_here, NULL);
    say_fate("fork.sees_and_changes", change_it, &two);
    SAY("fork.change_is_seen", filled(two.map, 'c', two.size));
    madvise(two.map, two.size, MADV_DONTFORK);
    say_fate("fork.dontfork", address_left_out, &two);
    drop(&two);
}

int after_exec(int argc, char **argv) {
    struct area kept = {argc > 2 ? atoi(argv[2]) : -1, NULL, PAGE};
    char byte;
    if (read(kept.fd, &byte, 1) == -1 && errno == EBADF)
        return 1;
    kept.map = map_shared(&kept, PROT_READ);
    return kept.map == MAP_FAILED ? 2 : filled(kept.map, 's', PAGE) ? 3 : 4;
}

static int execute(void *of) {
    char number[16];
    snprintf(number, sizeof number, "%d", ((struct area *)of)->fd);
    execl("/proc/self/exe", "secretprobe", "exec", number, NULL);
    return 99;
}

static void execs(void) {
    struct area one = area(PAGE);
    say_fate("exec.closed", execute, &one);
    fcntl(one.fd, F_SETFD, 0);
    say_fate("exec.kept", execute, &one);
    drop(&one);
}

static void *thread(void *of) {
    struct area *made = of;
    *made = area(PAGE);
    return NULL;
}

static void threads(void) {
    pthread_t other;
    struct area made = {0};
    pthread_create(&other, NULL, thread, &made);
    pthread_join(other, NULL);
    SAY("thread.others_bytes", filled(made.map, 's', PAGE));
    SAY("thread.others_read", read(made.fd, &other, 1));
    drop(&made);
}

static void many(void) {
    static struct area all[200];
    int good = 0, again = 1;
    for (int i = 0; i < 200; i++) {
        all[i] = area(PAGE);
        memset(all[i].map, i, PAGE);
        close(all[i].fd);
        all[i].fd = -1;
    }
    for (int i = 0; i < 200; i++) {
        good += filled(all[i].map, (char)i, PAGE);
        drop(&all[i]);
    }
    SAY("life.mapped_and_closed", good);
    for (int i = 0; i < 300 && again; i++) {
        int fd = secret(O_CLOEXEC);
        again = fd != -1 && close(fd) == 0;
    }
    SAY("life.made_and_closed", again);
}

static int orphan(void *of) {
    int *ready = of;
    struct area one = area(PAGE);
    fflush(stdout);
    if (fork() != 0)
        return 0;
    char *map = map_shared(&one, PROT_READ);
    char answer = map != MAP_FAILED && filled(map, 's', PAGE);
    _exit(write(ready[1], &answer, 1) == 1 ? 0 : 1);
}

static void orphans(void) {
    int ready[2];
    char answer = 9;
    if (pipe(ready) == -1)
        exit(2);
    say_fate("life.parent_of_orphan", orphan, ready);
    SAY("life.orphan_reports", read(ready[0], &answer, 1));
    SAY("life.orphan_has_it", answer);
    close(ready[0]);
    close(ready[1]);
}

void probe_life(void) {
    forks();
    execs();
    threads();
    many();
    orphans();
}
