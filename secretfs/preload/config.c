/* The environment, read once and with secure_getenv(3); getting ready; messages; the report at the end. */
#define _GNU_SOURCE
#include "config.h"

#include "api.h"
#include "cgroup.h"
#include "files.h"
#include "foreign.h"
#include "heap.h"
#include "memory.h"
#include "spans.h"
#include "toolkits.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

struct config config = {.kernel = 1, .emulator = 1, .toolkits = ALL, .children = 1};
atomic_ulong secretfs_fallbacks;
atomic_int secretfs_reached;
atomic_int secretfs_unreached;
atomic_int secretfs_late;
atomic_int secretfs_ready;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pid_t initialising; /* the thread that is at it: allocations of its own must not wait for themselves */

static void message(const char *kind, const char *format, va_list arguments)
{
	char text[512];
	const int head = snprintf(text, sizeof text, "secretfs: %s: ", kind);
	int length;

	if (areas_are_sealed())
		return; /* stderr may be a file, and writing to it the end (sandbox.c) */
	length = head + vsnprintf(text + head, sizeof text - (size_t)head - 1, format, arguments);

	if (length > (int)sizeof text - 2)
		length = (int)sizeof text - 2;
	for (int i = head; i < length; i++) /* values of the environment are shown: nothing for a terminal to obey */
		if (text[i] < ' ' || text[i] > '~')
			text[i] = '?';
	text[length++] = '\n';
	if (write(STDERR_FILENO, text, (size_t)length) < 0)
		return;
}

void say(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	message("warning", format, arguments);
	va_end(arguments);
}

_Noreturn void give_up(int code, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	message("error", format, arguments);
	va_end(arguments);
	if (code == 134)
		abort();
	_exit(code);
}

static void read_backend(const char *word)
{
	if (!word || !*word || !strcmp(word, "auto"))
		return;
	if (!strcmp(word, "kernel"))
		config.emulator = 0;
	else if (!strcmp(word, "emulator"))
		config.kernel = 0;
	else
		give_up(125, "SECRETFS_BACKEND is '%.40s'; the preload library knows auto, kernel and emulator", word);
	config.abort = !config.emulator;
}

static void read_toolkits(const char *words)
{
	static const struct { const char *name; int toolkit; } known[] = {
		{"all", ALL}, {"openssl", OPENSSL}, {"libsodium", LIBSODIUM}, {"gcrypt", GCRYPT}, {"gnutls", GNUTLS},
	};

	if (!words || !*words)
		return;
	config.toolkits = 0;
	while (*words) {
		const size_t length = strcspn(words, ",");
		size_t i = 0;

		while (i < 5 && (strlen(known[i].name) != length || strncmp(words, known[i].name, length)))
			i++;
		if (i == 5)
			give_up(125, "SECRETFS_PRELOAD_TOOLKIT names '%.*s'; there are all, openssl, libsodium, gcrypt, gnutls",
				(int)(length > 40 ? 40 : length), words);
		config.toolkits |= known[i].toolkit;
		words += length + (words[length] == ',');
	}
}

static void read_exhausted(const char *word)
{
	if (!word || !*word)
		return;
	if (!strcmp(word, "abort"))
		config.abort = 1;
	else if (strcmp(word, "fallback"))
		give_up(125, "SECRETFS_PRELOAD_EXHAUSTED is '%.40s', not abort or fallback", word);
}

static void read_children(const char *word)
{
	if (!word || !*word || !strcmp(word, "1"))
		return;
	if (strcmp(word, "0"))
		give_up(125, "SECRETFS_PRELOAD_CHILDREN is '%.40s', not 0 or 1", word);
	config.children = 0;
}

static char program[64];

/* Copies: a program that sets its title, as nginx does, writes over its arguments and its environment. */
static void read_report(const char *path)
{
	static char copy[PATH_MAX];

	snprintf(program, sizeof program, "%s", program_invocation_short_name);
	if (!path || !*path)
		return;
	if (strlen(path) >= sizeof copy)
		give_up(125, "SECRETFS_PRELOAD_REPORT is longer than a path can be (%zu bytes)", sizeof copy - 1);
	strcpy(copy, path);
	config.report = copy;
}

static void read_environment(void)
{
	read_backend(secure_getenv("SECRETFS_BACKEND"));
	read_toolkits(secure_getenv("SECRETFS_PRELOAD_TOOLKIT"));
	read_exhausted(secure_getenv("SECRETFS_PRELOAD_EXHAUSTED"));
	read_children(secure_getenv("SECRETFS_PRELOAD_CHILDREN"));
	read_report(secure_getenv("SECRETFS_PRELOAD_REPORT"));
}

static void before_fork(void)
{
	api_before_fork();
	heap_before_fork();
	areas_before_fork();
}

static void in_parent(void)
{
	areas_in_parent();
	heap_after_fork(0);
	api_after_fork(0);
}

static void in_child(void)
{
	spans_trim();
	areas_in_child();
	heap_after_fork(1);
	api_after_fork(1);
	files_in_child();
	toolkits_in_child();
}

static const char *why_not_the_kernel(void)
{
	switch (pages_kernel_error()) {
	case EPERM:
		return "memfd_secret is blocked (EPERM), most likely by a container's seccomp profile";
	case ENOSYS:
		return "the kernel has no secret memory here (memfd_secret(2): Linux 5.14, secretmem.enable=1), or a "
		       "container's seccomp profile blocks it";
	default:
		return "the kernel has no secret memory here (memfd_secret(2))";
	}
}

static void start(void)
{
	struct totals totals;

	foreign_start();
	read_environment();
	if (memory_init(config.kernel, config.emulator))
		give_up(125,
			"%s%s%s; to run without protection, leave out LD_PRELOAD or `secretfs preload`",
			config.emulator ? "no memory can be locked here; " : "",
			config.emulator ? cgroup_or_lock_remedy() : why_not_the_kernel(),
			config.emulator ? "" : ", and SECRETFS_BACKEND is kernel");
	memory_totals(&totals);
	if (totals.kind == KIND_EMULATOR && config.kernel)
		say("using the emulator because %s; not guaranteed: off_direct_map, refuses_pinning, cleared_by_kernel, "
		    "not_hibernated",
		    why_not_the_kernel());
	pthread_atfork(before_fork, in_parent, in_child);
}

void secretfs_init(void)
{
	const pid_t self = (pid_t)syscall(SYS_gettid);

	if (initialising == self)
		return;
	pthread_mutex_lock(&lock);
	if (!atomic_load(&secretfs_ready)) {
		initialising = self;
		start();
		initialising = 0;
		atomic_store_explicit(&secretfs_ready, 1, memory_order_release);
	}
	pthread_mutex_unlock(&lock);
}

/* One line of JSON, appended: several processes may write to the same file. */
static void report(void)
{
	const int seen = atomic_load(&secretfs_reached);
	struct totals totals;
	char text[1024];
	int fd, length;

	memory_totals(&totals);
	if (areas_are_sealed())
		return; /* it may not write any more (sandbox.c) */
	if (!totals.locked && !atomic_load(&secretfs_fallbacks) && !atomic_load(&secretfs_unreached) &&
	    !atomic_load(&secretfs_late))
		return; /* a program that has no use for it */
	length = snprintf(text, sizeof text,
			  "{\"version\": 1, \"pid\": %d, \"program\": \"%s\", \"backend\": \"%s\", \"locked\": %zu, "
			  "\"used\": %zu, \"fallbacks\": %lu, \"openssl\": %s, \"libsodium\": %s, \"gcrypt\": %s, "
			  "\"gnutls\": %s, \"static_openssl\": %s, \"late_openssl\": %s}\n",
			  (int)getpid(), strpbrk(program, "\"\\\n") ? "?" : program,
			  totals.kind == KIND_KERNEL ? "kernel" : "emulator", totals.locked,
			  heap_used(), atomic_load(&secretfs_fallbacks), seen & OPENSSL ? "true" : "false",
			  seen & LIBSODIUM ? "true" : "false", seen & GCRYPT ? "true" : "false",
			  seen & GNUTLS ? "true" : "false", atomic_load(&secretfs_unreached) ? "true" : "false",
			  atomic_load(&secretfs_late) ? "true" : "false");
	if (!strcmp(config.report, "/dev/stderr")) {
		fd = STDERR_FILENO;
	} else {
		fd = open(config.report, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
		if (fd < 0) {
			say("the report cannot be written to '%.200s': %s", config.report, strerror(errno));
			return;
		}
	}
	if (write(fd, text, (size_t)length) < 0)
		return;
	if (fd != STDERR_FILENO)
		close(fd);
}

__attribute__((constructor)) static void load(void)
{
	ensure_ready();
	toolkits_look();
	if (!config.children)
		unsetenv("LD_PRELOAD");
}

__attribute__((destructor)) static void unload(void)
{
	if (config.report)
		report();
	areas_wipe();
}
