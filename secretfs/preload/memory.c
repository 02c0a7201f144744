/*
 * Areas of secret memory.
 *
 * All areas lie in one reserved range of addresses, so that one comparison tells whether a pointer is ours. Each lies in
 * slots of its own with unmapped addresses (guard pages) around it.
 *
 * What becomes of them at a fork is in forks.c.
 */
#define _GNU_SOURCE
#include "memory.h"

#include "areas.h"
#include "cgroup.h"
#include "config.h"
#include "pages.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define GUARD ((size_t)64 << 10)
#define LEAST_RANGE ((size_t)64 << 20)

char *secretfs_base;
size_t secretfs_range;

struct area areas[SLOTS + REPLACED];
pthread_mutex_t areas_lock = PTHREAD_MUTEX_INITIALIZER;
size_t areas_locked;

static uint32_t taken[SLOTS];               /* how many slots are taken from here on */
static size_t next_slot, slots_used; /* none is taken from there on */
static int kernel_works, emulator_works;
static atomic_int sealed;

int memory_init(int allow_kernel, int allow_emulator)
{
	char *probe;

	for (secretfs_range = SLOT * SLOTS; secretfs_range >= LEAST_RANGE; secretfs_range /= 2) {
		secretfs_base = mmap(NULL, secretfs_range, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (secretfs_base != MAP_FAILED)
			break;
	}
	if (secretfs_base == MAP_FAILED || forks_init()) {
		secretfs_base = NULL;
		secretfs_range = 0;
		return -1;
	}
	/* or a core has it, as gigabytes of nothing */
	syscall(SYS_madvise, secretfs_base, secretfs_range, MADV_DONTDUMP);
	probe = secretfs_base + PAGE;
	if (allow_kernel && !pages_map(probe, PAGE, KIND_KERNEL)) {
		kernel_works = pages_are_secret(probe);
		pages_release(probe, PAGE);
	}
	if (allow_emulator && !pages_map(probe, PAGE, KIND_EMULATOR)) {
		emulator_works = 1;
		pages_release(probe, PAGE);
	}
	return kernel_works || emulator_works ? 0 : -1;
}

/* The first of `count` free slots in a row, or SLOTS. */
size_t areas_find_slots(size_t count)
{
	const size_t all = secretfs_range / SLOT;
	size_t at = next_slot, run = 0;

	for (size_t tried = 0; tried < 2 * all; tried++, at++) {
		if (at >= all)
			at = run = 0;
		if (taken[at]) {
			at += taken[at] - 1;
			run = 0;
		} else if (++run == count) {
			next_slot = at + 1;
			return at + 1 - count;
		}
	}
	return SLOTS;
}

/* Secret memory of the best kind that is to be had. */
static enum kind map_best(char *start, size_t size)
{
	static int said;

	if (kernel_works && !pages_map(start, size, KIND_KERNEL))
		return KIND_KERNEL;
	if (!emulator_works || pages_map(start, size, KIND_EMULATOR))
		return KIND_NONE;
	if (kernel_works && !said++)
		say("the kernel gave no secret memory this time (the size of files is limited, or a sandbox refused): memory "
		    "of the emulator is used in its place");
	return KIND_EMULATOR;
}

void *area_map(size_t size)
{
	void *result = NULL;
	struct area area;
	size_t slot, count = 0;

	pthread_mutex_lock(&areas_lock);
	if (sealed || size > secretfs_range)
		slot = SLOTS;
	else
		slot = areas_find_slots(count = (size + GUARD + PAGE + SLOT - 1) / SLOT);
	if (slot < SLOTS) {
		area.start = secretfs_base + slot * SLOT + GUARD; /* what is before it is a guard, and what is behind */
		area.size = size;
		area.access = PROT_READ | PROT_WRITE;
		area.kind = map_best(area.start, size);
		if (area.kind != KIND_NONE) {
			areas[slot] = area;
			taken[slot] = (uint32_t)count;
			slots_used = slot < slots_used ? slots_used : slot + 1;
			areas_locked += size;
			result = area.start;
		}
	}
	pthread_mutex_unlock(&areas_lock);
	return result;
}

void areas_seal(void)
{
	atomic_store(&sealed, 1);
}

int areas_are_sealed(void)
{
	return atomic_load(&sealed);
}

static struct area *find(const void *start)
{
	const size_t slot = ((uintptr_t)start - (uintptr_t)secretfs_base) / SLOT;

	return is_ours(start) && areas[slot].start == start ? &areas[slot] : NULL;
}

size_t area_size(const void *start)
{
	const struct area *area = find(start);

	return area ? area->size : 0;
}

int area_protect(void *start, int access)
{
	struct area *area;
	int result = -1;

	pthread_mutex_lock(&areas_lock);
	area = find(start);
	if (area && !protect_raw(area->start, area->size, access)) {
		area->access = access;
		result = 0;
	}
	pthread_mutex_unlock(&areas_lock);
	return result;
}

/* Where it cannot be made writable, to write would be the end of the process. */
static void wipe(struct area *area)
{
	if (!protect_raw(area->start, area->size, PROT_READ | PROT_WRITE))
		explicit_bzero(area->start, area->size);
}

void area_unmap(void *start)
{
	struct area *area;

	pthread_mutex_lock(&areas_lock);
	area = find(start);
	if (area) {
		wipe(area);
		pages_release(area->start, area->size);
		areas_locked -= area->size;
		taken[area - areas] = 0;
		*area = (struct area){0};
	}
	pthread_mutex_unlock(&areas_lock);
}

void area_trim(char *start, const char *end)
{
	for (struct area *area = areas; area < areas + slots_used; area++) {
		if (!area->start || area->start + area->size != end)
			continue;
		pages_release(start, (size_t)(end - start));
		area->size = (size_t)(start - area->start);
		if (!area->size) {
			taken[area - areas] = 0;
			*area = (struct area){0};
		}
		areas_locked -= (size_t)(end - start);
	}
}

/* Move secret memory with the bytes of `start` over it. `scratch` is reserved, and reserved again afterwards. */
int areas_move_over(char *start, size_t size, char *scratch, enum kind *kind)
{
	*kind = map_best(scratch, size);
	if (*kind == KIND_NONE)
		return -1;
	memcpy(scratch, start, size);
	if (mremap(scratch, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, start) == MAP_FAILED) {
		explicit_bzero(scratch, size);
		pages_release(scratch, size);
		return -1;
	}
	pages_release(scratch, size); /* mremap leaves a hole, where anything might be mapped */
	return 0;
}

void memory_totals(struct totals *totals)
{
	pthread_mutex_lock(&areas_lock);
	totals->locked = areas_locked;
	totals->kind = kernel_works ? KIND_KERNEL : emulator_works ? KIND_EMULATOR : KIND_NONE;
	pthread_mutex_unlock(&areas_lock);
}

void areas_each(void (*act)(struct area *area))
{
	for (size_t i = 0; i < SLOTS + REPLACED; i++)
		if (i >= slots_used && i < SLOTS)
			i = SLOTS - 1;
		else if (areas[i].start)
			act(&areas[i]);
}

static void wipe_ordinary(struct area *area)
{
	if (area->kind == KIND_EMULATOR)
		wipe(area);
}

void areas_wipe(void)
{
	areas_each(wipe_ordinary);
}
