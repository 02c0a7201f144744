/*
 * Areas of secret memory.
 *
 * All areas lie in one reserved range of addresses, so that one comparison tells whether a pointer is ours. Each lies in
 * slots of its own with unmapped addresses (guard pages) around it. Its descriptor is closed as soon as it is mapped,
 * and its pages are faulted in by the kernel, so that running out is an error here and no SIGBUS later.
 *
 * Areas are left out of forks (MADV_DONTFORK), but a fork that goes through fork(3) lets the child see them for the
 * moment that it takes to copy each to a fresh area of its own, at the same address.
 */
#define _GNU_SOURCE
#include "memory.h"

#include "config.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif
#define PAGE ((size_t)4096)
#define SLOT ((size_t)4 << 20)
#define SLOTS 4096
#define REPLACED 64
#define COPY_LIMIT_MS 30000

struct area {
	char *start;
	size_t size;
	enum kind kind;
	int access; /* what mprotect(2) was told */
};

char *secretfs_base;
size_t secretfs_range;

static struct area areas[SLOTS + REPLACED]; /* by the slot that they start in; then those that replaced other pages */
static uint32_t taken[SLOTS];               /* how many slots are taken from here on */
static size_t next_slot;
static int replaced;
static size_t locked;
static int kernel_works, emulator_works;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int child_copies[2];

/* Have the kernel write a byte into each page: where it cannot, that is EFAULT here. */
static int fault_in(char *start, size_t size)
{
	for (size_t at = 0; at < size; at += PAGE) {
		while (getrandom(start + at, 1, 0) != 1)
			if (errno != EINTR)
				return -1;
		start[at] = 0;
	}
	return 0;
}

static int map_kernel(char *start, size_t size)
{
	const int fd = (int)syscall(SYS_memfd_secret, O_CLOEXEC);
	void *got;

	if (fd < 0)
		return -1;
	got = ftruncate(fd, (off_t)size) ? MAP_FAILED :
					   mmap(start, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	close(fd);
	return got == MAP_FAILED ? -1 : fault_in(start, size);
}

static int map_emulator(char *start, size_t size)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;

	if (mmap(start, size, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED)
		return -1;
	return mlock(start, size) || madvise(start, size, MADV_DONTDUMP) ? -1 : 0;
}

static void release(char *start, size_t size)
{
	mmap(start, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
}

/* Map memory of that kind at a reserved address; what failed is reserved again. */
static int map_at(char *start, size_t size, enum kind kind)
{
	if (!(kind == KIND_KERNEL ? map_kernel : map_emulator)(start, size) && !madvise(start, size, MADV_DONTFORK))
		return 0;
	release(start, size);
	return -1;
}

/* Whether a page is secret: the kernel reads an ordinary page for us, and refuses this one. */
static int is_secret(char *page)
{
	char byte = 0, ordinary = 0;
	struct iovec local = {&byte, 1}, mine = {&ordinary, 1}, secret = {page, 1};

	return process_vm_readv(getpid(), &local, 1, &mine, 1, 0) == 1 &&
	       process_vm_readv(getpid(), &local, 1, &secret, 1, 0) < 0 && errno == EFAULT;
}

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
	probe = secretfs_base + PAGE;
	if (allow_kernel && !map_at(probe, PAGE, KIND_KERNEL)) {
		kernel_works = is_secret(probe);
		release(probe, PAGE);
	}
	if (allow_emulator && !map_at(probe, PAGE, KIND_EMULATOR)) {
		emulator_works = 1;
		release(probe, PAGE);
	}
	return kernel_works || emulator_works ? 0 : -1;
}

/* The first of `count` free slots in a row, or SLOTS. */
static size_t find_slots(size_t count)
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
	if (kernel_works && !map_at(start, size, KIND_KERNEL))
		return KIND_KERNEL;
	if (emulator_works && !map_at(start, size, KIND_EMULATOR))
		return KIND_EMULATOR;
	return KIND_NONE;
}

void *area_map(size_t size)
{
	const size_t count = (size + SPAN + PAGE + SLOT - 1) / SLOT;
	void *result = NULL;
	struct area area;
	size_t slot;

	pthread_mutex_lock(&lock);
	slot = find_slots(count);
	if (slot < SLOTS) {
		area.start = secretfs_base + slot * SLOT + SPAN; /* what is before it is a guard, and what is behind */
		area.size = size;
		area.access = PROT_READ | PROT_WRITE;
		area.kind = map_best(area.start, size);
		if (area.kind != KIND_NONE) {
			areas[slot] = area;
			taken[slot] = (uint32_t)count;
			locked += size;
			result = area.start;
		}
	}
	pthread_mutex_unlock(&lock);
	return result;
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

	pthread_mutex_lock(&lock);
	area = find(start);
	if (area && !mprotect(area->start, area->size, access)) {
		area->access = access;
		result = 0;
	}
	pthread_mutex_unlock(&lock);
	return result;
}

void area_unmap(void *start)
{
	struct area *area;

	pthread_mutex_lock(&lock);
	area = find(start);
	if (area) {
		mprotect(area->start, area->size, PROT_READ | PROT_WRITE);
		explicit_bzero(area->start, area->size);
		release(area->start, area->size);
		locked -= area->size;
		taken[area - areas] = 0;
		*area = (struct area){0};
	}
	pthread_mutex_unlock(&lock);
}

/* Move secret memory with the bytes of `start` over it. `scratch` is reserved, and reserved again afterwards. */
static int move_over(char *start, size_t size, char *scratch, enum kind *kind)
{
	*kind = map_best(scratch, size);
	if (*kind == KIND_NONE)
		return -1;
	memcpy(scratch, start, size);
	if (mremap(scratch, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, start) == MAP_FAILED) {
		explicit_bzero(scratch, size);
		release(scratch, size);
		return -1;
	}
	release(scratch, size); /* mremap leaves a hole, where anything might be mapped */
	return 0;
}

int area_replace(void *start, size_t size)
{
	struct area *const area = &areas[SLOTS + replaced];
	int result = -1;
	size_t slot;

	pthread_mutex_lock(&lock);
	slot = find_slots((size + SLOT - 1) / SLOT);
	if (slot < SLOTS && replaced < REPLACED) {
		char *const scratch = secretfs_base + slot * SLOT;

		result = move_over(start, size, scratch, &area->kind);
		if (!result) {
			area->start = start;
			area->size = size;
			area->access = PROT_READ | PROT_WRITE;
			locked += size;
			replaced++;
		}
	}
	pthread_mutex_unlock(&lock);
	return result;
}

void memory_totals(struct totals *totals)
{
	pthread_mutex_lock(&lock);
	totals->locked = locked;
	totals->kind = kernel_works ? KIND_KERNEL : emulator_works ? KIND_EMULATOR : KIND_NONE;
	pthread_mutex_unlock(&lock);
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
	pthread_mutex_lock(&lock);
	if (!locked)
		return;
	if (pipe2(child_copies, O_CLOEXEC))
		child_copies[0] = child_copies[1] = -1; /* the parent cannot wait; the child copies what it finds */
	each_area(let_fork);
}

/* Wait until the child has copied everything, or has died. */
void areas_in_parent(void)
{
	if (locked) {
		struct pollfd copied = {.fd = child_copies[0], .events = POLLIN};

		close(child_copies[1]);
		while (child_copies[0] >= 0 && poll(&copied, 1, COPY_LIMIT_MS) < 0 && errno == EINTR)
			;
		close(child_copies[0]);
		each_area(keep_from_forks);
	}
	pthread_mutex_unlock(&lock);
}

/* Ordinary memory with the same bytes, where no more can be locked and the policy allows that. */
static int move_to_ordinary(char *start, size_t size, char *scratch)
{
	if (config.abort || mprotect(scratch, size, PROT_READ | PROT_WRITE))
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
		return mlock(area->start, area->size) && config.abort ? -1 : 0;
	scratch = mmap(NULL, area->size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (scratch == MAP_FAILED || mprotect(area->start, area->size, PROT_READ))
		return -1;
	if (!move_over(area->start, area->size, scratch, &area->kind))
		return munmap(scratch, area->size);
	area->kind = KIND_EMULATOR; /* to be wiped at exit */
	return move_to_ordinary(area->start, area->size, scratch);
}

static void rehome(struct area *area)
{
	if (take_over(area) || madvise(area->start, area->size, MADV_DONTFORK) ||
	    mprotect(area->start, area->size, area->access))
		give_up(125,
			"a forked child cannot lock %zu bytes for its copy of its parent's secrets; raise the lock limit: "
			"LimitMEMLOCK= in a systemd unit, or ulimit -l",
			area->size);
}

void areas_in_child(void)
{
	if (locked) {
		close(child_copies[0]);
		each_area(rehome);
		close(child_copies[1]); /* the parent goes on */
	}
	pthread_mutex_init(&lock, NULL);
}

static void wipe(struct area *area)
{
	if (area->kind == KIND_EMULATOR) {
		mprotect(area->start, area->size, PROT_READ | PROT_WRITE);
		explicit_bzero(area->start, area->size);
	}
}

void areas_wipe(void)
{
	each_area(wipe);
}
