/* ptrace(2): a parent that traces a child reads and writes the child's ordinary memory, and not its secret. */
#include "probe.h"

#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/wait.h>

static long ordinary = 0x1122334455667788;

static void peek(pid_t child, void *map) {
    char got[16], name[64];
    struct iovec to = {got, 16}, from = {map, 16};
    SAY("ptrace.peek_ordinary", ptrace(PTRACE_PEEKDATA, child, &ordinary, NULL) == ordinary);
    SAY("ptrace.peek_data", ptrace(PTRACE_PEEKDATA, child, map, NULL));
    SAY("ptrace.peek_text", ptrace(PTRACE_PEEKTEXT, child, map, NULL));
    SAY("ptrace.poke_ordinary", ptrace(PTRACE_POKEDATA, child, &ordinary, (void *)1));
    SAY("ptrace.poke_data", ptrace(PTRACE_POKEDATA, child, map, (void *)1));
    SAY("ptrace.poke_text", ptrace(PTRACE_POKETEXT, child, map, (void *)1));
    SAY("ptrace.vm_readv", process_vm_readv(child, &to, 1, &from, 1, 0));
    SAY("ptrace.vm_writev", process_vm_writev(child, &to, 1, &from, 1, 0));
    snprintf(name, sizeof name, "/proc/%d/mem", child);
    int memory = open(name, O_RDWR | O_CLOEXEC);
    SAY("ptrace.proc_mem_read", pread(memory, got, 16, (off_t)map));
    SAY("ptrace.proc_mem_write", pwrite(memory, got, 16, (off_t)map));
    close(memory);
}

static void trace(pid_t child, void *map) {
    int status;
    waitpid(child, &status, 0);
    SAY("ptrace.stopped", WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    peek(child, map);
    SAY("ptrace.continue", ptrace(PTRACE_CONT, child, NULL, NULL));
    waitpid(child, &status, 0);
    SAY("ptrace.childs_bytes", WIFEXITED(status) ? WEXITSTATUS(status) : -1);
}

void probe_tracing(void) {
    fflush(stdout);
    struct area one = area(PAGE);
    pid_t child = fork();
    if (child == 0) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        _exit(filled(one.map, 's', PAGE) ? 0 : 1);
    }
    trace(child, one.map);
    SAY("ptrace.parents_bytes", filled(one.map, 's', PAGE));
    drop(&one);
}
