/*
 * Pages of a toolkit's own that were replaced by secret memory, and what becomes of them (lock.c says which those are).
 * munmap(2) and mprotect(2) go straight to the kernel from here: lock.c has the functions of those names.
 */
#define _GNU_SOURCE
#include "memory.h"

#include "areas.h"

#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

static atomic_int replaced; /* how many there are */

/* The entry of the pages that replaced others at these addresses, or the first that touches them; NULL: none. */
static struct area *find_replaced(const char *start, size_t size, int exactly)
{
	for (struct area *area = areas + SLOTS; area < areas + SLOTS + REPLACED; area++) {
		if (!area->start)
			continue;
		if (exactly ? area->start == start && area->size == size :
			      area->start < start + size && start < area->start + area->size)
			return area;
	}
	return NULL;
}

/* A free entry of that kind. */
static struct area *free_entry(void)
{
	for (struct area *area = areas + SLOTS; area < areas + SLOTS + REPLACED; area++)
		if (!area->start)
			return area;
	return NULL;
}

int area_replace(void *start, size_t size)
{
	struct area *area;
	int result = -1;
	size_t slot;

	pthread_mutex_lock(&areas_lock);
	slot = areas_find_slots((size + SLOT - 1) / SLOT);
	area = free_entry();
	if (slot < SLOTS && area) {
		result = areas_move_over(start, size, secretfs_base + slot * SLOT, &area->kind);
		if (!result) {
			area->start = start;
			area->size = size;
			area->access = PROT_READ | PROT_WRITE;
			areas_locked += size;
			replaced++;
		}
	}
	pthread_mutex_unlock(&areas_lock);
	return result;
}

/* An entry no longer has its last or first bytes, or none at all. */
static void shrink(struct area *area, char *start, size_t size)
{
	areas_locked -= area->size - size;
	area->start = start;
	area->size = size;
	if (!size) {
		*area = (struct area){0};
		replaced--;
	}
}

/* Ordinary pages with the bytes of secret ones in their place; -1 where that cannot be, and all is as it was. */
static int move_back(char *ordinary, char *start, size_t size)
{
	if (protect_raw(start, size, PROT_READ | PROT_WRITE))
		return -1;
	memcpy(ordinary, start, size);
	explicit_bzero(start, size);
	if (mremap(ordinary, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, start) != MAP_FAILED)
		return 0;
	memcpy(start, ordinary, size);
	explicit_bzero(ordinary, size);
	return -1;
}

int area_restore(void *start, size_t size)
{
	struct area *area;
	int result = -1;
	void *scratch;

	if (!atomic_load(&replaced))
		return -1;
	pthread_mutex_lock(&areas_lock);
	area = find_replaced(start, size, 1);
	if (area) {
		scratch = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (scratch != MAP_FAILED && !move_back(scratch, start, size)) {
			result = protect_raw(start, size, area->access);
			shrink(area, NULL, 0);
		} else if (scratch != MAP_FAILED) {
			protect_raw(start, size, area->access);
			syscall(SYS_munmap, scratch, size);
		}
	}
	pthread_mutex_unlock(&areas_lock);
	return result;
}

void area_protected(void *start, size_t size, int access)
{
	struct area *area;

	if (!atomic_load(&replaced))
		return;
	pthread_mutex_lock(&areas_lock);
	area = find_replaced(start, size, 1);
	if (area)
		area->access = access;
	pthread_mutex_unlock(&areas_lock);
}

int areas_munmap(void *memory, size_t size)
{
	char *const start = memory, *const end = start + ((size + PAGE - 1) & ~(PAGE - 1));
	struct area *area;
	int result;

	if (!atomic_load(&replaced))
		return (int)syscall(SYS_munmap, memory, size);
	pthread_mutex_lock(&areas_lock);
	result = (int)syscall(SYS_munmap, memory, size);
	while (!result && (area = find_replaced(start, (size_t)(end - start), 0))) {
		char *const last = area->start + area->size;

		if (area->start >= start)
			shrink(area, end < last ? end : last, end < last ? (size_t)(last - end) : 0);
		else
			shrink(area, area->start, (size_t)(start - area->start));
	}
	pthread_mutex_unlock(&areas_lock);
	return result;
}
