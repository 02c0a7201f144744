/* What a program under `secretfs run` spends: times operations that it is told on stdin, one line "NAME COUNT" each.
 *
 * runclient plain|allow-all|one-argument|started. "allow-all" installs a seccomp filter that allows everything: the price
 * of having any filter; "one-argument" one that looks at a descriptor, so that the kernel must run it. Ordinary calls: prints nanoseconds for one. "cycle" and "create": prints the 10th, 50th and 90th percentile
 * in nanoseconds. "started" prints CLOCK_MONOTONIC in nanoseconds and ends. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif
#define SIZE 4096UL

static int zero, null, file;

static long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

static void need(int good, const char *what) {
    if (!good) {
        perror(what);
        exit(1);
    }
}

static void call_getpid(void) {
    syscall(SYS_getpid);
}

static void call_read(void) {
    char byte;
    need(read(zero, &byte, 1) == 1, "read");
}

static void call_write(void) {
    need(write(null, "", 1) == 1, "write");
}

static void call_mmap(void) {
    void *map = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, file, 0);
    need(map != MAP_FAILED && munmap(map, SIZE) == 0, "mmap");
}

static void call_open(void) {
    int fd = open("/dev/null", O_RDONLY);
    need(fd != -1 && close(fd) == 0, "open");
}

static void call_fork(void) {
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    need(child > 0 && waitpid(child, NULL, 0) == child, "fork");
}

static void create(void) {
    int fd = (int)syscall(SYS_memfd_secret, O_CLOEXEC);
    need(fd != -1 && close(fd) == 0, "memfd_secret");
}

static void cycle(void) {
    int fd = (int)syscall(SYS_memfd_secret, O_CLOEXEC);
    need(fd != -1 && ftruncate(fd, SIZE) == 0, "memfd_secret");
    char *map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    need(map != MAP_FAILED, "mmap");
    *(volatile char *)map = 1;
    need(munmap(map, SIZE) == 0 && close(fd) == 0, "munmap");
}

static const struct {
    const char *name;
    void (*act)(void);
    int each;
} ACTS[] = {
    {"getpid", call_getpid, 0}, {"read", call_read, 0}, {"write", call_write, 0}, {"mmap", call_mmap, 0},
    {"open", call_open, 0},     {"fork", call_fork, 0}, {"create", create, 1},    {"cycle", cycle, 1},
};

static int ascending(const void *one, const void *other) {
    long a = *(const long *)one, b = *(const long *)other;
    return (a > b) - (a < b);
}

static void time_each(void (*act)(void), int count) {
    long *taken = malloc((size_t)count * sizeof *taken), start;
    for (int i = 0; i < count; i++) {
        start = now();
        act();
        taken[i] = now() - start;
    }
    qsort(taken, (size_t)count, sizeof *taken, ascending);
    printf("%ld %ld %ld\n", taken[count / 10], taken[count / 2], taken[count * 9 / 10]);
    free(taken);
}

static void time_all(void (*act)(void), int count) {
    long start = now();
    for (int i = 0; i < count; i++)
        act();
    printf("%.1f\n", (double)(now() - start) / count);
}

static void serve(const char *name, int count) {
    for (size_t i = 0; i < sizeof ACTS / sizeof *ACTS; i++)
        if (strcmp(ACTS[i].name, name) == 0)
            (ACTS[i].each ? time_each : time_all)(ACTS[i].act, count);
    fflush(stdout);
}

static void install(struct sock_fprog program) {
    need(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "no_new_privs");
    need(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) == 0, "seccomp");
}

static void allow_all(void) {
    struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    install((struct sock_fprog){1, code});
}

/* The least that a filter can do which looks at an argument of read(2) and write(2), and nothing else. */
static void one_argument(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0), BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, SYS_write, 2, 0),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 16), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 1 << 30, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO),
    };
    install((struct sock_fprog){6, code});
}

int main(int argc, char **argv) {
    char name[32];
    int count;
    if (argc > 1 && strcmp(argv[1], "started") == 0)
        return printf("%ld\n", now()) < 0;
    if (argc > 1 && strcmp(argv[1], "allow-all") == 0)
        allow_all();
    if (argc > 1 && strcmp(argv[1], "one-argument") == 0)
        one_argument();
    zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    need(zero != -1 && null != -1 && file != -1, "open");
    while (scanf("%31s %d", name, &count) == 2)
        serve(name, count);
    return 0;
}
