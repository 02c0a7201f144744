/*
 * Memory that a program locks for its keys: libgcrypt's pool of secure memory and libsodium's, by way of mlock(2).
 *
 * Both map private pages and lock them. When the caller is one of the two, the pages are replaced by secret memory with
 * the same bytes at the same addresses, and the program goes on with pointers that it has. sodium_malloc() itself
 * protects its pages with mprotect(2), which works on them as before.
 */
#define _GNU_SOURCE
#include "config.h"
#include "memory.h"
#include "toolkits.h"

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE ((uintptr_t)4096)

API int mlock(const void *start, size_t size);

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
	/* Only whole pages: a neighbour in the last one may be handed to a driver, which secret memory cannot be. */
	if (toolkit && config.toolkits & toolkit && !(start % PAGE) && !(size % PAGE) && size && is_plain(start, end) &&
	    !area_replace((void *)start, size)) {
		(void)uses(toolkit);
		return 0;
	}
	return real(memory, size);
}
