/* Small pieces of secret memory, for many threads. */
#ifndef SECRETFS_HEAP_H
#define SECRETFS_HEAP_H

#include <stddef.h>

/* `size` bytes, all zero; NULL where no more may be locked. */
void *heap_alloc(size_t size);

/* Wipe and free. */
void heap_free(void *memory);

/* How many bytes a piece has. */
size_t heap_size(const void *memory);

/* As realloc(3): what does not fit moves, and what it leaves is wiped. */
void *heap_realloc(void *memory, size_t size);

/* As above, with the policy for when secret memory has run out: ordinary memory, or the end of the process. */
void *secret_malloc(size_t size);
void *secret_realloc(void *memory, size_t size); /* takes foreign pointers too */
void secret_free(void *memory);                  /* takes foreign pointers too */

/* The policy: end the process, or count, and say it the first time. */
void exhausted(size_t size);

/* Have that much at hand, if it can be had, for when no more can be asked for. */
void heap_reserve(size_t size);

/* Bytes in spans that are in use. */
size_t heap_used(void);

void heap_before_fork(void);
void heap_after_fork(int in_child);

#endif
