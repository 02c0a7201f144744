/*
 * What tests/test_t8_run_steps.py starts under `secretfs run`: every kind of call on a secret that the supervisor
 * answers, each with what came of it. A call that failed must have left no descriptor. Exit code 7.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#define NUMBERS 1100
#define LEAST 512 /* what is emulated has a higher number */

static int expected;

/* How many descriptors there are; poll(2) is nothing that a supervisor is asked about. */
static int open_now(void)
{
	struct pollfd each[NUMBERS];
	int count = 0;

	for (int fd = 0; fd < NUMBERS; fd++)
		each[fd] = (struct pollfd){fd, 0, 0};
	poll(each, NUMBERS, 0);
	for (int fd = 0; fd < NUMBERS; fd++)
		count += !(each[fd].revents & POLLNVAL);
	return count;
}

static long said(const char *what, long result, int made)
{
	const int code = errno;

	printf("%s=%s ", what, result < 0 ? strerrorname_np(code) : "ok");
	expected += result >= 0 ? made : 0;
	if (open_now() != expected)
		printf("leaked! ");
	return result;
}

static void in_turn(void)
{
	char byte = 'x';
	struct iovec local = {&byte, 1}, remote;
	struct statfs about;
	const int fd = (int)said("made", syscall(SYS_memfd_secret, O_CLOEXEC), 1);
	char *memory;
	int other;

	if (fd < 0)
		return;
	if (fd < LEAST)
		printf("by the kernel! ");
	other = (int)said("dup", dup(fd), 1);
	if (other >= 0)
		said("closed", close(other), -1);
	if (said("sized", ftruncate(fd, 8192), 0) == 0) {
		memory = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (said("mapped", memory == MAP_FAILED ? -1 : 0, 0) == 0) {
			strcpy(memory, "needle-of-the-command");
			remote = (struct iovec){memory, 1};
			said("pinned", process_vm_readv(getpid(), &local, 1, &remote, 1, 0), 0);
			said("unmapped", munmap(memory, 8192), 0);
		}
	}
	said("read", read(fd, &byte, 1), 0);
	said("asked", fstatfs(fd, &about), 0);
	said("closed", close(fd), -1);
}

int main(void)
{
	expected = open_now();
	in_turn();
	in_turn();
	printf("group=%d\n", getpgrp());
	return 7;
}
