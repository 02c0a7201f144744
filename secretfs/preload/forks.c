/*
 * Forks. Areas are left out of them (MADV_DONTFORK), but a fork that goes through fork(3) lets the child see them for the
 * moment that it takes to copy each to a fresh area of its own, at the same address. The parent waits for that: it would
 * write to what the child copies.
 */
#define _GNU_SOURCE
#include "areas.h"
#include "cgroup.h"
#include "config.h"
#include "memory.h"
#include "pages.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* How long a parent waits, in milliseconds; how long where it would not notice that the child died, or never was. */
#define COPY_LIMIT 30000
#define BLIND_LIMIT 5000
#define SLICE 20

/* Between a fork and the end of the copies. */
enum { COPYING, COPIED, ABANDONED };
static int copying, child_copies[2];
static atomic_int *copies; /* what has become of them, shared with the child */

/* A word that a child shares; each process needs its own. */
int forks_init(void)
{
	copies = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	return copies == MAP_FAILED ? -1 : 0;
}

static void let_fork(struct area *area)
{
	madvise(area->start, area->size, MADV_DOFORK);
}

static void keep_from_forks(struct area *area)
{
	madvise(area->start, area->size, MADV_DONTFORK);
}

/* The pipe tells the parent at once if the child dies. Without one (no descriptor is left) it looks at the word only. */
void areas_before_fork(void)
{
	pthread_mutex_lock(&areas_lock);
	copying = areas_locked != 0;
	if (!copying)
		return;
	atomic_store(copies, COPYING);
	if (pipe2(child_copies, O_CLOEXEC))
		child_copies[0] = child_copies[1] = -1;
	areas_each(let_fork);
}

static long long milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* The end of the pipe, or the word: somebody else may have got a copy of the descriptor by a raw clone(2). */
static void await_copies(void)
{
	struct pollfd copied = {.fd = child_copies[0], .events = POLLIN};
	const long long end = milliseconds() + (copied.fd < 0 ? BLIND_LIMIT : COPY_LIMIT);

	while (atomic_load(copies) == COPYING && milliseconds() < end)
		if (poll(&copied, 1, SLICE) > 0)
			return;
}

static void close_pipe(void)
{
	for (int i = 0; i < 2; i++)
		if (child_copies[i] >= 0)
			close(child_copies[i]);
}

/*
 * Wait until the child has copied everything, or has died: what it copies is what this process writes to. A child that
 * is stopped for longer must not copy any more.
 */
void areas_in_parent(void)
{
	int expected = COPYING;

	if (copying) {
		if (child_copies[1] >= 0)
			close(child_copies[1]);
		child_copies[1] = -1;
		await_copies();
		atomic_compare_exchange_strong(copies, &expected, ABANDONED);
		close_pipe();
		areas_each(keep_from_forks);
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

/* Everything is copied: the parent may go on. */
static void say_copied(void)
{
	int expected = COPYING;

	if (!atomic_compare_exchange_strong(copies, &expected, COPIED))
		give_up(125, "this process was stopped before it had its own copy of its parent's secrets, and its parent "
			     "has gone on");
	close_pipe();
}

void areas_in_child(void)
{
	if (copying) {
		areas_each(rehome);
		say_copied();
	}
	syscall(SYS_munmap, copies, PAGE);
	if (forks_init())
		give_up(125, "a forked child cannot map a page");
	pthread_mutex_init(&areas_lock, NULL);
}
