/*
 * Cryptographic libraries that are there, or come later by dlopen(3).
 *
 * OpenSSL   CRYPTO_set_mem_functions, which it honours until its first allocation. On builds whose calls go through the
 *           dynamic linker (Debian's) openssl.c has them anyway; the library's answer says nothing about that.
 * GMP       __gmp_set_memory_functions, at any time: nettle's and so GnuTLS's big numbers.
 * GnuTLS    its exported pointers gnutls_malloc, gnutls_free, …; its documented hook is a stub.
 * libgcrypt, libsodium   pools that they mlock(2): see lock.c.
 *
 * An OpenSSL that is linked into a program or a library without its symbols (as in the wheels of pyca/cryptography)
 * cannot be reached by anybody. It is recognised by its version string, and said once.
 */
#define _GNU_SOURCE
#include "toolkits.h"

#include "config.h"
#include "heap.h"
#include "memory.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>

typedef int set_mem_functions(void *(*)(size_t, const char *, int), void *(*)(void *, size_t, const char *, int),
			      void (*)(void *, const char *, int));
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

/* A library by its name, if it is loaded; dlopen(3) with RTLD_LOCAL hides its functions from RTLD_DEFAULT. */
struct search {
	const char *part;
	char path[4096];
};

static int look_at(struct dl_phdr_info *info, size_t size, void *data)
{
	struct search *const search = data;
	const char *const slash = strrchr(info->dlpi_name, '/');

	(void)size;
	if (strncmp(slash ? slash + 1 : info->dlpi_name, search->part, strlen(search->part)))
		return 0;
	strncpy(search->path, info->dlpi_name, sizeof search->path - 1);
	return 1;
}

static void *function_of(const char *library, const char *name)
{
	void *(*const open)(const char *, int) = (void *(*)(const char *, int))next_function("dlopen");
	struct search search = {.part = library};
	void *handle, *function = NULL;

	if (!dl_iterate_phdr(look_at, &search) || !open)
		return NULL;
	handle = open(search.path, RTLD_LAZY | RTLD_NOLOAD);
	if (handle) {
		function = dlsym(handle, name);
		dlclose(handle);
	}
	return function;
}

/* Set a pointer that GnuTLS exports, if it is loaded; a program may have a copy of its own, which then is the one used. */
static void set_pointer(const char *name, void *function)
{
	void **pointer = dlsym(RTLD_DEFAULT, name);

	if (!pointer)
		pointer = function_of("libgnutls.so", name);
	if (pointer)
		*pointer = function;
}

static void set_gnutls(void)
{
	set_pointer("gnutls_malloc", (void *)gmp_malloc);
	set_pointer("gnutls_secure_malloc", (void *)gmp_malloc);
	set_pointer("gnutls_calloc", (void *)gnutls_calloc_);
	set_pointer("gnutls_realloc", (void *)gnutls_realloc_);
	set_pointer("gnutls_strdup", (void *)gnutls_strdup_);
	set_pointer("gnutls_free", (void *)secret_free);
}

/* Whether an object's constants hold OpenSSL's version, without being libcrypto. */
static int has_openssl(struct dl_phdr_info *info, size_t size, void *data)
{
	static const char version[] = "OpenSSL ";
	const char *const slash = strrchr(info->dlpi_name, '/');
	const char *const name = slash ? slash + 1 : info->dlpi_name;

	(void)size;
	if (!strncmp(name, "libcrypto", 9) || !strncmp(name, "libssl", 6) || !strncmp(name, "libsecretfs", 11))
		return 0;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *const part = &info->dlpi_phdr[i];
		const char *at = (const char *)(info->dlpi_addr + part->p_vaddr), *const end = at + part->p_filesz;

		if (part->p_type != PT_LOAD || part->p_flags != PF_R || part->p_filesz < 1 << 18)
			continue;
		while ((at = memmem(at, (size_t)(end - at), version, sizeof version - 1)) && end - at > 32) {
			const char *const digits = at + sizeof version - 1;

			if (digits[0] >= '1' && digits[0] <= '9' && digits[1] == '.' && digits[3] == '.' &&
			    memmem(digits, 20, " 20", 3)) {
				*(const char **)data = *name ? name : "this program";
				return 1;
			}
			at = digits;
		}
	}
	return 0;
}

static void look_for_static_openssl(void)
{
	const char *name = NULL;

	if (atomic_load(&secretfs_unreached) || !dl_iterate_phdr(has_openssl, &name))
		return;
	if (!atomic_exchange(&secretfs_unreached, 1))
		say("%.100s has an OpenSSL linked into it that nothing can be preloaded for; its keys stay in ordinary memory",
		    name);
}

void toolkits_look(void)
{
	if (config.toolkits & OPENSSL) {
		set_mem_functions *const set = (set_mem_functions *)function_of("libcrypto.so",
										"CRYPTO_set_mem_functions");

		if (set)
			set(openssl_malloc, openssl_realloc, openssl_free);
		look_for_static_openssl();
	}
	if (config.toolkits & GNUTLS) {
		set_memory_functions *const set = (set_memory_functions *)function_of("libgmp.so",
										      "__gmp_set_memory_functions");

		if (set)
			set(gmp_malloc, gmp_realloc, gmp_free);
		set_gnutls();
	}
}

void toolkits_start(void)
{
	toolkits_look();
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
