/*
 * Cryptographic libraries that are there, or come later by dlopen(3).
 *
 * OpenSSL   CRYPTO_set_mem_functions, which it honours until its first allocation, in whatever object exports it: there
 *           may be several, and a program that OpenSSL is linked into may export it. On builds whose calls go through
 *           the dynamic linker (Debian's) openssl.c has them anyway.
 * GMP       __gmp_set_memory_functions, at any time: nettle's and so GnuTLS's big numbers.
 * GnuTLS    its exported pointers gnutls_malloc, gnutls_free, …; its documented hook is a stub.
 * libtasn1  its calls of malloc(3), which are bound to us (bindings.c): it has no hook.
 * libgcrypt gcry_set_allocation_handler. A pool that it mlock(2)s, and libsodium's: see lock.c.
 *
 * An OpenSSL that is linked into a program or a library without its symbols (as in the wheels of pyca/cryptography)
 * cannot be reached by anybody. It is recognised by its version string, and said once.
 */
#define _GNU_SOURCE
#include "toolkits.h"

#include "bindings.h"
#include "config.h"
#include "heap.h"
#include "loaded.h"
#include "memory.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>

typedef int set_mem_functions(void *(*)(size_t, const char *, int), void *(*)(void *, size_t, const char *, int),
			      void (*)(void *, const char *, int));
typedef void set_allocation_handler(void *(*)(size_t), void *(*)(size_t), int (*)(const void *),
				    void *(*)(void *, size_t), void (*)(void *));
typedef void set_memory_functions(void *(*)(size_t), void *(*)(void *, size_t, size_t), void (*)(void *, size_t));

API void *dlopen(const char *file, int flags);

void *next_function(const char *name)
{
	return dlsym(RTLD_NEXT, name);
}

static void *gmp_malloc(size_t size)
{
	(void)uses(GNUTLS);
	return secret_malloc(size);
}

static void *gmp_realloc(void *memory, size_t before, size_t size)
{
	(void)before;
	return memory ? secret_realloc(memory, size) : secret_malloc(size);
}

static void gmp_free(void *memory, size_t size)
{
	(void)size;
	secret_free(memory);
}

static void *gnutls_calloc_(size_t count, size_t size)
{
	size_t all;

	return __builtin_mul_overflow(count, size, &all) ? NULL : gmp_malloc(all);
}

static void *gnutls_realloc_(void *memory, size_t size)
{
	return gmp_realloc(memory, 0, size);
}

static char *gnutls_strdup_(const char *text)
{
	const size_t size = strlen(text) + 1;
	char *copy = gmp_malloc(size);

	return copy ? memcpy(copy, text, size) : NULL;
}

/* Set a pointer that GnuTLS exports, if it is loaded; a program may have a copy of its own, which then is the one used. */
static void set_pointer(void *library, const char *name, void *function)
{
	void **pointer = dlsym(RTLD_DEFAULT, name);

	if (!pointer)
		pointer = dlsym(library, name);
	if (pointer)
		*pointer = function;
}

static void set_gnutls(void *library)
{
	set_pointer(library, "gnutls_malloc", (void *)gmp_malloc);
	set_pointer(library, "gnutls_secure_malloc", (void *)gmp_malloc);
	set_pointer(library, "gnutls_calloc", (void *)gnutls_calloc_);
	set_pointer(library, "gnutls_realloc", (void *)gnutls_realloc_);
	set_pointer(library, "gnutls_strdup", (void *)gnutls_strdup_);
	set_pointer(library, "gnutls_free", (void *)secret_free);
}

static void set_gmp(void *library)
{
	set_memory_functions *const set = (set_memory_functions *)dlsym(library, "__gmp_set_memory_functions");

	if (set)
		set(gmp_malloc, gmp_realloc, gmp_free);
}

/* libtasn1 takes keys apart for GnuTLS, and allocates with malloc(3). What it gives to others, free() takes (foreign.c). */
static void set_tasn1(void *library)
{
	static const struct binding bindings[] = {
		{"malloc", (void *)gmp_malloc}, {"calloc", (void *)gnutls_calloc_}, {"realloc", (void *)gnutls_realloc_},
		{"free", (void *)secret_free},
	};

	bindings_change(library, bindings, 4);
}

static int is_secure(const void *memory)
{
	return is_ours(memory);
}

static void *gcrypt_malloc(size_t size)
{
	(void)uses(GCRYPT);
	return secret_malloc(size);
}

static void *gcrypt_realloc(void *memory, size_t size)
{
	return memory ? secret_realloc(memory, size) : gcrypt_malloc(size);
}

/* All that it allocates is as its secure memory then; GnuPG allocates everything through it. */
static void set_gcrypt(void *library)
{
	set_allocation_handler *const set = (set_allocation_handler *)dlsym(library, "gcry_set_allocation_handler");

	if (set)
		set(gcrypt_malloc, gcrypt_malloc, is_secure, gcrypt_realloc, secret_free);
}

static int is_inside(const struct object *object, const void *address)
{
	return (uintptr_t)address >= object->start && (uintptr_t)address < object->end;
}

/* A function of an object's own, and not one of a library that it uses. */
static void *own_function(const struct object *object, void *library, const char *name)
{
	void *const function = dlsym(library, name);

	return is_inside(object, function) ? function : NULL;
}

/* Whether what this OpenSSL allocates comes from us: it is asked for a number. */
static int is_reached(const struct object *object, void *library)
{
	void *(*const new)(void) = (void *(*)(void))own_function(object, library, "BN_new");
	void (*const delete)(void *) = (void (*)(void *))own_function(object, library, "BN_free");
	const unsigned long fallbacks = atomic_load(&secretfs_fallbacks);
	void *const number = new && delete ? new() : NULL;
	const int reached = number && (is_ours(number) || atomic_load(&secretfs_fallbacks) > fallbacks);

	if (number)
		delete(number);
	return reached;
}

/* It would be the end of the program to give our memory to an OpenSSL that frees it without us. */
static void give_up_openssl(const struct object *object)
{
	config.toolkits &= ~OPENSSL;
	if (!atomic_exchange(&secretfs_late, 1))
		say("%.100s had allocated memory before it could be reached; OpenSSL's keys go into ordinary memory from now on",
		    object_name(object));
}

static void set_openssl(const struct object *object, void *library, set_mem_functions *set)
{
	unsigned long (*const version)(void) =
		(unsigned long (*)(void))own_function(object, library, "OpenSSL_version_num");

	if (!version || version() < 0x10101000ul)
		give_up(125,
			"%.100s is an OpenSSL older than 1.1.1, which is not supported; to run without protection of it, "
			"set SECRETFS_PRELOAD_TOOLKIT without openssl",
			object_name(object));
	if (!set(openssl_malloc, openssl_realloc, openssl_free) && !is_reached(object, library))
		give_up_openssl(object);
}

static int is_library(const struct object *object, const char *name)
{
	const char *const rest = object_name(object) + strlen(name);

	return !strncmp(object_name(object), name, strlen(name)) && (*rest == '.' || *rest == '-');
}

static void look_for_openssl(const struct object *object, void *library)
{
	set_mem_functions *const set = (set_mem_functions *)own_function(object, library, "CRYPTO_set_mem_functions");

	if (set)
		set_openssl(object, library, set);
	else if (object->openssl && !is_library(object, "libssl") && !atomic_exchange(&secretfs_unreached, 1))
		say("%.100s has an OpenSSL linked into it that nothing can be preloaded for; its keys stay in ordinary memory",
		    object_name(object));
}

static void look_at(const struct object *object)
{
	void *(*const open)(const char *, int) = (void *(*)(const char *, int))next_function("dlopen");
	void *const library = open ? open(object->path[0] ? object->path : NULL, RTLD_LAZY | RTLD_NOLOAD) : NULL;

	if (!library || is_inside(object, (void *)toolkits_look))
		return;
	if (config.toolkits & OPENSSL)
		look_for_openssl(object, library);
	if (config.toolkits & GCRYPT && is_library(object, "libgcrypt"))
		set_gcrypt(library);
	if (config.toolkits & GNUTLS && is_library(object, "libgmp"))
		set_gmp(library);
	if (config.toolkits & GNUTLS && is_library(object, "libgnutls"))
		set_gnutls(library);
	if (config.toolkits & GNUTLS && is_library(object, "libtasn1"))
		set_tasn1(library);
	dlclose(library);
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void toolkits_look(void)
{
	static struct object object;

	pthread_mutex_lock(&lock);
	while (next_new_object(&object))
		look_at(&object);
	pthread_mutex_unlock(&lock);
}

void toolkits_in_child(void)
{
	pthread_mutex_init(&lock, NULL); /* what it guards may be half done; then it is done again */
}

void *dlopen(const char *file, int flags)
{
	static void *(*real)(const char *, int);
	void *handle;

	if (!real)
		real = (void *(*)(const char *, int))next_function("dlopen");
	handle = real(file, flags);
	if (handle && file) {
		ensure_ready();
		toolkits_look();
	}
	return handle;
}
