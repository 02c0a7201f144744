/* The table of areas, for memory.c, forks.c and replaced.c. */
#ifndef SECRETFS_AREAS_H
#define SECRETFS_AREAS_H

#include "pages.h"

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SLOT ((size_t)512 << 10)
#define SLOTS 32768 /* 16 GiB */
#define REPLACED 1024

struct area {
	char *start; /* NULL: there is none */
	size_t size;
	enum kind kind;
	int access; /* what mprotect(2) was told */
};

/* By the slot that they start in; then those that replaced other pages. */
extern struct area areas[SLOTS + REPLACED];
extern pthread_mutex_t areas_lock; /* for all of this */
extern size_t areas_locked;        /* bytes */

/* The first of `count` free slots in a row, or SLOTS. */
size_t areas_find_slots(size_t count);

void areas_each(void (*act)(struct area *area));

/* Before the first area: 0, or -1 where not even a page can be mapped. */
int forks_init(void);

/* Move secret memory with the bytes of `start` over it. `scratch` is reserved, and reserved again afterwards. */
int areas_move_over(char *start, size_t size, char *scratch, enum kind *kind);

/* mprotect(2), past lock.c, which would wait for our lock. */
static inline int protect_raw(void *start, size_t size, int access)
{
	return (int)syscall(SYS_mprotect, start, size, access);
}

#endif
