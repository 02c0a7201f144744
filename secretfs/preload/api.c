/* The C API of secretfs.h. */
#define _GNU_SOURCE
#include "api.h"

#include "config.h"
#include "heap.h"
#include "memory.h"
#include "secretfs.h"

#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#define MAPPED 1024

API void *secretfs_alloc(size_t size);
API void secretfs_free(void *memory);
API size_t secretfs_size(const void *memory);
API void *secretfs_map(size_t size);
API int secretfs_reveal(void *memory, int write);
API int secretfs_hide(void *memory);
API void secretfs_protection(struct secretfs_protection *report);

struct mapped {
	char *memory; /* what the caller has */
	char *start;  /* of the area */
	size_t size;
	unsigned readers, writers;
};

static struct mapped mapped[MAPPED];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* The entry of that memory, or a free one for NULL. The lock is held. */
static struct mapped *find(const void *memory)
{
	for (int i = 0; i < MAPPED; i++)
		if (mapped[i].memory == memory)
			return &mapped[i];
	return NULL;
}

void api_before_fork(void)
{
	pthread_mutex_lock(&lock);
}

void api_after_fork(int in_child)
{
	if (in_child)
		pthread_mutex_init(&lock, NULL);
	else
		pthread_mutex_unlock(&lock);
}

void *secretfs_alloc(size_t size)
{
	void *memory;

	ensure_ready();
	memory = heap_alloc(size);
	if (!memory)
		errno = ENOMEM;
	return memory;
}

void *secretfs_map(size_t size)
{
	const size_t whole = (size + PAGE - 1) & ~(PAGE - 1);
	struct mapped *entry;
	char *start;

	ensure_ready();
	start = whole ? area_map(whole) : NULL;
	if (!start) {
		errno = ENOMEM;
		return NULL;
	}
	pthread_mutex_lock(&lock);
	entry = find(NULL);
	if (entry)
		*entry = (struct mapped){start + whole - size, start, size, 0, 1};
	pthread_mutex_unlock(&lock);
	if (entry)
		return start + whole - size;
	area_unmap(start);
	errno = ENOMEM;
	return NULL;
}

void secretfs_free(void *memory)
{
	struct mapped *entry;
	char *start = NULL;

	if (!memory)
		return;
	pthread_mutex_lock(&lock);
	entry = find(memory);
	if (entry) {
		start = entry->start;
		*entry = (struct mapped){0};
	}
	pthread_mutex_unlock(&lock);
	if (start)
		area_unmap(start);
	else if (is_ours(memory))
		heap_free(memory);
	else
		give_up(134, "secretfs_free() was given memory that is not from secretfs_alloc() or secretfs_map()");
}

size_t secretfs_size(const void *memory)
{
	const struct mapped *entry;
	size_t size;

	if (!memory || !is_ours(memory))
		return 0;
	pthread_mutex_lock(&lock);
	entry = find(memory);
	size = entry ? entry->size : 0;
	pthread_mutex_unlock(&lock);
	return size ? size : heap_size(memory);
}

/* Open or close windows, and give the pages the rights that all windows together have. */
static int change(void *memory, int readers, int writers)
{
	struct mapped *entry, before;
	int result = -1;

	pthread_mutex_lock(&lock);
	entry = memory ? find(memory) : NULL;
	if (entry && (readers + writers > 0 || entry->readers || entry->writers)) {
		before = *entry;
		if (readers + writers < 0) /* the last that was opened */
			*(entry->writers ? &entry->writers : &entry->readers) -= 1;
		entry->readers += (unsigned)(readers > 0);
		entry->writers += (unsigned)(writers > 0);
		result = area_protect(entry->start, entry->writers ? PROT_READ | PROT_WRITE :
						    entry->readers ? PROT_READ : PROT_NONE);
		if (result)
			*entry = before;
	}
	pthread_mutex_unlock(&lock);
	if (result)
		errno = EINVAL;
	return result;
}

int secretfs_reveal(void *memory, int write)
{
	return change(memory, !write, !!write);
}

int secretfs_hide(void *memory)
{
	return change(memory, -1, 0);
}

void secretfs_protection(struct secretfs_protection *report)
{
	struct totals totals;
	int kernel;

	ensure_ready();
	memory_totals(&totals);
	kernel = totals.kind == KIND_KERNEL;
	*report = (struct secretfs_protection){
		.backend = kernel ? "kernel" : "emulator",
		.off_direct_map = kernel,
		.refuses_pinning = kernel,
		.unswappable = 1,
		.undumpable = 1,
		.cleared_by_kernel = kernel,
		.locked = totals.locked,
		.used = heap_used(),
		.fallbacks = atomic_load(&secretfs_fallbacks),
	};
}
