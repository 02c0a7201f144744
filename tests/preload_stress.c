/*
 * Drives the preload library's heap from several threads, against a model: every piece is filled with a byte of its own
 * and checked when it is resized and freed. In between the process forks; the child checks what it was given, goes on
 * for a while, and ends. Built with sanitizers, together with the library's sources but those that take the place of
 * libc's functions, as sanitizers do themselves.
 */
#include "config.h"
#include "files.h"
#include "foreign.h"
#include "heap.h"
#include "memory.h"
#include "toolkits.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREADS 4
#define PIECES 200
#define FORKS 12

void toolkits_look(void)
{
}

void toolkits_in_child(void)
{
}

void files_in_child(void)
{
}

void foreign_start(void)
{
}

struct piece {
	unsigned char *start, fill;
	size_t size;
};

struct worker {
	unsigned random;
	int steps;
	struct piece pieces[PIECES];
};

static unsigned next(struct worker *worker, unsigned below)
{
	worker->random = worker->random * 1103515245u + 12345u;
	return (worker->random >> 8) % below;
}

static size_t any_size(struct worker *worker)
{
	switch (next(worker, 20)) {
	case 0: return 32000 + next(worker, 2000); /* about the largest class */
	case 1: return 40000 + next(worker, 100000);
	case 2: return 1;
	default: return 1 + next(worker, 1u << (4 + next(worker, 10)));
	}
}

static void check(const struct piece *piece, size_t size)
{
	for (size_t at = 0; at < size; at++)
		if (piece->start[at] != piece->fill) {
			fprintf(stderr, "byte %zu of %zu is %d, not %d\n", at, piece->size, piece->start[at], piece->fill);
			abort();
		}
}

static void fill(struct worker *worker, struct piece *piece)
{
	piece->fill = (unsigned char)(1 + next(worker, 255));
	memset(piece->start, piece->fill, piece->size);
}

static void allocate(struct worker *worker, struct piece *piece)
{
	const struct piece zeros = {.start = secret_malloc(piece->size = any_size(worker)), .size = piece->size};

	check(&zeros, zeros.size);
	piece->start = zeros.start;
	fill(worker, piece);
}

static void resize(struct worker *worker, struct piece *piece)
{
	const size_t before = piece->size;

	piece->size = any_size(worker);
	piece->start = secret_realloc(piece->start, piece->size);
	check(piece, before < piece->size ? before : piece->size);
	fill(worker, piece);
}

static void *work(void *data)
{
	struct worker *const worker = data;

	for (int step = 0; step < worker->steps; step++) {
		struct piece *const piece = &worker->pieces[next(worker, PIECES)];

		if (!piece->start) {
			allocate(worker, piece);
		} else if (next(worker, 3)) {
			check(piece, piece->size);
			secret_free(piece->start);
			piece->start = NULL;
		} else {
			resize(worker, piece);
		}
	}
	return NULL;
}

static void free_all(struct worker *worker)
{
	for (int i = 0; i < PIECES; i++)
		if (worker->pieces[i].start) {
			check(&worker->pieces[i], worker->pieces[i].size);
			secret_free(worker->pieces[i].start);
			worker->pieces[i].start = NULL;
		}
}

/* A child of a process whose other threads are at work: it has what this thread had. */
static void fork_once(struct worker *own)
{
	const pid_t pid = fork();
	int status;

	if (pid < 0)
		exit(3);
	if (!pid) {
		own->steps = 500;
		work(own);
		free_all(own);
		_exit(0);
	}
	if (waitpid(pid, &status, 0) != pid || status) {
		fprintf(stderr, "a child ended with %d\n", status);
		exit(2);
	}
}

static struct worker workers[THREADS + 1];

int main(int count, char **words)
{
	const int steps = count > 1 ? atoi(words[1]) : 10000;
	pthread_t threads[THREADS];

	for (unsigned i = 0; i <= THREADS; i++)
		workers[i] = (struct worker){.random = 1 + 7919 * i, .steps = i ? steps : steps / FORKS};
	ensure_ready();
	for (int i = 0; i < THREADS; i++)
		pthread_create(&threads[i], NULL, work, &workers[i + 1]);
	for (int i = 0; i < FORKS; i++) {
		work(&workers[0]);
		fork_once(&workers[0]);
	}
	for (int i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i <= THREADS; i++)
		free_all(&workers[i]);
	if (atomic_load(&secretfs_fallbacks))
		return 4;
	puts("ok");
	return 0;
}
