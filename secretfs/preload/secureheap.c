/*
 * OpenSSL's secure heap. All of OpenSSL's memory is what it wants to be, so it is there at any time. Where we are told to
 * leave OpenSSL alone, its own is used.
 */
#define _GNU_SOURCE
#include "config.h"
#include "heap.h"
#include "memory.h"
#include "toolkits.h"

#define HERE const char *file, int line

/* The function of OpenSSL that ours stands before, if we are told to leave it alone. */
#define LEFT_ALONE(name) ((__typeof__(&name))left_alone(#name))

API int CRYPTO_secure_malloc_init(size_t size, size_t least);
API int CRYPTO_secure_malloc_done(void);
API int CRYPTO_secure_malloc_initialized(void);
API void *CRYPTO_secure_malloc(size_t size, HERE);
API void *CRYPTO_secure_zalloc(size_t size, HERE);
API void CRYPTO_secure_free(void *memory, HERE);
API void CRYPTO_secure_clear_free(void *memory, size_t size, HERE);
API int CRYPTO_secure_allocated(const void *memory);
API size_t CRYPTO_secure_used(void);
API size_t CRYPTO_secure_actual_size(void *memory);

static void *left_alone(const char *name)
{
	ensure_ready();
	return config.toolkits & OPENSSL ? NULL : next_function(name);
}

int CRYPTO_secure_malloc_init(size_t size, size_t least)
{
	__typeof__(&CRYPTO_secure_malloc_init) const real = LEFT_ALONE(CRYPTO_secure_malloc_init);

	return real ? real(size, least) : 1;
}

int CRYPTO_secure_malloc_done(void)
{
	__typeof__(&CRYPTO_secure_malloc_done) const real = LEFT_ALONE(CRYPTO_secure_malloc_done);

	return real ? real() : 1;
}

int CRYPTO_secure_malloc_initialized(void)
{
	__typeof__(&CRYPTO_secure_malloc_initialized) const real = LEFT_ALONE(CRYPTO_secure_malloc_initialized);

	return real ? real() : 1;
}

void *CRYPTO_secure_malloc(size_t size, HERE)
{
	__typeof__(&CRYPTO_secure_malloc) const real = LEFT_ALONE(CRYPTO_secure_malloc);

	return real ? real(size, file, line) : openssl_malloc(size, file, line);
}

void *CRYPTO_secure_zalloc(size_t size, HERE)
{
	__typeof__(&CRYPTO_secure_zalloc) const real = LEFT_ALONE(CRYPTO_secure_zalloc);

	return real ? real(size, file, line) : openssl_malloc(size, file, line);
}

void CRYPTO_secure_free(void *memory, HERE)
{
	__typeof__(&CRYPTO_secure_free) const real = LEFT_ALONE(CRYPTO_secure_free);

	if (real && !is_ours(memory))
		real(memory, file, line);
	else
		openssl_free(memory, file, line);
}

void CRYPTO_secure_clear_free(void *memory, size_t size, HERE)
{
	__typeof__(&CRYPTO_secure_clear_free) const real = LEFT_ALONE(CRYPTO_secure_clear_free);

	if (real && !is_ours(memory))
		real(memory, size, file, line);
	else
		CRYPTO_clear_free(memory, size, file, line);
}

int CRYPTO_secure_allocated(const void *memory)
{
	__typeof__(&CRYPTO_secure_allocated) const real = LEFT_ALONE(CRYPTO_secure_allocated);

	return is_ours(memory) || (real && real(memory));
}

size_t CRYPTO_secure_used(void)
{
	__typeof__(&CRYPTO_secure_used) const real = LEFT_ALONE(CRYPTO_secure_used);

	return real ? real() : heap_used();
}

size_t CRYPTO_secure_actual_size(void *memory)
{
	__typeof__(&CRYPTO_secure_actual_size) const real = LEFT_ALONE(CRYPTO_secure_actual_size);

	return is_ours(memory) ? heap_size(memory) : real ? real(memory) : 0;
}
