/* What the environment says, read once; messages; the counters of the report. */
#ifndef SECRETFS_CONFIG_H
#define SECRETFS_CONFIG_H

#include <stdatomic.h>

#define API __attribute__((visibility("default")))
#define PRINTF(a, b) __attribute__((format(printf, a, b)))

enum { OPENSSL = 1, LIBSODIUM = 2, GCRYPT = 4, GNUTLS = 8, ALL = 15 };

struct config {
	int kernel;    /* use memfd_secret */
	int emulator;  /* use locked memory */
	int abort;     /* when no more can be locked: end the process, and do not fall back to ordinary memory */
	int toolkits;
	int children;  /* programs that this one executes get the library too */
	const char *report;
};
extern struct config config;

extern atomic_ulong secretfs_fallbacks;
extern atomic_int secretfs_reached;   /* toolkits whose allocations came here */
extern atomic_int secretfs_unreached; /* an OpenSSL that is linked statically was seen */
extern atomic_int secretfs_late;      /* one that allocates without us was seen */

/* Read the environment and get ready; runs once, whoever comes first. */
void secretfs_init(void);
extern atomic_int secretfs_ready;

static inline void ensure_ready(void)
{
	if (!atomic_load_explicit(&secretfs_ready, memory_order_acquire))
		secretfs_init();
}

static inline int uses(int toolkit)
{
	if (!(config.toolkits & toolkit))
		return 0;
	if (!(atomic_load_explicit(&secretfs_reached, memory_order_relaxed) & toolkit))
		atomic_fetch_or(&secretfs_reached, toolkit);
	return 1;
}

void say(const char *format, ...) PRINTF(1, 2);                        /* "secretfs: warning: …" on stderr */
_Noreturn void give_up(int code, const char *format, ...) PRINTF(2, 3); /* "secretfs: error: …", exit code */

#endif
