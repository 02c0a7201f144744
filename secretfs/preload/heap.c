/*
 * A heap in secret memory: size classes in spans of a few pages, and what is larger in areas of its own.
 *
 * Every thread keeps a few free pieces of each class; the rest lies in a few lists per class, with a lock each. A piece is
 * wiped when it is freed, so every free piece is zero but for the link of the list it is in: what is allocated needs
 * no clearing. What lies where is known from a table of pages outside of the secret memory.
 */
#define _GNU_SOURCE
#include "heap.h"

#include "cgroup.h"
#include "config.h"
#include "memory.h"
#include "spans.h"

#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CLASSES 72 /* 16, 32, … 256, then eight to each doubling: 288, 320, … 32768 */
#define LARGEST 32768
#define KEPT 64 /* pieces of a class that a thread keeps */
#define KEPT_BYTES 16384
#define LARGE 255
#define SHARDS 8 /* so that 64 threads do not wait for one that is not running */

struct free_piece {
	struct free_piece *next;
};

struct class {
	size_t size, span; /* bytes of a piece, and of a span of them */
	unsigned kept;     /* by each thread */
};

/* Free pieces of a class. There are some for each, and a thread uses one of them. */
struct list {
	pthread_mutex_t lock;
	struct free_piece *_Atomic free;
} __attribute__((aligned(64)));

/* Of a thread. They lie in ordinary memory of their own, since the dynamic linker has little for those of a library. */
struct cache {
	unsigned char count[CLASSES];
	void *pieces[CLASSES][KEPT];
	struct list *lists; /* of each class one */
	struct cache *next; /* of those that no thread has */
};

static struct class classes[CLASSES];
static struct list lists[SHARDS * CLASSES]; /* all classes of one shard, then of the next */
static __thread struct cache *cache __attribute__((tls_model("initial-exec")));
static struct cache *spare_caches;
static pthread_mutex_t spare_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_key_t at_thread_end;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static unsigned class_of(size_t size)
{
	unsigned shift;

	if (size <= 256)
		return size ? (unsigned)((size - 1) / 16) : 0;
	shift = 63 - (unsigned)__builtin_clzl(size - 1); /* size is above 2^shift and at most twice that */
	return 16 + (shift - 8) * 8 + (unsigned)((size - 1) >> (shift - 3) & 7);
}

static size_t class_size(unsigned class)
{
	const unsigned shift = 8 + (class - 16) / 8;

	return class < 16 ? (class + 1) * 16 : ((size_t)1 << shift) + ((class - 16) % 8 + 1) * ((size_t)1 << (shift - 3));
}

/* Whole pages for some pieces of that size, with the least loss at the end. */
static size_t span_size(size_t size)
{
	const size_t pieces = size <= 2048 ? 8 : size <= 16384 ? 4 : 2, least = (pieces * size + PAGE - 1) & ~(PAGE - 1);
	size_t best = least;

	for (size_t span = least; span < 2 * least; span += PAGE)
		if (span % size * best < best % size * span) /* span % size / span < best % size / best */
			best = span;
	return best;
}

static void put_back(struct list *list, struct free_piece *piece)
{
	piece->next = list->free;
	list->free = piece;
}

/* All but so many of what this thread keeps of a class, for the others. */
static void flush(unsigned class, unsigned left)
{
	struct list *const list = &cache->lists[class];

	pthread_mutex_lock(&list->lock);
	while (cache->count[class] > left)
		put_back(list, cache->pieces[class][--cache->count[class]]);
	pthread_mutex_unlock(&list->lock);
}

/* A thread ends: its pieces go to the others. */
static void give_back(void *unused)
{
	(void)unused;
	for (unsigned class = 0; class < CLASSES; class++)
		flush(class, 0);
	pthread_mutex_lock(&spare_lock);
	cache->next = spare_caches;
	spare_caches = cache;
	pthread_mutex_unlock(&spare_lock);
	cache = NULL;
}

/* One that a thread had which has ended, or some more. */
static struct cache *take_cache(void)
{
	const size_t some = 7;
	struct cache *taken;

	pthread_mutex_lock(&spare_lock);
	if (!spare_caches) {
		struct cache *const fresh =
			mmap(NULL, some * sizeof *fresh, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		for (size_t i = 0; fresh != MAP_FAILED && i < some; i++) {
			fresh[i].next = spare_caches;
			spare_caches = &fresh[i];
		}
	}
	taken = spare_caches;
	if (taken) {
		static unsigned turn;

		spare_caches = taken->next;
		taken->lists = lists + turn++ % SHARDS * CLASSES;
	}
	pthread_mutex_unlock(&spare_lock);
	return taken;
}

static void start_lists(void)
{
	for (unsigned i = 0; i < SHARDS * CLASSES; i++)
		pthread_mutex_init(&lists[i].lock, NULL);
}

static void start(void)
{
	pthread_key_create(&at_thread_end, give_back);
	start_lists();
	for (unsigned i = 0; i < CLASSES; i++) {
		struct class *const class = &classes[i];
		const size_t size = class_size(i);

		class->size = size;
		class->span = span_size(size);
		class->kept = size * KEPT <= KEPT_BYTES ? KEPT : size <= KEPT_BYTES ? (unsigned)(KEPT_BYTES / size) : 1;
	}
}

/* 0 where this thread cannot have a cache. */
static int get_ready(void)
{
	ensure_ready();
	pthread_once(&once, start);
	cache = take_cache();
	if (cache)
		pthread_setspecific(at_thread_end, cache);
	return cache != NULL;
}

/* Up to half of what this thread keeps, from a list that is locked; how many. */
static unsigned take_from(struct list *list, unsigned class)
{
	const unsigned wanted = (classes[class].kept + 1) / 2;
	unsigned got = 0;

	while (list->free && got < wanted) {
		struct free_piece *piece = list->free;

		list->free = piece->next;
		piece->next = NULL;
		cache->pieces[class][got++] = piece;
	}
	cache->count[class] = (unsigned char)got;
	return got;
}

/* What others have; those that are at it are waited for only if nothing else is left. */
static unsigned take_from_others(unsigned class, int wait)
{
	for (unsigned i = 0; i < SHARDS; i++) {
		struct list *const list = &lists[i * CLASSES + class];
		unsigned got;

		if (!list->free || (wait ? pthread_mutex_lock(&list->lock) : pthread_mutex_trylock(&list->lock)))
			continue;
		got = take_from(list, class);
		pthread_mutex_unlock(&list->lock);
		if (got)
			return got;
	}
	return 0;
}

/* A fresh span, cut up. */
static unsigned take_fresh(struct list *list, unsigned class)
{
	const size_t size = classes[class].size, whole = classes[class].span;
	char *const span = span_take(whole, (uint8_t)(class + 1));

	for (size_t at = span ? whole / size : 0; at-- > 0;)
		put_back(list, (void *)(span + at * size));
	return take_from(list, class);
}

/* Pieces for this thread; 0 where there is no more memory. */
static unsigned refill(unsigned class)
{
	struct list *const list = &cache->lists[class];
	unsigned got;

	pthread_mutex_lock(&list->lock);
	got = take_from(list, class);
	pthread_mutex_unlock(&list->lock);
	if (got || (got = take_from_others(class, 0)))
		return got;
	pthread_mutex_lock(&list->lock);
	got = take_fresh(list, class);
	pthread_mutex_unlock(&list->lock);
	return got ? got : take_from_others(class, 1);
}

static void *alloc_large(size_t size)
{
	char *start;

	if (size > secretfs_range)
		return NULL;
	start = area_map((size + 4095) & ~(size_t)4095);
	if (start)
		*kind_of(start) = LARGE;
	return start;
}

void *heap_alloc(size_t size)
{
	unsigned class;

	if (!cache && !get_ready())
		return NULL;
	if (size > LARGEST)
		return alloc_large(size);
	class = class_of(size);
	if (!cache->count[class] && !refill(class))
		return NULL;
	return cache->pieces[class][--cache->count[class]];
}

size_t heap_size(const void *memory)
{
	const uint8_t class = *kind_of(memory);

	return class == LARGE ? area_size(memory) : class ? classes[class - 1].size : 0;
}

void heap_free(void *memory)
{
	const uint8_t held = *kind_of(memory);
	const unsigned class = held - 1u;

	if (held == LARGE) {
		*kind_of(memory) = 0;
		area_unmap(memory);
		return;
	}
	if (!held)
		give_up(134, "memory was freed that was never allocated, or twice");
	if (!cache && !get_ready()) {
		explicit_bzero(memory, classes[class].size);
		pthread_mutex_lock(&lists[class].lock);
		put_back(&lists[class], memory);
		pthread_mutex_unlock(&lists[class].lock);
		return;
	}
	if (cache->count[class] && cache->pieces[class][cache->count[class] - 1] == memory)
		give_up(134, "memory was freed that was never allocated, or twice");
	explicit_bzero(memory, classes[class].size);
	if (cache->count[class] >= classes[class].kept)
		flush(class, classes[class].kept / 2);
	cache->pieces[class][cache->count[class]++] = memory;
}

void *heap_realloc(void *memory, size_t size)
{
	const size_t before = heap_size(memory);
	void *moved;

	if (size <= before && (before <= 64 || size > before / 2)) {
		explicit_bzero((char *)memory + size, before - size);
		return memory;
	}
	moved = secret_malloc(size);
	if (!moved)
		return NULL;
	memcpy(moved, memory, before < size ? before : size);
	heap_free(memory);
	return moved;
}

void exhausted(size_t size)
{
	if (config.abort)
		give_up(134, "no more secret memory can be locked, and the policy is not to go on without: %zu bytes were "
			     "wanted; %s", size, cgroup_or_lock_remedy());
	if (!atomic_fetch_add(&secretfs_fallbacks, 1))
		say("no more memory can be locked: keys go into ordinary memory from now on; %s", cgroup_or_lock_remedy());
}

void *secret_malloc(size_t size)
{
	void *memory = heap_alloc(size);

	if (memory || size > secretfs_range)
		return memory; /* what can never be had is the caller's mistake, and no reason to end the program */
	exhausted(size);
	return calloc(1, size);
}

void *secret_realloc(void *memory, size_t size)
{
	size_t before;
	void *moved;

	if (is_ours(memory))
		return heap_realloc(memory, size);
	before = malloc_usable_size(memory); /* from before we came, or from when memory had run out */
	moved = secret_malloc(size);
	if (moved) {
		memcpy(moved, memory, before < size ? before : size);
		explicit_bzero(memory, before);
		free(memory);
	}
	return moved;
}

void secret_free(void *memory)
{
	if (is_ours(memory))
		heap_free(memory);
	else
		free(memory);
}

void heap_reserve(size_t size)
{
	spans_reserve(size);
}

size_t heap_used(void)
{
	return spans_used();
}

void heap_before_fork(void)
{
	pthread_mutex_lock(&spare_lock);
	for (unsigned i = 0; i < SHARDS * CLASSES; i++)
		pthread_mutex_lock(&lists[i].lock);
	spans_before_fork();
}

/* What other threads kept is lost to the child, as those threads are. */
void heap_after_fork(int in_child)
{
	spans_after_fork(in_child);
	if (in_child) {
		pthread_mutex_init(&spare_lock, NULL);
		start_lists();
		return;
	}
	for (unsigned i = 0; i < SHARDS * CLASSES; i++)
		pthread_mutex_unlock(&lists[i].lock);
	pthread_mutex_unlock(&spare_lock);
}
