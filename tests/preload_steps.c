/*
 * What tests/test_t8_preload_steps.py starts with the preload library: allocations of each kind. What was refused is
 * said, and what has other bytes than were put there. Nothing here allocates ordinary memory of its own. Exit code 7.
 *
 *   preload_steps api | openssl | fork | sodium
 */
#define _GNU_SOURCE
#include "secretfs.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define NEEDLE "needle-0123456789-of-a-program"
#define PIECES 60

void *CRYPTO_malloc(size_t size, const char *file, int line);
void *CRYPTO_realloc(void *memory, size_t size, const char *file, int line);
void CRYPTO_free(void *memory, const char *file, int line);

static void say(const char *what, const char *result)
{
	char line[64];

	if (write(1, line, (size_t)snprintf(line, sizeof line, "%s=%s ", what, result)) < 0)
		_exit(3);
}

static int filled(const char *what, char *memory)
{
	if (memory)
		strcpy(memory, NEEDLE);
	say(what, memory ? "ok" : "refused");
	return memory != NULL;
}

static void check(const char *what, const char *memory)
{
	say(what, strcmp(memory, NEEDLE) ? "CHANGED" : "ok");
}

static void api(void)
{
	char *const small = secretfs_alloc(100), *const large = secretfs_alloc(200000), *const pages = secretfs_map(8192);

	filled("small", small);
	filled("large", large);
	if (filled("pages", pages)) {
		const int hidden = !secretfs_hide(pages);

		say("hidden", hidden ? "ok" : "refused");
		if (hidden && secretfs_reveal(pages, 0))
			say("shown", secretfs_reveal(pages, 0) ? "REFUSED TWICE" : "refused");
		check("pages", pages);
		say("hidden", secretfs_hide(pages) ? "refused" : "ok");
	}
	if (small)
		check("small", small);
	if (large)
		check("large", large);
	secretfs_free(small);
	secretfs_free(large);
	secretfs_free(pages);
	filled("again", secretfs_alloc(300000));
}

static void openssl(void)
{
	static char *pieces[PIECES];
	int good = 0;

	for (int i = 0; i < PIECES; i++) {
		pieces[i] = CRYPTO_malloc((size_t)(i + 1) * 64, "", 0);
		if (!pieces[i])
			break;
		strcpy(pieces[i], NEEDLE);
	}
	for (int i = 0; i < PIECES && pieces[i]; i++) {
		pieces[i] = CRYPTO_realloc(pieces[i], i % 20 ? 5000 : 40000, "", 0);
		if (!pieces[i])
			break;
		good += !strcmp(pieces[i], NEEDLE);
		CRYPTO_free(pieces[i], "", 0);
	}
	say("pieces", good == PIECES ? "ok" : "CHANGED");
}

static void in_fork(void)
{
	char *const kept = secretfs_alloc(1000);
	int status;
	pid_t child;

	if (!filled("kept", kept))
		return;
	child = fork();
	if (!child) {
		check("child", kept);
		filled("childs", secretfs_alloc(100000));
		_exit(0);
	}
	if (child < 0) {
		say("fork", "refused");
	} else {
		waitpid(child, &status, 0);
		say("ended", WIFEXITED(status) && !WEXITSTATUS(status) ? "ok" :
			     WIFEXITED(status) && WEXITSTATUS(status) == 125 ? "refused" : "KILLED");
	}
	check("kept", kept);
}

static void sodium(void)
{
	static char pages[3 * 4096] __attribute__((aligned(4096)));
	void *const library = dlopen("libsodium.so.23", RTLD_NOW);
	int (*init)(void), (*lock)(void *, size_t), (*unlock)(void *, size_t);
	void *(*allocate)(size_t), (*release)(void *);
	char *memory;

	if (!library) {
		say("library", "refused");
		return;
	}
	*(void **)&init = dlsym(library, "sodium_init");
	*(void **)&lock = dlsym(library, "sodium_mlock");
	*(void **)&unlock = dlsym(library, "sodium_munlock");
	*(void **)&allocate = dlsym(library, "sodium_malloc");
	*(void **)&release = dlsym(library, "sodium_free");
	say("begun", init() < 0 ? "refused" : "ok");
	memory = allocate(100);
	if (filled("made", memory)) {
		check("made", memory);
		release(memory);
	}
	strcpy(pages, NEEDLE);
	say("locked", lock(pages, sizeof pages) ? "refused" : "ok");
	check("pages", pages);
	munlock(pages, sizeof pages); /* the library's, that gives ordinary pages back */
	check("pages", pages);
	unlock(pages, sizeof pages);
	say("wiped", pages[0] ? "CHANGED" : "ok");
}

int main(int count, char **words)
{
	const char *const what = count > 1 ? words[1] : "";

	if (!strcmp(what, "api"))
		api();
	else if (!strcmp(what, "openssl"))
		openssl();
	else if (!strcmp(what, "fork"))
		in_fork();
	else
		sodium();
	say("end", "ok");
	return 7;
}
