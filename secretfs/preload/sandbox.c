/*
 * Programs that lock themselves in, as sshd's process before authentication: it may write no byte to a file any more
 * (RLIMIT_FSIZE 0), which ends ftruncate(2) of secret memory with SIGXFSZ, and then a seccomp filter kills it for any
 * call that is not on its list. So memory is set aside just before, and no more is asked for afterwards.
 */
#define _GNU_SOURCE
#include "config.h"
#include "heap.h"
#include "memory.h"

#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define RESERVE ((size_t)1 << 20)

API int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit);
API int setrlimit64(__rlimit_resource_t resource, const struct rlimit64 *limit);

static int change(__rlimit_resource_t resource, const struct rlimit64 *limit)
{
	if (resource == RLIMIT_FSIZE && limit && limit->rlim_cur == 0) {
		ensure_ready();
		if (heap_used()) /* else it is no program that needs us */
			heap_reserve(RESERVE);
		areas_seal();
	}
	return (int)syscall(SYS_prlimit64, 0, resource, limit, NULL);
}

int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit)
{
	return change(resource, (const struct rlimit64 *)(const void *)limit); /* the same on 64 bits */
}

int setrlimit64(__rlimit_resource_t resource, const struct rlimit64 *limit)
{
	return change(resource, limit);
}
