/* crossing N: N ordinary files open at once, so that their numbers cross the reserved ones, among secrets.
 *
 * Each is a pipe or a file of its own, and is read, written, sized, mapped and duplicated as if there were no secrets. */
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
#define SECRETS 8
#define MOST 8192

static int works(int fd, int at) {
    char got[4] = "";
    int copy = dup(fd), good;
    good = copy != -1 && pwrite(copy, &at, sizeof at, 0) == sizeof at && pread(fd, got, sizeof got, 0) == sizeof got;
    good = good && memcmp(got, &at, sizeof at) == 0 && lseek(fd, 2, SEEK_SET) == 2 && read(fd, got, 4) == 2;
    good = good && ftruncate(fd, SIZE) == 0 && ftruncate(fd, 2 * SIZE) == 0 && fsync(fd) == 0;
    int *map = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE, fd, 0);
    good = good && map != MAP_FAILED && *map == at;
    munmap(map, SIZE);
    close(copy);
    return good;
}

int main(int argc, char **argv) {
    int number = argc > 1 ? atoi(argv[1]) : 0, good = 0, refused = 0, secrets[SECRETS];
    static int files[MOST];
    char byte;
    if (number > MOST)
        return 2;
    for (int i = 0; i < SECRETS; i++)
        secrets[i] = (int)syscall(SYS_memfd_secret, O_CLOEXEC);
    for (int i = 0; i < number; i++)
        files[i] = memfd_create("ordinary", MFD_CLOEXEC);
    for (int i = 0; i < number; i++)
        good += files[i] != -1 && works(files[i], i);
    for (int i = 0; i < SECRETS; i++)
        refused += secrets[i] != -1 && read(secrets[i], &byte, 1) == -1 && ftruncate(secrets[i], SIZE) == 0;
    printf("%d files, %d secrets\n", good, refused);
    return 0;
}
