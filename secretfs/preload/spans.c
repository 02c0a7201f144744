/*
 * Spans are cut from areas, the first of 64 KiB, each next one twice as large up to 2 MiB. What an area has left when it
 * is too little for a span waits for a smaller one.
 */
#define _GNU_SOURCE
#include "spans.h"

#include <pthread.h>
#include <string.h>

#define FIRST_AREA ((size_t)64 << 10)
#define LARGEST_AREA ((size_t)2 << 20)
#define LONGEST_WAIT 1000 /* spans */
#define RESTS 8

uint8_t span_kind[PAGES];

/* The end of an area, never used. */
struct rest {
	char *start, *end;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct rest rests[RESTS];
static size_t area_next = FIRST_AREA;
static size_t used;

static size_t length_of(const struct rest *rest)
{
	return (size_t)(rest->end - rest->start);
}

/* A rest with that much, or NULL. */
static struct rest *find_rest(size_t size)
{
	for (struct rest *rest = rests; rest < rests + RESTS; rest++)
		if (length_of(rest) >= size)
			return rest;
	return NULL;
}

/* Another area in place of the smallest rest: what that had is lost, and nothing else. */
static struct rest *add_area(size_t size)
{
	struct rest *smallest = rests;
	char *const start = area_map(size);

	if (!start)
		return NULL;
	for (struct rest *rest = rests; rest < rests + RESTS; rest++)
		if (length_of(rest) < length_of(smallest))
			smallest = rest;
	*smallest = (struct rest){start, start + size};
	return smallest;
}

/* An area that has room for `size`, of the next size if that can be had. What was refused is not asked for each time. */
static struct rest *grow(size_t size)
{
	static unsigned wait, waited;

	if (waited < wait) {
		waited++;
		return NULL;
	}
	while (area_next < size)
		area_next *= 2;
	for (size_t wanted = area_next; wanted >= size && wanted >= FIRST_AREA; wanted /= 2) {
		struct rest *const rest = add_area(wanted);

		if (!rest)
			continue;
		if (wanted == area_next && area_next < LARGEST_AREA)
			area_next *= 2;
		wait = waited = 0;
		return rest;
	}
	wait = wait < LONGEST_WAIT ? 2 * wait + 1 : wait;
	waited = 0;
	return NULL;
}

char *span_take(size_t size, uint8_t kind)
{
	struct rest *rest;
	char *span = NULL;

	pthread_mutex_lock(&lock);
	rest = find_rest(size);
	if (!rest)
		rest = grow(size);
	if (rest) {
		span = rest->start;
		rest->start += size;
		used += size;
		memset(kind_of(span), kind, size / PAGE);
	}
	pthread_mutex_unlock(&lock);
	return span;
}

void spans_reserve(size_t size)
{
	pthread_mutex_lock(&lock);
	while (size >= FIRST_AREA && !find_rest(size) && !add_area(size))
		size /= 2;
	pthread_mutex_unlock(&lock);
}

size_t spans_used(void)
{
	size_t bytes;

	pthread_mutex_lock(&lock);
	bytes = used;
	pthread_mutex_unlock(&lock);
	return bytes;
}

void spans_before_fork(void)
{
	pthread_mutex_lock(&lock);
}

/* A child has its parent's areas up to what was used of them, and begins with small ones again. */
void spans_trim(void)
{
	if (areas_are_sealed())
		return; /* there will be no others */
	for (struct rest *rest = rests; rest < rests + RESTS; rest++)
		if (length_of(rest))
			area_trim(rest->start, rest->end);
	memset(rests, 0, sizeof rests);
	area_next = FIRST_AREA;
}

void spans_after_fork(int in_child)
{
	if (in_child)
		pthread_mutex_init(&lock, NULL);
	else
		pthread_mutex_unlock(&lock);
}
