/* Secret memory in areas: where it comes from, where it lies, what becomes of it at fork and exit. */
#ifndef SECRETFS_MEMORY_H
#define SECRETFS_MEMORY_H

#include "pages.h"

#include <stddef.h>
#include <stdint.h>

/* The addresses at which all our memory lies, and nothing else. */
extern char *secretfs_base;
extern size_t secretfs_range;

static inline int is_ours(const void *memory)
{
	return (uintptr_t)memory - (uintptr_t)secretfs_base < secretfs_range;
}

struct totals {
	size_t locked;
	enum kind kind;
};

/* Reserve addresses, probe the kernel. 0, or -1 where that kind of memory cannot be had at all. */
int memory_init(int allow_kernel, int allow_emulator);

/* An area of `size` bytes (whole pages), zeroed and faulted in, with unmapped addresses on both sides; NULL: no more. */
void *area_map(size_t size);

/* From now on there are no more areas, and no system calls for any. */
void areas_seal(void);
int areas_are_sealed(void);

/* mprotect(2) a whole area; 0, or -1 where there is none. */
int area_protect(void *start, int access);

/* In a child, before areas_in_child(): give up the end of an area, which nobody has used. */
void area_trim(char *start, const char *end);

/* Wipe and unmap an area. */
void area_unmap(void *start);

/* Put secret memory where there are other pages (whole ones), with the same bytes; 0, or -1 and nothing is changed. */
int area_replace(void *start, size_t size);

/* Undo that: ordinary pages with the same bytes; -1 where these are not exactly pages that were replaced. */
int area_restore(void *start, size_t size);

/* mprotect(2) was called for such pages. */
void area_protected(void *start, size_t size, int access);

/* munmap(2), after which no such pages are there. */
int areas_munmap(void *memory, size_t size);

/* An area's size; 0 if none starts there. */
size_t area_size(const void *start);

void memory_totals(struct totals *totals);

/* Around fork(2), with every lock of the heap held. */
void areas_before_fork(void);
void areas_in_parent(void);
void areas_in_child(void);

/* At exit: wipe what the kernel would not clear. */
void areas_wipe(void);

#endif
