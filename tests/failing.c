/*
 * Makes one system call of a process, or of one that it starts, fail once; by ptrace(2), so that nothing of the program
 * knows of it. Processes are numbered in the order in which they are begun. A library for failing.py.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#define PROCESSES 8
#define CALLS 512
#define THREADS 256
#define NT_PRSTATUS 1
#define NT_ARM_SYSCALL 0x404

struct plan {
	int32_t process;     /* which one; -1: any */
	int32_t number;      /* which call */
	int32_t occurrence;  /* 1: the first, 2: the second, ...; 0: none, they are counted */
	int32_t error;       /* with this errno */
	int32_t after;       /* the call is made all the same, and its result is lost */
	int32_t mark_number; /* calls are looked at from this one on, in the process that makes it; -1: from the start */
	uint64_t mark;       /* which is the one with this argument ... */
	int32_t mark_index;  /* ... at this place; one more there ends it */
	int32_t patience;    /* seconds */
	/* what came of it */
	int32_t failed, hung, processes, status;
	uint32_t counts[PROCESSES][CALLS];
};

struct thread {
	pid_t tid;
	int process;
	int failing; /* its call is to fail when it returns */
};

static struct thread threads[THREADS];
static pid_t known[PROCESSES];
static int counting[PROCESSES];
static volatile sig_atomic_t late;

static void on_alarm(int number)
{
	late = number;
}

/* A thread's process and the parent of that, out of /proc/TID/status. */
static void look_up(pid_t tid, int *group, int *parent)
{
	char name[64], line[128];
	FILE *file;

	*group = tid;
	*parent = 0;
	snprintf(name, sizeof name, "/proc/%d/status", tid);
	file = fopen(name, "re");
	while (file && fgets(line, sizeof line, file))
		if (sscanf(line, "Tgid: %d", group) != 1)
			(void)!sscanf(line, "PPid: %d", parent);
	if (file)
		fclose(file);
}

static int process_of(pid_t tid, struct plan *plan)
{
	int group, parent, counts = plan->mark_number < 0;

	look_up(tid, &group, &parent);
	for (int i = 0; i < plan->processes; i++)
		if (known[i] == group)
			return i;
	if (plan->processes == PROCESSES)
		return PROCESSES - 1;
	for (int i = 0; i < plan->processes; i++)
		if (known[i] == parent)
			counts = counting[i];
	known[plan->processes] = group;
	counting[plan->processes] = counts;
	return plan->processes++;
}

static struct thread *thread_of(pid_t tid, struct plan *plan)
{
	struct thread *unused = NULL;

	for (struct thread *thread = threads; thread < threads + THREADS; thread++)
		if (thread->tid == tid)
			return thread;
		else if (!thread->tid && !unused)
			unused = thread;
	if (unused)
		*unused = (struct thread){tid, process_of(tid, plan), 0};
	return unused;
}

/* Another call than the one that is about to be made: none. */
static void leave_out(pid_t tid)
{
#if defined(__x86_64__)
	struct user_regs_struct registers;

	ptrace(PTRACE_GETREGS, tid, NULL, &registers);
	registers.orig_rax = -1UL;
	ptrace(PTRACE_SETREGS, tid, NULL, &registers);
#elif defined(__aarch64__)
	int none = -1;
	struct iovec piece = {&none, sizeof none};

	ptrace(PTRACE_SETREGSET, tid, NT_ARM_SYSCALL, &piece);
#else
#error "how a system call is left out by ptrace(2) is not known here"
#endif
}

static void answer(pid_t tid, long result)
{
	struct user_regs_struct registers;
	struct iovec piece = {&registers, sizeof registers};

	ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &piece);
#if defined(__x86_64__)
	registers.rax = (unsigned long)result;
#else
	registers.regs[0] = (unsigned long)result;
#endif
	ptrace(PTRACE_SETREGSET, tid, NT_PRSTATUS, &piece);
}

static void at_call(struct thread *thread, struct plan *plan)
{
	struct __ptrace_syscall_info info;
	uint32_t *count;

	if (ptrace(PTRACE_GET_SYSCALL_INFO, thread->tid, sizeof info, &info) <= 0)
		return;
	if (info.op == PTRACE_SYSCALL_INFO_EXIT) {
		if (thread->failing)
			answer(thread->tid, -plan->error);
		thread->failing = 0;
		return;
	}
	if (info.op != PTRACE_SYSCALL_INFO_ENTRY || info.entry.nr >= CALLS)
		return;
	if (plan->mark_number >= 0 && info.entry.nr == (uint64_t)plan->mark_number) {
		if (info.entry.args[plan->mark_index] - plan->mark <= 1)
			counting[thread->process] = info.entry.args[plan->mark_index] == plan->mark;
	}
	if (!counting[thread->process])
		return;
	count = &plan->counts[thread->process][info.entry.nr];
	++*count;
	if ((plan->process >= 0 && plan->process != thread->process) || info.entry.nr != (uint64_t)plan->number ||
	    plan->failed || (int32_t)*count != plan->occurrence)
		return;
	plan->failed = 1;
	thread->failing = 1;
	if (!plan->after)
		leave_out(thread->tid);
}

static void kill_all(void)
{
	for (struct thread *thread = threads; thread < threads + THREADS; thread++)
		if (thread->tid)
			kill(thread->tid, SIGKILL);
}

/* Look after a process that waits, and all that it starts, until nobody is left. `ready` is closed when it may go on. */
int failing_run(pid_t first, int ready, struct plan *plan)
{
	const long options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE |
			     PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;
	const struct sigaction action = {.sa_handler = on_alarm};
	const struct itimerval limit = {{1, 0}, {plan->patience, 0}}, none = {0};

	memset(threads, 0, sizeof threads);
	late = 0;
	sigaction(SIGALRM, &action, NULL);
	if (ptrace(PTRACE_SEIZE, first, 0, options) || ptrace(PTRACE_INTERRUPT, first, 0, 0))
		return -1;
	close(ready);
	setitimer(ITIMER_REAL, &limit, NULL);
	for (;;) {
		int status, signal = 0, request = PTRACE_SYSCALL;
		const pid_t tid = waitpid(-1, &status, __WALL);
		struct thread *thread;

		if (tid < 0) {
			if (errno != EINTR)
				break;
			if (late) {
				plan->hung = 1;
				kill_all();
			}
			continue;
		}
		thread = thread_of(tid, plan);
		if (!thread)
			return -1;
		if (!WIFSTOPPED(status)) {
			if (tid == first)
				plan->status = status;
			thread->tid = 0;
			continue;
		}
		if (status >> 16 == PTRACE_EVENT_EXEC)
			counting[thread->process] = 0; /* another program; it may begin with a mark of its own */
		if (WSTOPSIG(status) == (SIGTRAP | 0x80))
			at_call(thread, plan);
		else if (status >> 16 == PTRACE_EVENT_STOP && WSTOPSIG(status) != SIGTRAP)
			request = PTRACE_LISTEN;
		else if (!(status >> 16))
			signal = WSTOPSIG(status);
		ptrace(request, tid, 0, signal);
	}
	setitimer(ITIMER_REAL, &none, NULL);
	return 0;
}
