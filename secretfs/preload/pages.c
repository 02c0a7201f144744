/*
 * Pages of secret memory. The descriptor is closed as soon as they are mapped, and the kernel faults them in, so that
 * running out is an error here and no SIGBUS later. The room in the memory cgroups is compared before that: past it the
 * kernel kills.
 */
#define _GNU_SOURCE
#include "pages.h"

#include "cgroup.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif

/* Have the kernel write a byte into each page: where it cannot, that is EFAULT here. */
static int fault_in(char *start, size_t size)
{
	for (size_t at = 0; at < size; at += PAGE) {
		while (getrandom(start + at, 1, 0) != 1)
			if (errno != EINTR)
				return -1;
		start[at] = 0;
	}
	return 0;
}

/* Under `secretfs run`, which marks what it makes: that looks like secret memory, also to pages_are_secret(). */
static int is_emulated(int fd)
{
	static const char mark[sizeof(fsid_t)] = "secretfs";
	struct statfs about;

	return !fstatfs(fd, &about) && !memcmp(&about.f_fsid, mark, sizeof mark);
}

/* Map secret memory, not faulted in yet. */
static int map_secret(char *start, size_t size)
{
	const int fd = (int)syscall(SYS_memfd_secret, O_CLOEXEC);
	void *got;

	if (fd < 0)
		return -1;
	got = is_emulated(fd) || ftruncate(fd, (off_t)size) ? MAP_FAILED :
					   mmap(start, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	close(fd);
	return got == MAP_FAILED ? -1 : 0;
}

struct wanted {
	char *start;
	size_t size;
	int result;
};

/* In a process with the same memory and descriptors of its own, of which it can do without one. */
static int map_elsewhere(void *data)
{
	struct wanted *const wanted = data;

	for (int fd = 0; fd < 1024 && close(fd); fd++)
		;
	wanted->result = map_secret(wanted->start, wanted->size);
	syscall(SYS_exit, 0);
	return 0;
}

/* Where this process has no descriptor left: a server at its limit must not end for that. The caller holds a lock. */
static int map_without_descriptor(char *start, size_t size)
{
	static char stack[65536] __attribute__((aligned(16)));
	struct wanted wanted = {start, size, -1};
	sigset_t all, before;
	pid_t helper;

	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &before); /* a handler would run in our memory, in another process */
	helper = clone(map_elsewhere, stack + sizeof stack, CLONE_VM | CLONE_VFORK, &wanted);
	while (helper > 0 && waitpid(helper, NULL, (int)__WCLONE) < 0 && errno == EINTR)
		;
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	return wanted.result;
}

static int map_kernel(char *start, size_t size)
{
	struct rlimit limit;

	if (!getrlimit(RLIMIT_FSIZE, &limit) && limit.rlim_cur < size)
		return -1; /* ftruncate(2) would be SIGXFSZ */
	if (map_secret(start, size) && (errno != EMFILE || map_without_descriptor(start, size)))
		return -1;
	return fault_in(start, size);
}

static int map_emulator(char *start, size_t size)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;

	if (mmap(start, size, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED)
		return -1;
	return syscall(SYS_mlock, start, size) || syscall(SYS_madvise, start, size, MADV_DONTDUMP) ? -1 : 0;
}

void pages_release(char *start, size_t size)
{
	mmap(start, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
	syscall(SYS_madvise, start, size, MADV_DONTDUMP);
}

int pages_map(char *start, size_t size, enum kind kind)
{
	if (!cgroup_has_room(size))
		return -1;
	if (!(kind == KIND_KERNEL ? map_kernel : map_emulator)(start, size) && !madvise(start, size, MADV_DONTFORK))
		return 0;
	pages_release(start, size);
	return -1;
}

int pages_kernel_error(void)
{
	const int fd = (int)syscall(SYS_memfd_secret, O_CLOEXEC);

	if (fd < 0)
		return errno;
	close(fd);
	return 0;
}

/* Two ways to pin a page: containers forbid one or the other. */
static int pin_by_reading(char *page)
{
	char byte = 0;
	struct iovec local = {&byte, 1}, remote = {page, 1};

	return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == 1 ? 0 : -1;
}

static int pin_by_splicing(char *page)
{
	struct iovec one = {page, 1};
	int ends[2], result, error;

	if (pipe2(ends, O_CLOEXEC | O_NONBLOCK))
		return -1;
	result = vmsplice(ends[1], &one, 1, 0) == 1 ? 0 : -1;
	error = errno;
	close(ends[0]);
	close(ends[1]);
	errno = error;
	return result;
}

int pages_are_secret(char *page)
{
	static int (*const pins[])(char *) = {pin_by_reading, pin_by_splicing};
	char ordinary = 0;

	for (size_t i = 0; i < sizeof pins / sizeof *pins; i++)
		if (!pins[i](&ordinary))
			return pins[i](page) && errno == EFAULT;
	return 0;
}
