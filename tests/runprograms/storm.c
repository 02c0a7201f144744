/* storm THREADS ROUNDS: threads that make, size, map, duplicate, read and close secrets while signals rain on them.
 *
 * Each thread has its own byte, which no other's area may show. Prints what went wrong, or "ok N" with the number of
 * areas; the number of signals goes to standard error. The handler restarts calls (SA_RESTART), as Go's does. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif
#define SIZE 8192
#define MOST 64

static atomic_int good, signals, running;
static int rounds;

static void count(int number) {
    (void)number;
    signals++;
}

static int complain(const char *what) {
    printf("%s: %s\n", what, strerrorname_np(errno));
    return 0;
}

static int use(int fd, char *map, char byte) {
    char other;
    int copy = dup(fd);
    memset(map, byte, SIZE);
    if (copy == -1)
        return complain("dup");
    if (read(copy, &other, 1) != -1 || errno != EINVAL)
        return complain("read");
    close(copy);
    for (int i = 0; i < SIZE; i++)
        if (map[i] != byte)
            return complain("another's byte");
    return 1;
}

static int once(char byte) {
    int fd = (int)syscall(SYS_memfd_secret, O_CLOEXEC), done;
    if (fd == -1)
        return complain("memfd_secret");
    if (ftruncate(fd, SIZE) == -1)
        return complain("ftruncate");
    char *map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return complain("mmap");
    for (int i = 0; i < SIZE; i++)
        if (map[i] != 0)
            return complain("not zero");
    done = use(fd, map, byte);
    munmap(map, SIZE);
    return close(fd) == 0 && done;
}

static void *work(void *byte) {
    for (int i = 0; i < rounds; i++)
        good += once((char)(long)byte);
    running--;
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t threads[MOST];
    struct sigaction action = {.sa_handler = count, .sa_flags = SA_RESTART};
    const struct timespec pause = {0, 200000};
    int number = argc > 2 ? atoi(argv[1]) : 0;
    rounds = argc > 2 ? atoi(argv[2]) : 0;
    if (number < 1 || number > MOST)
        return 2;
    sigaction(SIGUSR1, &action, NULL);
    running = number;
    for (long i = 0; i < number; i++)
        pthread_create(&threads[i], NULL, work, (void *)(i + 1));
    while (running > 0) {
        for (int i = 0; i < number; i++)
            pthread_kill(threads[i], SIGUSR1);
        nanosleep(&pause, NULL);
    }
    for (int i = 0; i < number; i++)
        pthread_join(threads[i], NULL);
    fprintf(stderr, "%d signals\n", signals);
    printf("ok %d\n", good);
    return good == number * rounds ? 0 : 1;
}
