/* The bytes by way of the kernel: calls that copy work, calls that pin pages do not. */
#include "probe.h"

#include <linux/futex.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/uio.h>

static void copies(const struct area *two) {
    int ends[2], sockets[2], zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    struct iovec half[2] = {{two->map, 16}, {two->map + PAGE, 16}};
    char got[64] = "";
    if (pipe(ends) == -1 || socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == -1)
        exit(2);
    SAY("buffer.write", write(ends[1], two->map, 16));
    SAY("buffer.written", read(ends[0], got, sizeof got) == 16 && filled(got, 's', 16));
    SAY("buffer.writev", writev(ends[1], half, 2));
    SAY("buffer.read", read(ends[0], two->map, 32));
    SAY("buffer.read_zero", read(zero, two->map, 16));
    SAY("buffer.was_read", filled(two->map, 0, 16));
    SAY("buffer.readv", readv(zero, half, 2));
    SAY("buffer.send", send(sockets[0], two->map + 64, 16, 0));
    SAY("buffer.recv", recv(sockets[1], two->map, 16, 0));
    SAY("buffer.getrandom", getrandom(two->map, 16, 0));
    SAY("buffer.open_name", open(memset(two->map, 0, 32), O_RDONLY));
    memset(two->map, 's', two->size);
    for (int i = 0; i < 2; i++) {
        close(ends[i]);
        close(sockets[i]);
    }
    close(zero);
}

static void beyond(void) {
    struct area one = sized(PAGE);
    int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    one.size = 2 * PAGE;
    one.map = map_shared(&one, PROT_READ | PROT_WRITE);
    SAY("buffer.beyond", read(zero, one.map + PAGE, 16));
    SAY("buffer.across_the_end", read(zero, one.map + PAGE - 16, 32));
    SAY("buffer.getrandom_beyond", getrandom(one.map + PAGE, 16, 0));
    close(zero);
    drop(&one);
}

static void pins(const struct area *two) {
    int ends[2];
    struct iovec piece = {two->map, PAGE};
    if (pipe(ends) == -1)
        exit(2);
    SAY("vmsplice", vmsplice(ends[1], &piece, 1, SPLICE_F_NONBLOCK));
    SAY("vmsplice.gift", vmsplice(ends[1], &piece, 1, SPLICE_F_GIFT | SPLICE_F_NONBLOCK));
    SAY("vmsplice.no_pieces", vmsplice(ends[1], &piece, 0, 0));
    char ordinary[16] = "0123456789abcde";
    SAY("vmsplice.ordinary", vmsplice(ends[1], &(struct iovec){ordinary, 16}, 1, 0));
    close(ends[0]);
    close(ends[1]);
}

static long futex(void *word, int operation, unsigned value) {
    return syscall(SYS_futex, word, operation, value, NULL, NULL, 0);
}

static void futexes(const struct area *two) {
    SAY("futex.private_wake", futex(two->map, FUTEX_WAKE | FUTEX_PRIVATE_FLAG, 1));
    SAY("futex.private_wait", futex(two->map, FUTEX_WAIT | FUTEX_PRIVATE_FLAG, 1));
    SAY("futex.shared_wake", futex(two->map, FUTEX_WAKE, 1));
}

#define PEER(call, pid, local, remote) SAY(call, syscall(number, pid, local, 1, remote, 1, 0))

/* process_vm_readv or process_vm_writev on ourselves: what it takes from ordinary and from secret memory. */
static void by_process(const struct area *two, long number, const char *const names[5]) {
    char ordinary[16] = "0123456789abcde", target[64];
    struct iovec to = {target, 16}, from = {two->map, 16}, plain = {ordinary, 16};
    struct iovec mixed[2] = {plain, from}, reversed[2] = {from, plain}, room = {target, 32};
    PEER(names[0], getpid(), &to, &from);
    PEER(names[1], getpid(), &to, &plain);
    SAY(names[2], syscall(number, getpid(), &room, 1, mixed, 2, 0));
    SAY(names[3], syscall(number, getpid(), &room, 1, reversed, 2, 0));
    PEER(names[4], getpid(), &from, &plain);
}

static int read_parent(void *map) {
    char got[16];
    struct iovec to = {got, 16}, from = {map, 16};
    return process_vm_readv(getppid(), &to, 1, &from, 1, 0) == -1 ? errno : 0;
}

static void processes(const struct area *two) {
    static const char *const READ[5] = {"vm_readv.secret", "vm_readv.ordinary", "vm_readv.ordinary_then_secret",
                                        "vm_readv.secret_then_ordinary", "vm_readv.into_secret"};
    static const char *const WRITE[5] = {"vm_writev.secret", "vm_writev.ordinary", "vm_writev.ordinary_then_secret",
                                         "vm_writev.secret_then_ordinary", "vm_writev.from_secret"};
    struct iovec to = {(char[16]){0}, 16}, from = {two->map, 16};
    by_process(two, SYS_process_vm_readv, READ);
    memset(two->map, 's', two->size);
    by_process(two, SYS_process_vm_writev, WRITE);
    memset(two->map, 's', two->size);
    SAY("vm_readv.bad_flags", process_vm_readv(getpid(), &to, 1, &from, 1, 1));
    SAY("vm_readv.no_process", process_vm_readv(0x3ffffff, &to, 1, &from, 1, 0));
    say_fate("vm_readv.by_child", read_parent, two->map);
}

static void proc_mem(const struct area *two) {
    char got[16], plain[16] = "0123456789abcde";
    int memory = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
    SAY("proc_mem.open", memory == -1 ? -1 : 0);
    SAY("proc_mem.read_ordinary", pread(memory, got, 16, (off_t)plain));
    SAY("proc_mem.read", pread(memory, got, 16, (off_t)two->map));
    SAY("proc_mem.write", pwrite(memory, got, 16, (off_t)two->map));
    SAY("proc_mem.write_ordinary", pwrite(memory, plain, 16, (off_t)got));
    SAY("proc_mem.across", pread(memory, two->map, 16, (off_t)plain));
    close(memory);
}

static int proc_mem_of_parent(void *map) {
    char name[64], got[16];
    snprintf(name, sizeof name, "/proc/%d/mem", getppid());
    int memory = open(name, O_RDONLY | O_CLOEXEC);
    return memory == -1 ? 1 : pread(memory, got, 16, (off_t)map) == -1 ? errno : 0;
}

void probe_access(void) {
    struct area two = area(2 * PAGE);
    copies(&two);
    beyond();
    pins(&two);
    futexes(&two);
    processes(&two);
    proc_mem(&two);
    say_fate("proc_mem.by_child", proc_mem_of_parent, two.map);
    SAY("access.still_ours", filled(two.map + PAGE, 's', PAGE));
    drop(&two);
}
