/*
 * Memory that a program locks for its keys: libgcrypt's pool of secure memory and libsodium's, by way of mlock(2).
 *
 * Both map private pages and lock them. When the caller is one of the two, the pages are replaced by secret memory with
 * the same bytes at the same addresses, and the program goes on with pointers that it has. munlock(2) and munmap(2) of
 * such pages end that: what comes to lie there later is not ours. sodium_mprotect_noaccess() and its like go through
 * mprotect(2), and a forked child gets the same rights.
 */
#define _GNU_SOURCE
#include "config.h"
#include "heap.h"
#include "memory.h"
#include "toolkits.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

API int mlock(const void *start, size_t size);
API int munlock(const void *start, size_t size);
API int munmap(void *start, size_t size);
API int madvise(void *start, size_t size, int advice);
API int mprotect(void *start, size_t size, int access);

/* The toolkit that an address of code belongs to, or 0. */
static int caller(void *code)
{
	const char *name;
	Dl_info info;

	if (!dladdr(code, &info) || !info.dli_fname)
		return 0;
	name = strrchr(info.dli_fname, '/');
	name = name ? name + 1 : info.dli_fname;
	return !strncmp(name, "libgcrypt", 9) ? GCRYPT : !strncmp(name, "libsodium", 9) ? LIBSODIUM : 0;
}

/* What libsodium has just taken out of dumps: its sodium_mlock() leaves by a jump to mlock(2), and is no caller then. */
static __thread struct {
	const void *start;
	size_t size;
} undumpable __attribute__((tls_model("initial-exec")));

/* Whether these pages are one private mapping of no file that can be read and written (/proc/self/maps, proc(5)). */
static int is_plain(uintptr_t start, uintptr_t end)
{
	FILE *const maps = fopen("/proc/self/maps", "re");
	char line[512], rights[5], rest[256];
	uintptr_t from, to;
	int result = 0;

	while (maps && fgets(line, sizeof line, maps)) {
		rest[0] = 0;
		if (sscanf(line, "%lx-%lx %4s %*s %*s %*s %255s", &from, &to, rights, rest) < 3)
			continue;
		if (from <= start && end <= to) {
			result = !strcmp(rights, "rw-p") && (!rest[0] || !strcmp(rest, "[heap]"));
			break;
		}
	}
	if (maps)
		fclose(maps);
	return result;
}

int mlock(const void *memory, size_t size)
{
	static int (*real)(const void *, size_t);
	const uintptr_t start = (uintptr_t)memory, end = start + size;
	int toolkit;

	if (!real)
		real = (int (*)(const void *, size_t))next_function("mlock");
	ensure_ready();
	toolkit = caller(__builtin_return_address(0));
	if (!toolkit && size && undumpable.start == memory && undumpable.size == size)
		toolkit = LIBSODIUM;
	undumpable.start = NULL;
	/* Only whole pages: a neighbour in the last one may be handed to a driver, which secret memory cannot be. */
	if (!toolkit || !(config.toolkits & toolkit) || start % PAGE || size % PAGE || !size || !is_plain(start, end))
		return real(memory, size);
	(void)uses(toolkit);
	if (!area_replace((void *)start, size))
		return 0;
	exhausted(size);
	return real(memory, size);
}

int madvise(void *memory, size_t size, int advice)
{
	if (advice == MADV_DONTDUMP && caller(__builtin_return_address(0)) == LIBSODIUM) {
		undumpable.start = memory;
		undumpable.size = size;
	}
	return (int)syscall(SYS_madvise, memory, size, advice);
}

int munlock(const void *memory, size_t size)
{
	return area_restore((void *)(uintptr_t)memory, size) ? (int)syscall(SYS_munlock, memory, size) : 0;
}

int munmap(void *memory, size_t size)
{
	return areas_munmap(memory, size);
}

int mprotect(void *memory, size_t size, int access)
{
	const int result = (int)syscall(SYS_mprotect, memory, size, access);

	if (!result)
		area_protected(memory, size, access);
	return result;
}
