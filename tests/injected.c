/*
 * Runs a program and makes one of its system calls fail, whoever makes it: libraries, the program, its children, and a
 * set-user-ID program that one of them starts. Nobody is traced, so that a program that refuses a debugger starts.
 *
 *   injected REPORT END USER WHO:NUMBER:N:ERRNO:WHAT|- PROGRAM [WORD...]
 *
 * Every call waits for a supervisor (seccomp_unotify(2)), which counts from the moment that the program has called
 * getpgrp(2): the Nth call of that number by that process about WHAT fails with ERRNO and is not carried out. WHAT
 * is a file, or nothing; numbers in its name do not count, and are 0 in the plan. A process is called after its parent: 0 is the program, 0.0 a child of it that runs the same program, 0.0.ls one of that which runs
 * ls; those with one name are counted as one. A line of REPORT is
 *
 *   call WHO NUMBER N WHAT     each call that was counted, where none is to fail
 *   failed WHO NUMBER N WHAT   the one that failed
 *
 * END is a descriptor that is closed when the last of the processes has ended. USER is a number: who runs PROGRAM.
 * It must be started by root, whose filter does not take the privileges of set-user-ID programs away.
 */
#define _GNU_SOURCE

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
#define SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV (1UL << 5)
#endif

enum { THREADS = 256, ROLES = 32, KINDS = 8192, WHO = 64, WHAT = 200 };

static const uint32_t OURS = 0x6f757273; /* in the last argument of a call: it is not supervised */

static struct {
	int tid;
	int role;
} threads[THREADS];
static int seen;

static char roles[ROLES][WHO];
static int known;

static struct {
	char *name; /* WHO:NUMBER:WHAT */
	unsigned count;
} kinds[KINDS];
static int met;

static int first; /* the process that was started */
static int filters; /* how many are over it: fewer are over whoever is not ours */
static char program[WHAT];
static FILE *report;

/* A number from /proc/TID/status. */
static int status_of(int tid, const char *name)
{
	char path[64], line[256];
	int value = 0;
	FILE *file;

	snprintf(path, sizeof path, "/proc/%d/status", tid);
	file = fopen(path, "re");
	while (file && fgets(line, sizeof line, file))
		if (!strncmp(line, name, strlen(name)))
			value = atoi(line + strlen(name));
	if (file)
		fclose(file);
	return value;
}

static void executable_of(int pid, char *name)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%d/exe", pid);
	memset(name, 0, WHAT);
	if (readlink(path, name, WHAT - 1) < 0)
		strcpy(name, "/?");
}

/* The name of a process: its parent's, and 0 or the program that it runs, if that is another one. */
static void name_of(int pid, char *who)
{
	char executable[WHAT];
	const int parent = status_of(pid, "PPid:");
	size_t length;

	if (pid == first) {
		strcpy(who, "0");
		return;
	}
	if (parent <= 1 || status_of(parent, "Seccomp_filters:") < filters)
		strcpy(who, "0"); /* its parent has ended, as the command that mounts does */
	else
		name_of(parent, who);
	executable_of(pid, executable);
	length = strlen(who);
	snprintf(who + length, WHO - length, ".%s", strcmp(executable, program) ? strrchr(executable, '/') + 1 : "0");
}

static int role_of_thread(int tid)
{
	char who[WHO];
	int role = 0;

	for (int i = 0; i < seen; i++)
		if (threads[i].tid == tid)
			return threads[i].role;
	name_of(status_of(tid, "Tgid:"), who);
	while (role < known && strcmp(roles[role], who))
		role++;
	if (role == ROLES || seen == THREADS)
		errx(1, "too many processes");
	if (role == known)
		strcpy(roles[known++], who);
	threads[seen].tid = tid;
	threads[seen++].role = role;
	return role;
}

/* It is about to run another program, and gets another name. */
static void forget(int tid)
{
	for (int i = 0; i < seen; i++)
		if (threads[i].tid == tid)
			threads[i] = threads[--seen];
}

/* Which argument of a call is a path; -1: none. */
static int path_argument(int number)
{
	static const int second[] = {
		SYS_openat, SYS_newfstatat, SYS_readlinkat, SYS_faccessat, SYS_faccessat2, SYS_mount, SYS_statx, SYS_execveat,
	};
	static const int first[] = {
		SYS_execve, SYS_statfs, SYS_getxattr, SYS_umount2, SYS_chdir, SYS_listxattr,
#ifdef SYS_open
		SYS_open, SYS_stat, SYS_lstat, SYS_readlink, SYS_access, SYS_mkdir,
#endif
	};

	for (size_t i = 0; i < sizeof second / sizeof *second; i++)
		if (number == second[i])
			return 1;
	for (size_t i = 0; i < sizeof first / sizeof *first; i++)
		if (number == first[i])
			return 0;
	return -1;
}

/* The file that a call is about, for whoever reads the report. */
static void describe(const struct seccomp_notif *call, char *what)
{
	char path[64];
	int argument = path_argument(call->data.nr);

	memset(what, 0, WHAT);
	if (argument < 0) {
		snprintf(path, sizeof path, "/proc/%u/fd/%d", call->pid, (int)call->data.args[0]);
		if (readlink(path, what, WHAT - 1) < 0)
			*what = 0;
	} else {
		int memory;

		snprintf(path, sizeof path, "/proc/%u/mem", call->pid);
		memory = open(path, O_RDONLY | O_CLOEXEC);
		if (memory < 0 || pread(memory, what, WHAT - 1, (off_t)call->data.args[argument]) < 0)
			*what = 0;
		if (memory >= 0)
			close(memory);
	}
	for (char *each = what; *each; each++)
		if (*each == '\n')
			*each = ' ';
}

/* What differs from run to run is made 0. */
static void without_numbers(const char *from, char *to)
{
	while (*from) {
		const size_t digits = strspn(from, "0123456789");

		*to++ = digits ? '0' : *from;
		from += digits ? digits : 1;
	}
	*to = 0;
}

/* How often such a call was made. */
static unsigned count_of(const char *who, int number, const char *what)
{
	char name[WHO + WHAT + 40];
	int kind = 0;

	snprintf(name, sizeof name, "%s:%d:%s", who, number, what);
	while (kind < met && strcmp(kinds[kind].name, name))
		kind++;
	if (kind == KINDS)
		errx(1, "too many kinds of calls");
	if (kind == met) {
		kinds[kind].name = strdup(name);
		met++;
	}
	return ++kinds[kind].count;
}

/* The errno in a plan. */
static int code_of(const char *plan)
{
	for (int colons = 0; colons < 3; colons++) {
		plan = strchr(plan, ':');
		if (!plan)
			return 0;
		plan++;
	}
	return atoi(plan);
}

/* Whether this call says that the program's own `main` begins. */
static int is_beginning(int number)
{
#ifdef SYS_getpgrp
	if (number == SYS_getpgrp)
		return 1;
#endif
	return number == SYS_getpgid;
}

/* The errno that a call fails with, or 0. */
static int judge(const struct seccomp_notif *call, const char *plan)
{
	static int begun;
	const int number = call->data.nr;
	char what[WHAT], name[WHAT], this[WHO + WHAT + 80];
	const char *who;
	unsigned count;
	int code = 0;

	if (!begun) {
		begun = is_beginning(number);
		executable_of(first, program);
		filters = status_of(first, "Seccomp_filters:");
		return 0;
	}
	who = roles[role_of_thread((int)call->pid)];
	describe(call, what);
	without_numbers(what, name);
	count = count_of(who, number, name);
	snprintf(this, sizeof this, "%s:%d:%u:%d:%s", who, number, count, code_of(plan), name);
	if (!strcmp(this, plan))
		code = code_of(plan);
	if (code || !strcmp(plan, "-")) {
		fprintf(report, "%s %s %d %u %s\n", code ? "failed" : "call", who, number, count, what);
		fflush(report);
	}
	if (number == SYS_execve && !code)
		forget((int)call->pid);
	return code;
}

static void supervise(int listener, const char *plan)
{
	struct seccomp_notif call;
	struct pollfd waiting = {listener, POLLIN, 0};

	for (;;) {
		struct seccomp_notif_resp answer = {0};

		if (poll(&waiting, 1, -1) < 0)
			err(1, "poll");
		if (waiting.revents == POLLHUP)
			return; /* nobody is left */
		memset(&call, 0, sizeof call);
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call))
			continue; /* killed meanwhile */
		answer.id = call.id;
		answer.error = -judge(&call, plan);
		if (answer.error && call.data.nr == SYS_brk)
			answer.error = 0; /* it returns the end of the heap, which is not where it was wanted */
		else if (!answer.error)
			answer.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
		ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
	}
}

/* Put a filter over this process; returns the descriptor of its supervisor. */
static int filter(const char *plan)
{
	/* Where all calls are written down: what cannot fail, or is not worth the time. */
	static const int passing[] = {
		SYS_futex, SYS_rt_sigreturn, SYS_exit, SYS_exit_group, SYS_clock_gettime, SYS_clock_nanosleep,
		SYS_restart_syscall, SYS_sched_yield, SYS_gettid, SYS_getpid, SYS_close,
	};
	const char *number = strchr(plan, ':');
	const int noticed[] = {number ? atoi(number + 1) : 0, SYS_getpgid, SYS_execve,
#ifdef SYS_getpgrp
		SYS_getpgrp,
#endif
	};
	const int *listed = number ? noticed : passing;
	const int count = number ? sizeof noticed / sizeof *noticed : sizeof passing / sizeof *passing;
	struct sock_filter code[32] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[5])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OURS, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	};
	struct sock_fprog all = {(unsigned short)(count + 6), code};
	unsigned flags = SECCOMP_FILTER_FLAG_SPEC_ALLOW | SECCOMP_FILTER_FLAG_NEW_LISTENER;
	int listener;

	for (int i = 0; i < count; i++)
		code[4 + i] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)listed[i],
			(uint8_t)(count - i), 0);
	code[count + 4] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, number ? SECCOMP_RET_ALLOW : SECCOMP_RET_USER_NOTIF);
	code[count + 5] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, number ? SECCOMP_RET_USER_NOTIF : SECCOMP_RET_ALLOW);
	listener = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &all);
	if (listener < 0 && errno == EINVAL) /* before Linux 5.19 */
		listener = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &all);
	if (listener < 0)
		err(125, "seccomp");
	return listener;
}

union rights {
	struct cmsghdr header;
	char room[CMSG_SPACE(sizeof(int))];
};

static void send_listener(int channel, int listener)
{
	union rights rights = {0};
	char byte = 0;
	struct iovec part = {&byte, 1};
	struct msghdr message = {0};

	message.msg_iov = &part;
	message.msg_iovlen = 1;
	message.msg_control = &rights;
	message.msg_controllen = sizeof rights;
	rights.header.cmsg_level = SOL_SOCKET;
	rights.header.cmsg_type = SCM_RIGHTS;
	rights.header.cmsg_len = CMSG_LEN(sizeof listener);
	memcpy(CMSG_DATA(&rights.header), &listener, sizeof listener);
	if (syscall(SYS_sendmsg, channel, &message, 0, 0, 0, OURS) != 1)
		_exit(125);
}

static int receive_listener(int channel)
{
	union rights rights;
	char byte;
	struct iovec part = {&byte, 1};
	struct msghdr message = {0};
	int listener = -1;

	message.msg_iov = &part;
	message.msg_iovlen = 1;
	message.msg_control = &rights;
	message.msg_controllen = sizeof rights;
	if (recvmsg(channel, &message, MSG_CMSG_CLOEXEC) == 1)
		memcpy(&listener, CMSG_DATA(&rights.header), sizeof listener);
	return listener;
}

int main(int count, char **words)
{
	int channel[2], listener, end;
	unsigned user;

	if (count < 6)
		errx(2, "injected REPORT END USER PLAN PROGRAM [WORD...]");
	end = atoi(words[2]);
	user = (unsigned)atoi(words[3]);
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel))
		err(125, "socketpair");
	switch (fork()) {
	case -1:
		err(125, "fork");
	case 0:
		first = getppid();
		setsid();
		for (int stream = 0; stream < 3; stream++)
			if (stream != end)
				close(stream);
		close(channel[1]);
		report = fopen(words[1], "we");
		listener = receive_listener(channel[0]);
		if (!report || listener < 0)
			return 1;
		close(channel[0]);
		supervise(listener, words[4]);
		return 0;
	}
	close(end);
	close(channel[0]);
	listener = filter(words[4]);
	send_listener(channel[1], listener);
	if (user && (setgroups(0, NULL) || setgid(user) || setuid(user)))
		err(125, "setuid");
	execv(words[5], words + 5);
	err(127, "%s", words[5]);
}
