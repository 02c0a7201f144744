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
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
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

static int map_kernel(char *start, size_t size)
{
	struct rlimit limit;
	void *got;
	int fd;

	if (!getrlimit(RLIMIT_FSIZE, &limit) && limit.rlim_cur < size)
		return -1; /* ftruncate(2) would be SIGXFSZ */
	fd = (int)syscall(SYS_memfd_secret, O_CLOEXEC);
	if (fd < 0)
		return -1;
	got = ftruncate(fd, (off_t)size) ? MAP_FAILED :
					   mmap(start, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	close(fd);
	return got == MAP_FAILED ? -1 : fault_in(start, size);
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

int pages_are_secret(char *page)
{
	char byte = 0, ordinary = 0;
	struct iovec local = {&byte, 1}, mine = {&ordinary, 1}, secret = {page, 1};

	return process_vm_readv(getpid(), &local, 1, &mine, 1, 0) == 1 &&
	       process_vm_readv(getpid(), &local, 1, &secret, 1, 0) < 0 && errno == EFAULT;
}
