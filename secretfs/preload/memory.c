/*
 * Areas of secret memory.
 *
 * All areas lie in one reserved range of addresses, so that one comparison tells whether a pointer is ours. Each lies in
 * slots of its own with unmapped addresses (guard pages) around it.
 *
 * Areas are left out of forks (MADV_DONTFORK), but a fork that goes through fork(3) lets the child see them for the
 * moment that it takes to copy each to a fresh area of its own, at the same address.
 */
#define _GNU_SOURCE
#include "memory.h"

#include "areas.h"
#include "cgroup.h"
#include "config.h"
#include "pages.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define COPY_LIMIT_MS 30000
#define GUARD ((size_t)64 << 10)

char *secretfs_base;
size_t secretfs_range;

struct area areas[SLOTS + REPLACED];
pthread_mutex_t areas_lock = PTHREAD_MUTEX_INITIALIZER;
size_t areas_locked;

static uint32_t taken[SLOTS];               /* how many slots are taken from here on */
static size_t next_slot;
static int kernel_works, emulator_works;
static atomic_int sealed;
static int copying, child_copies[2]; /* between a fork and the end of the copies */

int memory_init(int allow_kernel, int allow_emulator)
{
	char *probe;

	for (secretfs_range = SLOT * SLOTS; secretfs_range >= 16 * SLOT; secretfs_range /= 2) {
		secretfs_base = mmap(NULL, secretfs_range, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (secretfs_base != MAP_FAILED)
			break;
	}
	if (secretfs_base == MAP_FAILED) {
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
	if (kernel_works && !pages_map(start, size, KIND_KERNEL))
		return KIND_KERNEL;
	if (emulator_works && !pages_map(start, size, KIND_EMULATOR))
		return KIND_EMULATOR;
	return KIND_NONE;
}

void *area_map(size_t size)
{
	const size_t count = (size + GUARD + PAGE + SLOT - 1) / SLOT;
	void *result = NULL;
	struct area area;
	size_t slot;

	pthread_mutex_lock(&areas_lock);
	slot = sealed ? SLOTS : areas_find_slots(count);
	if (slot < SLOTS) {
		area.start = secretfs_base + slot * SLOT + GUARD; /* what is before it is a guard, and what is behind */
		area.size = size;
		area.access = PROT_READ | PROT_WRITE;
		area.kind = map_best(area.start, size);
		if (area.kind != KIND_NONE) {
			areas[slot] = area;
			taken[slot] = (uint32_t)count;
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

void area_unmap(void *start)
{
	struct area *area;

	pthread_mutex_lock(&areas_lock);
	area = find(start);
	if (area) {
		protect_raw(area->start, area->size, PROT_READ | PROT_WRITE);
		explicit_bzero(area->start, area->size);
		pages_release(area->start, area->size);
		areas_locked -= area->size;
		taken[area - areas] = 0;
		*area = (struct area){0};
	}
	pthread_mutex_unlock(&areas_lock);
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

static void each_area(void (*act)(struct area *area))
{
	for (int i = 0; i < SLOTS + REPLACED; i++)
		if (areas[i].start)
			act(&areas[i]);
}

static void let_fork(struct area *area)
{
	madvise(area->start, area->size, MADV_DOFORK);
}

static void keep_from_forks(struct area *area)
{
	madvise(area->start, area->size, MADV_DONTFORK);
}

void areas_before_fork(void)
{
	pthread_mutex_lock(&areas_lock);
	copying = areas_locked != 0;
	if (!copying)
		return;
	if (pipe2(child_copies, O_CLOEXEC))
		child_copies[0] = child_copies[1] = -1; /* the parent cannot wait; the child copies what it finds */
	each_area(let_fork);
}

/* Wait until the child has copied everything, or has died. */
void areas_in_parent(void)
{
	if (copying) {
		struct pollfd copied = {.fd = child_copies[0], .events = POLLIN};

		close(child_copies[1]);
		while (child_copies[0] >= 0 && poll(&copied, 1, COPY_LIMIT_MS) < 0 && errno == EINTR)
			;
		close(child_copies[0]);
		each_area(keep_from_forks);
	}
	pthread_mutex_unlock(&areas_lock);
}

/* Ordinary memory with the same bytes, where no more can be areas_locked and the policy allows that. */
static int move_to_ordinary(char *start, size_t size, char *scratch)
{
	if (config.abort || protect_raw(scratch, size, PROT_READ | PROT_WRITE))
		return -1;
	memcpy(scratch, start, size);
	if (mremap(scratch, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, start) == MAP_FAILED)
		return -1;
	atomic_fetch_add(&secretfs_fallbacks, 1);
	return 0;
}

/* Its own memory in place of its parent's, which it still shares. */
static int take_over(struct area *area)
{
	char *scratch;

	if (area->kind == KIND_EMULATOR) /* private pages: the copy is there, its lock is not */
		return syscall(SYS_mlock, area->start, area->size) && config.abort ? -1 : 0;
	scratch = mmap(NULL, area->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (scratch == MAP_FAILED || protect_raw(area->start, area->size, PROT_READ))
		return -1;
	if (!areas_move_over(area->start, area->size, scratch, &area->kind))
		return (int)syscall(SYS_munmap, scratch, area->size); /* munmap() is lock.c's, and waits for us */
	area->kind = KIND_EMULATOR; /* to be wiped at exit */
	return move_to_ordinary(area->start, area->size, scratch);
}

static void rehome(struct area *area)
{
	if (take_over(area) || madvise(area->start, area->size, MADV_DONTFORK) ||
	    protect_raw(area->start, area->size, area->access))
		give_up(125,
			"a forked child cannot lock %zu bytes for its copy of its parent's secrets; %s",
			area->size, cgroup_or_lock_remedy());
}

void area_trim(char *start, const char *end)
{
	for (struct area *area = areas; area < areas + SLOTS; area++) {
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

void areas_in_child(void)
{
	if (copying) {
		close(child_copies[0]);
		each_area(rehome);
		close(child_copies[1]); /* the parent goes on */
	}
	pthread_mutex_init(&areas_lock, NULL);
}

static void wipe(struct area *area)
{
	if (area->kind == KIND_EMULATOR) {
		protect_raw(area->start, area->size, PROT_READ | PROT_WRITE);
		explicit_bzero(area->start, area->size);
	}
}

void areas_wipe(void)
{
	each_area(wipe);
}
