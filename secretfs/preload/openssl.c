/*
 * OpenSSL's memory, 1.1.1 and 3.x: all of it. Its secure heap is in secureheap.c.
 *
 * These take the place of libcrypto's functions of the same names wherever calls go through the dynamic linker; where
 * libcrypto binds its own calls to itself, CRYPTO_set_mem_functions (toolkits.c) brings them here.
 */
#define _GNU_SOURCE
#include "config.h"
#include "heap.h"
#include "memory.h"
#include "toolkits.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define HERE const char *file, int line
#define UNUSED (void)file, (void)line

static void *allocate(size_t size)
{
	ensure_ready();
	if (!size)
		return NULL;
	return uses(OPENSSL) ? secret_malloc(size) : calloc(1, size);
}

static void *reallocate(void *memory, size_t size)
{
	if (!memory)
		return allocate(size);
	if (!size) {
		secret_free(memory);
		return NULL;
	}
	return uses(OPENSSL) || is_ours(memory) ? secret_realloc(memory, size) : realloc(memory, size);
}

void *openssl_malloc(size_t size, HERE)
{
	UNUSED;
	return allocate(size);
}

void *openssl_realloc(void *memory, size_t size, HERE)
{
	UNUSED;
	return reallocate(memory, size);
}

void openssl_free(void *memory, HERE)
{
	UNUSED;
	secret_free(memory);
}

API int CRYPTO_set_mem_functions(void *allocate, void *reallocate, void *release);
API void *CRYPTO_malloc(size_t size, HERE);
API void *CRYPTO_zalloc(size_t size, HERE);
API void *CRYPTO_realloc(void *memory, size_t size, HERE);
API void *CRYPTO_clear_realloc(void *memory, size_t before, size_t size, HERE);
API void *CRYPTO_memdup(const void *data, size_t size, HERE);
API char *CRYPTO_strdup(const char *text, HERE);
API char *CRYPTO_strndup(const char *text, size_t size, HERE);
API void *CRYPTO_aligned_alloc(size_t size, size_t alignment, void **freeptr, HERE);
API void CRYPTO_free(void *memory, HERE);
API void CRYPTO_clear_free(void *memory, size_t size, HERE);

void *CRYPTO_malloc(size_t size, HERE)
{
	UNUSED;
	return allocate(size);
}

void *CRYPTO_zalloc(size_t size, HERE)
{
	UNUSED;
	return allocate(size); /* always zero */
}

void *CRYPTO_realloc(void *memory, size_t size, HERE)
{
	UNUSED;
	return reallocate(memory, size);
}

void *CRYPTO_clear_realloc(void *memory, size_t before, size_t size, HERE)
{
	void *moved;

	UNUSED;
	if (!memory)
		return allocate(size);
	if (is_ours(memory) && size)
		return reallocate(memory, size); /* wipes what it leaves, and what it cuts off */
	moved = allocate(size);
	if (moved)
		memcpy(moved, memory, before < size ? before : size);
	if (moved || !size) {
		explicit_bzero(memory, before);
		secret_free(memory);
	}
	return moved;
}

void *CRYPTO_memdup(const void *data, size_t size, HERE)
{
	void *copy;

	UNUSED;
	if (!data || size >= INT32_MAX)
		return NULL;
	copy = allocate(size);
	return copy ? memcpy(copy, data, size) : NULL;
}

char *CRYPTO_strdup(const char *text, HERE)
{
	return text ? CRYPTO_memdup(text, strlen(text) + 1, file, line) : NULL;
}

char *CRYPTO_strndup(const char *text, size_t size, HERE)
{
	char *copy;

	UNUSED;
	if (!text)
		return NULL;
	size = strnlen(text, size);
	copy = allocate(size + 1);
	return copy ? memcpy(copy, text, size) : NULL;
}

void *CRYPTO_aligned_alloc(size_t size, size_t alignment, void **freeptr, HERE)
{
	char *memory;

	UNUSED;
	*freeptr = NULL;
	if (!size || !alignment || alignment & (alignment - 1) || size + alignment < size)
		return NULL;
	memory = allocate(size + alignment);
	*freeptr = memory;
	return memory ? (void *)(((uintptr_t)memory + alignment - 1) & ~(alignment - 1)) : NULL;
}

void CRYPTO_free(void *memory, HERE)
{
	UNUSED;
	secret_free(memory);
}

void CRYPTO_clear_free(void *memory, size_t size, HERE)
{
	UNUSED;
	if (memory && !is_ours(memory))
		explicit_bzero(memory, size);
	secret_free(memory);
}

/* A program that wants OpenSSL's memory from somewhere else (MySQL does, to count it) is told that it is so. */
int CRYPTO_set_mem_functions(void *allocate_, void *reallocate_, void *release)
{
	static int (*real)(void *, void *, void *);

	ensure_ready();
	if (config.toolkits & OPENSSL)
		return 1;
	if (!real)
		real = (int (*)(void *, void *, void *))next_function("CRYPTO_set_mem_functions");
	return real ? real(allocate_, reallocate_, release) : 0;
}
