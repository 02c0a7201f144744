/* secretprobe [undumpable] [PART...]: what a program can observe of memfd_secret(2), one line for each observation;
 * "undumpable": as a process that nobody but root may look at (PR_SET_DUMPABLE). */
#include "probe.h"

#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

static const struct {
    const char *name;
    void (*run)(void);
} PARTS[] = {
    {"create", probe_create}, {"descriptor", probe_descriptor}, {"file", probe_file},       {"path", probe_path},
    {"mapping", probe_mapping}, {"advice", probe_advice},       {"access", probe_access},   {"tracing", probe_tracing},
    {"devices", probe_devices}, {"life", probe_life},           {"passing", probe_passing}, {"limits", probe_limits},
};
#define COUNT (sizeof PARTS / sizeof *PARTS)

void say(const char *name, long result) {
    printf("%s=%ld %s\n", name, result, result == -1 ? strerrorname_np(errno) : "0");
}

void say_text(const char *name, const char *text) {
    printf("%s=%s 0\n", name, text);
}

long opened(int fd) {
    if (fd == -1)
        return -1;
    close(fd);
    return 0;
}

long mapped(void *map, size_t size) {
    if (map == MAP_FAILED)
        return -1;
    munmap(map, size);
    return 0;
}

int secret(unsigned long flags) {
    return (int)syscall(SYS_memfd_secret, flags);
}

static void fail(const char *what) {
    perror(what);
    exit(2);
}

struct area sized(size_t size) {
    struct area fresh = {secret(O_CLOEXEC), NULL, size};
    if (fresh.fd == -1)
        fail("memfd_secret");
    if (size > 0 && ftruncate(fresh.fd, (off_t)size) == -1)
        fail("ftruncate");
    return fresh;
}

struct area area(size_t size) {
    struct area fresh = sized(size);
    fresh.map = map_shared(&fresh, PROT_READ | PROT_WRITE);
    if (fresh.map == MAP_FAILED)
        fail("mmap");
    memset(fresh.map, 's', size);
    return fresh;
}

void *map_shared(const struct area *of, int protection) {
    return mmap(NULL, of->size, protection, MAP_SHARED, of->fd, 0);
}

void drop(struct area *gone) {
    if (gone->map != NULL)
        munmap(gone->map, gone->size);
    if (gone->fd != -1)
        close(gone->fd);
}

static int wait_status(int (*function)(void *), void *argument) {
    int status = 0;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        _exit(function(argument));
    while (waitpid(child, &status, 0) == -1 && errno == EINTR)
        ;
    return status;
}

int in_child(int (*function)(void *), void *argument) {
    int status = wait_status(function, argument);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

void say_fate(const char *name, int (*function)(void *), void *argument) {
    int status = wait_status(function, argument);
    if (WIFSIGNALED(status))
        printf("%s=-1 SIG%s\n", name, sigabbrev_np(WTERMSIG(status)));
    else
        printf("%s=%d 0\n", name, WEXITSTATUS(status));
}

int filled(const char *piece, char byte, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (piece[i] != byte)
            return 0;
    return 1;
}

static struct msghdr message(struct iovec *data, char *control, size_t size) {
    return (struct msghdr){.msg_iov = data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = size};
}

void send_fd(int socket, int fd) {
    char byte = 0, control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec data = {&byte, 1};
    struct msghdr sent = message(&data, control, sizeof control);
    struct cmsghdr *head = CMSG_FIRSTHDR(&sent);
    *head = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof fd)};
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    if (sendmsg(socket, &sent, 0) != 1)
        fail("sendmsg");
}

int receive_fd(int socket) {
    int fd = -1;
    char byte, control[CMSG_SPACE(sizeof fd)];
    struct iovec data = {&byte, 1};
    struct msghdr got = message(&data, control, sizeof control);
    if (recvmsg(socket, &got, MSG_CMSG_CLOEXEC) == 1 && CMSG_FIRSTHDR(&got) != NULL)
        memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&got)), sizeof fd);
    return fd;
}

static int wanted(const char *name, int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], name) == 0)
            return 1;
    return argc == 1;
}

int main(int argc, char **argv) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 2 && strcmp(argv[1], "exec") == 0)
        return after_exec(argc, argv);
    if (argc > 1 && strcmp(argv[1], "undumpable") == 0) {
        prctl(PR_SET_DUMPABLE, 0);
        argc--;
        argv++;
    }
    for (size_t i = 0; i < COUNT; i++)
        if (wanted(PARTS[i].name, argc, argv))
            PARTS[i].run();
    return 0;
}
