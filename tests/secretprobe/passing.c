/* A descriptor that gets another number in another way: dup2 to a small one, SCM_RIGHTS, pidfd_getfd. */
#include "probe.h"

#include <sys/socket.h>
#include <sys/wait.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#define SYS_pidfd_getfd 438
#endif

/* What a descriptor that has come in another way still is: the same bytes, and read() refused. */
static void use(const char *how, int fd) {
    char name[64], byte;
    struct area it = {fd, NULL, PAGE};
    it.map = map_shared(&it, PROT_READ | PROT_WRITE);
    snprintf(name, sizeof name, "%s.bytes", how);
    SAY(name, it.map == MAP_FAILED ? -1 : filled(it.map, 's', PAGE));
    snprintf(name, sizeof name, "%s.read", how);
    SAY(name, read(fd, &byte, 1));
    it.fd = -1;
    drop(&it);
}

static void small_number(void) {
    struct area one = area(PAGE);
    int small = dup2(one.fd, 20);
    SAY("small", small);
    use("small", small);
    SAY("small.write", write(small, "s", 1));
    SAY_MAPPED("small.private", mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, small, 0), PAGE);
    SAY("small.size_again", ftruncate(small, PAGE));
    close(small);
    SAY("small.bytes_unchanged", filled(one.map, 's', PAGE));
    drop(&one);
}

static int keep_and_wait(int socket) {
    struct area one = area(PAGE);
    char byte;
    send_fd(socket, one.fd);
    int number = one.fd;
    return write(socket, &number, sizeof number) == sizeof number && read(socket, &byte, 1) == 1 ? 0 : 1;
}

static void take(pid_t owner, int socket) {
    int passed = receive_fd(socket), number = -1, status;
    SAY("scm_rights", passed == -1 ? -1 : 0);
    use("scm_rights", passed);
    close(passed);
    if (read(socket, &number, sizeof number) != sizeof number)
        exit(2);
    int pidfd = (int)syscall(SYS_pidfd_open, owner, 0), taken;
    SAY("pidfd_getfd", (taken = (int)syscall(SYS_pidfd_getfd, pidfd, number, 0)) == -1 ? -1 : 0);
    use("pidfd_getfd", taken);
    close(taken);
    close(pidfd);
    SAY("passing.owner_goes_on", write(socket, "x", 1));
    waitpid(owner, &status, 0);
    SAY("passing.owner_ended", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
}

void probe_passing(void) {
    int sockets[2];
    small_number();
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == -1)
        exit(2);
    fflush(stdout);
    pid_t owner = fork();
    if (owner == 0)
        _exit(keep_and_wait(sockets[1]));
    take(owner, sockets[0]);
    close(sockets[0]);
    close(sockets[1]);
}
