/*
 * Preloaded into a secretfs by tests: makes one call on /dev/fuse fail, chosen from outside through a file that is mapped.
 *
 * A reply that fails is replaced by an error, as the kernel does when it cannot read one: the request is done with, its
 * client gets EIO, and the daemon learns from writev(2) that its reply was not taken.
 */
#define _GNU_SOURCE

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

struct faults {
	uint32_t fail_write; /* 1: the next reply fails, 2: the one after, ...; 0: none */
	uint32_t fail_read;  /* the same for requests */
	uint32_t code;       /* with this errno */
	uint32_t writes;     /* replies seen */
	uint32_t reads;
	uint32_t failed;     /* calls that were made to fail */
	uint32_t large_pipes; /* pipes may be as large as wanted, as with CAP_SYS_RESOURCE */
	uint32_t splices;    /* requests that were taken through a pipe */
};

static struct faults *faults;

__attribute__((constructor)) static void prepare(void)
{
	const char *path = getenv("SECRETFS_TEST_FAULTS");
	const int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	void *mapped;

	if (fd < 0)
		return;
	mapped = mmap(NULL, sizeof *faults, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mapped != MAP_FAILED)
		faults = mapped;
	close(fd);
}

static int is_fuse(int fd)
{
	struct stat status;

	return faults && !fstat(fd, &status) && S_ISCHR(status.st_mode) && status.st_rdev == makedev(10, 229);
}

/* Whether this is the call that is to fail. */
static int is_chosen(uint32_t *countdown)
{
	if (!*countdown || --*countdown)
		return 0;
	faults->failed++;
	return 1;
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
	ssize_t (*real)(int, const struct iovec *, int);

	*(void **)&real = dlsym(RTLD_NEXT, "writev");
	if (is_fuse(fd)) {
		const struct fuse_out_header *head = parts[0].iov_base;

		faults->writes++;
		if (is_chosen(&faults->fail_write)) {
			struct fuse_out_header error = {sizeof error, -EIO, head->unique};
			const struct iovec part = {&error, sizeof error};

			if (head->unique && real(fd, &part, 1) < 0)
				abort();
			errno = (int)faults->code;
			return -1;
		}
	}
	return real(fd, parts, count);
}

ssize_t read(int fd, void *buffer, size_t size)
{
	ssize_t (*real)(int, void *, size_t);

	*(void **)&real = dlsym(RTLD_NEXT, "read");
	if (is_fuse(fd)) {
		faults->reads++;
		if (is_chosen(&faults->fail_read)) {
			errno = (int)faults->code;
			return -1;
		}
	}
	return real(fd, buffer, size);
}

int fcntl64(int fd, int command, ...)
{
	int (*real)(int, int, ...);
	va_list list;
	void *argument;

	*(void **)&real = dlsym(RTLD_NEXT, "fcntl64");
	va_start(list, command);
	argument = va_arg(list, void *);
	va_end(list);
	if (command == F_SETPIPE_SZ && faults && faults->large_pipes)
		return (int)(intptr_t)argument;
	return real(fd, command, argument);
}

ssize_t splice(int in, off64_t *in_offset, int out, off64_t *out_offset, size_t length, unsigned int flags)
{
	ssize_t (*real)(int, off64_t *, int, off64_t *, size_t, unsigned int);

	*(void **)&real = dlsym(RTLD_NEXT, "splice");
	if (is_fuse(in))
		faults->splices++;
	return real(in, in_offset, out, out_offset, length, flags);
}
