/* areas MAPPED OPEN: that many secrets alive as mappings whose descriptors are closed, then that many open at once.
 *
 * Prints how many of each held their own bytes to the end. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif
#define SIZE 4096UL
#define MOST 4096

static char *maps[MOST];
static int fds[MOST];

static int make(int at) {
    int fd = (int)syscall(SYS_memfd_secret, O_CLOEXEC);
    if (fd == -1 || ftruncate(fd, SIZE) == -1)
        return -1;
    maps[at] = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (maps[at] == MAP_FAILED)
        return -1;
    memset(maps[at], at & 0xff, SIZE);
    memcpy(maps[at], &at, sizeof at);
    return fd;
}

static int holds(int at) {
    int number;
    memcpy(&number, maps[at], sizeof number);
    for (size_t i = sizeof number; i < SIZE; i++)
        if (maps[at][i] != (char)(at & 0xff))
            return 0;
    return number == at;
}

static int survivors(int number, int keep_open) {
    int good = 0, made = 0;
    for (; made < number && (fds[made] = make(made)) != -1; made++)
        if (!keep_open)
            close(fds[made]);
    for (int i = 0; i < made; i++) {
        good += holds(i);
        munmap(maps[i], SIZE);
        if (keep_open)
            close(fds[i]);
    }
    return good;
}

int main(int argc, char **argv) {
    if (argc != 3 || atoi(argv[1]) > MOST || atoi(argv[2]) > MOST)
        return 2;
    printf("mapped %d\n", survivors(atoi(argv[1]), 0));
    printf("open %d\n", survivors(atoi(argv[2]), 1));
    printf("mapped again %d\n", survivors(atoi(argv[1]), 0));
    return 0;
}
