/*
 * free(3) and realloc(3) take our memory as well. OpenSSL's and libtasn1's functions return memory that programs may give
 * to either by mistake or by right, which goes unnoticed as long as both are libc's.
 */
#define _GNU_SOURCE
#include "foreign.h"

#include "config.h"
#include "heap.h"
#include "memory.h"
#include "toolkits.h"

#include <errno.h>
#include <stddef.h>

API void free(void *memory);
API void *realloc(void *memory, size_t size);

/* glibc's own, for what dlsym(3) itself frees while it looks for the allocator that the program uses. */
extern void __libc_free(void *memory) __attribute__((weak));
extern void *__libc_realloc(void *memory, size_t size) __attribute__((weak));

static void (*real_free)(void *);
static void *(*real_realloc)(void *, size_t);
static __thread int looking __attribute__((tls_model("initial-exec")));

static void *next_or(const char *name, void *of_libc)
{
	void *const found = next_function(name);

	return found ? found : of_libc;
}

void foreign_start(void)
{
	looking = 1;
	real_realloc = (void *(*)(void *, size_t))next_or("realloc", (void *)__libc_realloc);
	real_free = (void (*)(void *))next_or("free", (void *)__libc_free);
	looking = 0;
}

void free(void *memory)
{
	const int before = errno;

	if (is_ours(memory)) {
		heap_free(memory);
		errno = before;
		return;
	}
	if (!real_free && !looking)
		foreign_start();
	(looking ? __libc_free : real_free)(memory);
}

void *realloc(void *memory, size_t size)
{
	if (is_ours(memory)) {
		if (size)
			return heap_realloc(memory, size);
		heap_free(memory);
		return NULL;
	}
	if (!real_realloc && !looking)
		foreign_start();
	return (looking ? __libc_realloc : real_realloc)(memory, size);
}
