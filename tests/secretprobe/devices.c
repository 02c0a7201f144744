/* Input and output past the page cache, and asynchronous: O_DIRECT, io_uring, aio, MSG_ZEROCOPY, on and into a secret. */
#include "probe.h"

#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/uio.h>

struct ring {
    int fd;
    struct io_uring_params params;
    char *rings;
    struct io_uring_sqe *entries;
};

static struct ring open_ring(void) {
    struct ring ring = {.params = {0}};
    errno = 0;
    ring.fd = (int)syscall(SYS_io_uring_setup, 4, &ring.params);
    if (ring.fd != -1) {
        ring.rings = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_SQ_RING);
        ring.entries = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_SQES);
    }
    return ring;
}

#define AT(offset) ((unsigned *)(ring->rings + (offset)))

/* The result of one request: -1 and errno, or a number. */
static long request(struct ring *ring, struct io_uring_sqe entry) {
    const struct io_cqring_offsets *done = &ring->params.cq_off;
    unsigned tail = *AT(ring->params.sq_off.tail), at = tail & *AT(ring->params.sq_off.ring_mask);
    ring->entries[at] = entry;
    AT(ring->params.sq_off.array)[at] = at;
    __atomic_store_n(AT(ring->params.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == -1)
        return -1;
    unsigned head = *AT(done->head);
    int result = ((struct io_uring_cqe *)(ring->rings + done->cqes))[head & *AT(done->ring_mask)].res;
    __atomic_store_n(AT(done->head), head + 1, __ATOMIC_RELEASE);
    errno = result < 0 ? -result : 0;
    return result < 0 ? -1 : result;
}

#define ON(code, on, address, bytes) \
    (struct io_uring_sqe) { .opcode = (code), .fd = (on), .addr = (unsigned long)(address), .len = (bytes) }

static void ring_requests(struct ring *ring, const struct area *two) {
    static char ordinary[16];
    int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC), null = open("/dev/null", O_WRONLY | O_CLOEXEC);
    struct iovec buffer = {two->map, PAGE};
    SAY("uring.read", request(ring, ON(IORING_OP_READ, two->fd, ordinary, 16)));
    SAY("uring.write", request(ring, ON(IORING_OP_WRITE, two->fd, ordinary, 16)));
    SAY("uring.into_secret", request(ring, ON(IORING_OP_READ, zero, two->map, 16)));
    SAY("uring.from_secret", request(ring, ON(IORING_OP_WRITE, null, two->map, 16)));
    SAY("uring.register_secret", syscall(SYS_io_uring_register, ring->fd, IORING_REGISTER_BUFFERS, &buffer, 1));
    SAY("uring.register_file", syscall(SYS_io_uring_register, ring->fd, IORING_REGISTER_FILES, &two->fd, 1));
    close(zero);
    close(null);
}

static void rings(const struct area *two) {
    struct ring ring = open_ring();
    say("uring.setup", ring.fd == -1 ? -1 : 0);
    if (ring.fd != -1) {
        ring_requests(&ring, two);
        munmap(ring.rings, PAGE);
        munmap(ring.entries, PAGE);
        close(ring.fd);
    }
}

static long submit(aio_context_t context, unsigned short code, int fd, void *piece, unsigned long bytes) {
    struct iocb block = {.aio_lio_opcode = code, .aio_fildes = (unsigned)fd, .aio_buf = (unsigned long)piece,
                         .aio_nbytes = bytes}, *blocks[1] = {&block};
    struct io_event event;
    if (syscall(SYS_io_submit, context, 1, blocks) == -1)
        return -1;
    syscall(SYS_io_getevents, context, 1, 1, &event, NULL);
    errno = event.res < 0 ? (int)-event.res : 0;
    return event.res < 0 ? -1 : (long)event.res;
}

static void aio(const struct area *two) {
    static char ordinary[16];
    aio_context_t context = 0;
    SAY("aio.setup", syscall(SYS_io_setup, 4, &context));
    SAY("aio.read", submit(context, IOCB_CMD_PREAD, two->fd, ordinary, 16));
    SAY("aio.write", submit(context, IOCB_CMD_PWRITE, two->fd, ordinary, 16));
    syscall(SYS_io_destroy, context);
}

static void direct(const struct area *two) {
    char name[] = "probe-XXXXXX";
    void *aligned = NULL;
    int plain = mkstemp(name), file = open(name, O_RDWR | O_DIRECT | O_CLOEXEC);
    say("direct.open", file == -1 ? -1 : 0);
    unlink(name);
    if (posix_memalign(&aligned, PAGE, PAGE) != 0 || pwrite(plain, memset(aligned, 'o', PAGE), PAGE, 0) != PAGE)
        exit(2);
    SAY("direct.read_ordinary", pread(file, aligned, PAGE, 0));
    SAY("direct.read", pread(file, two->map, PAGE, 0));
    SAY("direct.write", pwrite(file, two->map, PAGE, 0));
    free(aligned);
    close(plain);
    close(file);
}

static void zero_copy(const struct area *two) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof name;
    int sender = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), on = 1;
    int receiver = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bind(receiver, (struct sockaddr *)&name, sizeof name);
    getsockname(receiver, (struct sockaddr *)&name, &size);
    SAY("zero_copy.option", setsockopt(sender, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on));
    SAY("zero_copy.copied", sendto(sender, two->map, 16, 0, (struct sockaddr *)&name, size));
    SAY("zero_copy.pinned", sendto(sender, two->map, PAGE, MSG_ZEROCOPY, (struct sockaddr *)&name, size));
    close(sender);
    close(receiver);
}

void probe_devices(void) {
    struct area two = area(2 * PAGE);
    rings(&two);
    aio(&two);
    direct(&two);
    zero_copy(&two);
    SAY("devices.nothing_leaked_in", filled(two.map + PAGE, 's', PAGE));
    drop(&two);
}
