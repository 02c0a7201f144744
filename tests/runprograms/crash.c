/* crash: a secret, shared anonymous memory and heap, each with bytes of its own, and then a signal that dumps core.
 *
 * The bytes are made when it runs, from a letter: they are nowhere in the program's file. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif
#define SIZE 4096UL

static void fill(char *piece, char letter) {
    for (int i = 0; i < 64; i++)
        piece[i] = (char)(letter + i % 3);
}

int main(void) {
    int fd = (int)syscall(SYS_memfd_secret, O_CLOEXEC);
    if (fd == -1 || ftruncate(fd, SIZE) == -1)
        return 1;
    char *secret = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *shared = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    char *heap = malloc(SIZE);
    if (secret == MAP_FAILED || shared == MAP_FAILED || heap == NULL)
        return 1;
    fill(secret, 'A');
    fill(shared, 'J');
    fill(heap, 'S');
    raise(SIGABRT);
    return 1;
}
