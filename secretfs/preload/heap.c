/*
 * A heap in secret memory: size classes in spans of 64 KiB, and what is larger in areas of its own.
 *
 * Every thread keeps a few free pieces of each class; the rest lies in one list per class, with a lock each. A piece is
 * wiped when it is freed, so every free piece is zero but for the link of the list it is in: what is allocated needs
 * no clearing. What lies where is known from a table of spans outside of the secret memory.
 */
#define _GNU_SOURCE
#include "heap.h"

#include "cgroup.h"
#include "config.h"
#include "memory.h"

#include <malloc.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define CLASSES 40 /* 16, 32, … 128, then four to each doubling: 160, 192, 224, 256, … 32768 */
#define LARGEST 32768
#define KEPT 16 /* pieces of a class that a thread keeps */
#define KEPT_BYTES 16384
#define LARGE 255
#define SPANS ((size_t)1 << 18) /* of 16 GiB */
#define FIRST_AREA ((size_t)64 << 10)
#define LARGEST_AREA ((size_t)2 << 20)
#define LONGEST_WAIT 1000 /* allocations */

struct free_piece {
	struct free_piece *next;
};

struct class {
	pthread_mutex_t lock;
	struct free_piece *free;
};

struct cache {
	unsigned char count[CLASSES];
	char registered;
	void *pieces[CLASSES][KEPT];
};

static struct class classes[CLASSES];
static uint8_t span_class[SPANS]; /* a class and one, or LARGE; 0: nothing of the heap's */
static __thread struct cache cache __attribute__((tls_model("initial-exec")));
static pthread_key_t at_thread_end;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static pthread_mutex_t span_lock = PTHREAD_MUTEX_INITIALIZER;
static char *fresh, *fresh_end; /* spans of the newest area that were never used */
static size_t area_next = FIRST_AREA;
static size_t used_spans;

static unsigned class_of(size_t size)
{
	unsigned shift;

	if (size <= 128)
		return size ? (unsigned)((size - 1) / 16) : 0;
	shift = 63 - (unsigned)__builtin_clzl(size - 1); /* size is above 2^shift and at most twice that */
	return 8 + (shift - 7) * 4 + (unsigned)((size - 1) >> (shift - 2) & 3);
}

static size_t class_size(unsigned class)
{
	const unsigned shift = 7 + (class - 8) / 4;

	return class < 8 ? (class + 1) * 16 : ((size_t)1 << shift) + ((class - 8) % 4 + 1) * ((size_t)1 << (shift - 2));
}

static unsigned kept(unsigned class)
{
	const size_t count = KEPT_BYTES / class_size(class);

	return count >= KEPT ? KEPT : count ? (unsigned)count : 1;
}

/* A thread ends: its pieces go to the others. */
static void give_back(void *unused)
{
	(void)unused;
	for (unsigned class = 0; class < CLASSES; class++) {
		pthread_mutex_lock(&classes[class].lock);
		while (cache.count[class]) {
			struct free_piece *piece = cache.pieces[class][--cache.count[class]];

			piece->next = classes[class].free;
			classes[class].free = piece;
		}
		pthread_mutex_unlock(&classes[class].lock);
	}
	cache.registered = 0;
}

static void start(void)
{
	pthread_key_create(&at_thread_end, give_back);
	for (unsigned class = 0; class < CLASSES; class++)
		pthread_mutex_init(&classes[class].lock, NULL);
}

static void get_ready(void)
{
	ensure_ready();
	pthread_once(&once, start);
	pthread_setspecific(at_thread_end, &cache);
	cache.registered = 1;
}

/* Another area, of twice the size of the last one if that can be had. What was refused is not asked for each time. */
static int grow(void)
{
	static unsigned wait, waited;

	if (waited < wait) {
		waited++;
		return -1;
	}
	for (size_t size = area_next; size >= FIRST_AREA; size /= 2) {
		fresh = area_map(size);
		if (fresh) {
			fresh_end = fresh + size;
			if (size == area_next && area_next < LARGEST_AREA)
				area_next *= 2;
			wait = waited = 0;
			return 0;
		}
	}
	fresh = fresh_end = NULL;
	wait = wait < LONGEST_WAIT ? 2 * wait + 1 : wait;
	waited = 0;
	return -1;
}

void heap_reserve(size_t size)
{
	pthread_mutex_lock(&span_lock);
	if ((size_t)(fresh_end - fresh) < size) {
		if (area_next < size)
			area_next = size;
		grow(); /* what was left of the last area is lost, and nothing else: it was never used */
	}
	pthread_mutex_unlock(&span_lock);
}

static char *take_span(unsigned class)
{
	char *span = NULL;

	pthread_mutex_lock(&span_lock);
	if (fresh < fresh_end || !grow()) {
		span = fresh;
		fresh += SPAN;
		used_spans++;
		span_class[span_of(span)] = (uint8_t)(class + 1);
	}
	pthread_mutex_unlock(&span_lock);
	return span;
}

/* Pieces for this thread; 0 where there is no more memory. */
static unsigned refill(unsigned class)
{
	struct class *const group = &classes[class];
	const size_t size = class_size(class);
	const unsigned wanted = (kept(class) + 1) / 2;
	unsigned got = 0;

	pthread_mutex_lock(&group->lock);
	if (!group->free) {
		char *const span = take_span(class);

		for (size_t at = span ? SPAN / size : 0; at-- > 0;) {
			struct free_piece *piece = (void *)(span + at * size);

			piece->next = group->free;
			group->free = piece;
		}
	}
	while (group->free && got < wanted) {
		struct free_piece *piece = group->free;

		group->free = piece->next;
		piece->next = NULL;
		cache.pieces[class][got++] = piece;
	}
	pthread_mutex_unlock(&group->lock);
	cache.count[class] = (unsigned char)got;
	return got;
}

/* Half of what this thread keeps of a class, for the others. */
static void flush(unsigned class)
{
	const unsigned left = kept(class) / 2;

	pthread_mutex_lock(&classes[class].lock);
	while (cache.count[class] > left) {
		struct free_piece *piece = cache.pieces[class][--cache.count[class]];

		piece->next = classes[class].free;
		classes[class].free = piece;
	}
	pthread_mutex_unlock(&classes[class].lock);
}

static void *alloc_large(size_t size)
{
	char *start;

	if (size > (size_t)1 << 40)
		return NULL;
	start = area_map((size + 4095) & ~(size_t)4095);
	if (start)
		span_class[span_of(start)] = LARGE;
	return start;
}

void *heap_alloc(size_t size)
{
	unsigned class;

	if (!cache.registered)
		get_ready();
	if (size > LARGEST)
		return alloc_large(size);
	class = class_of(size);
	if (!cache.count[class] && !refill(class))
		return NULL;
	return cache.pieces[class][--cache.count[class]];
}

size_t heap_size(const void *memory)
{
	const uint8_t class = span_class[span_of(memory)];

	return class == LARGE ? area_size(memory) : class ? class_size(class - 1u) : 0;
}

void heap_free(void *memory)
{
	const uint8_t held = span_class[span_of(memory)];
	const unsigned class = held - 1u;

	if (held == LARGE) {
		span_class[span_of(memory)] = 0;
		area_unmap(memory);
		return;
	}
	if (!held)
		give_up(134, "memory was freed that was never allocated, or twice");
	if (!cache.registered)
		get_ready();
	explicit_bzero(memory, class_size(class));
	if (cache.count[class] >= kept(class))
		flush(class);
	cache.pieces[class][cache.count[class]++] = memory;
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

	if (memory)
		return memory;
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

size_t heap_used(void)
{
	size_t spans;

	pthread_mutex_lock(&span_lock);
	spans = used_spans;
	pthread_mutex_unlock(&span_lock);
	return spans * SPAN;
}

void heap_before_fork(void)
{
	for (unsigned class = 0; class < CLASSES; class++)
		pthread_mutex_lock(&classes[class].lock);
	pthread_mutex_lock(&span_lock);
}

/* What other threads kept is lost to the child, as those threads are. */
void heap_after_fork(int in_child)
{
	if (in_child)
		pthread_mutex_init(&span_lock, NULL);
	else
		pthread_mutex_unlock(&span_lock);
	for (unsigned class = 0; class < CLASSES; class++) {
		if (in_child)
			pthread_mutex_init(&classes[class].lock, NULL);
		else
			pthread_mutex_unlock(&classes[class].lock);
	}
}
