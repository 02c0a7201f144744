/* Spans: pages of secret memory that the heap cuts into pieces of one size. */
#ifndef SECRETFS_SPANS_H
#define SECRETFS_SPANS_H

#include "memory.h"
#include "pages.h"

#include <stddef.h>
#include <stdint.h>

#define PAGES ((size_t)1 << 22) /* of 16 GiB, the most that memory.c reserves */

/* What each page of ours holds, as the heap numbers it; 0: nothing of the heap's. */
extern uint8_t span_kind[PAGES];

static inline uint8_t *kind_of(const void *memory)
{
	return &span_kind[((uintptr_t)memory - (uintptr_t)secretfs_base) / PAGE];
}

/* `size` bytes (whole pages) of zeros, their pages marked as `kind`; NULL where no more may be locked. */
char *span_take(size_t size, uint8_t kind);

/* Have that much at hand, or as much of it as can be had. */
void spans_reserve(size_t size);

/* Bytes that were taken. */
size_t spans_used(void);

void spans_before_fork(void);
void spans_after_fork(int in_child);

/* In a child, before it copies anything: what was never used needs no copy. */
void spans_trim(void);

#endif
