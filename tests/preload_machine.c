/*
 * Does to the preload library's heap what its standard input says, and compares with a model: the bytes that each piece
 * was filled with. A line is OPERATION THREAD SLOT SIZE; each operation is done by that thread while the others wait.
 *
 * a  allocate (what is there already is freed)    m  the same from malloc(3): memory that is foreign to the heap
 * r  resize                                       f  free, and look whether it was wiped
 * k  fork: the child does what is left            e  that thread ends, and another takes its place
 *
 * An argument is the lock limit in bytes, as an ordinary user has it.
 */
#define _GNU_SOURCE
#include "api.h"
#include "config.h"
#include "files.h"
#include "foreign.h"
#include "heap.h"
#include "memory.h"
#include "toolkits.h"

#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREADS 3
#define SLOTS_ 16
#define LARGEST 32768
#define NOBODY 65534
#define CHECK(what, text) ((what) ? (void)0 : fail(text))

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

struct command {
	char operation;
	unsigned thread, slot;
	size_t size;
};

static struct piece pieces[SLOTS_];
static struct command command;
static pthread_t threads[THREADS];
static sem_t begin[THREADS], end;
static unsigned char fill;

static void fail(const char *text)
{
	fprintf(stderr, "%c %u %u %zu: %s\n", command.operation, command.thread, command.slot, command.size, text);
	abort();
}

static void check(const struct piece *piece, size_t size)
{
	for (size_t at = 0; at < size; at++)
		CHECK(piece->start[at] == piece->fill, "other bytes than those that were written");
}

static void write_to(struct piece *piece)
{
	piece->fill = ++fill;
	memset(piece->start, fill, piece->size);
}

static void release(struct piece *piece)
{
	unsigned char *const start = piece->start;
	const int stays = start && is_ours(start) && heap_size(start) <= LARGEST;

	if (!start)
		return;
	check(piece, piece->size);
	secret_free(start);
	for (size_t at = sizeof(void *); stays && at < piece->size; at++)
		CHECK(start[at] == 0, "freed and not wiped");
	piece->start = NULL;
}

static void allocate(struct piece *piece, int foreign)
{
	release(piece);
	piece->start = foreign ? malloc(command.size) : secret_malloc(command.size);
	piece->size = command.size;
	CHECK(piece->start, "no memory");
	for (size_t at = 0; !foreign && at < piece->size; at++)
		CHECK(piece->start[at] == 0, "allocated and not zero");
	write_to(piece);
}

static void resize(struct piece *piece)
{
	const size_t before = piece->size;

	if (!piece->start)
		return;
	piece->start = secret_realloc(piece->start, command.size);
	CHECK(piece->start, "no memory");
	piece->size = command.size;
	check(piece, before < piece->size ? before : piece->size);
	write_to(piece);
}

static void *work(void *data)
{
	const size_t self = (size_t)data;

	sem_post(&end); /* AddressSanitizer's part of a thread that begins must not be forked in the middle */
	for (;;) {
		struct piece *piece;

		sem_wait(&begin[self]);
		piece = &pieces[command.slot];
		if (command.operation == 'e')
			return NULL;
		if (command.operation == 'a' || command.operation == 'm')
			allocate(piece, command.operation == 'm');
		else if (command.operation == 'r')
			resize(piece);
		else
			release(piece);
		sem_post(&end);
	}
}

static void start_thread(size_t number)
{
	sem_init(&begin[number], 0, 0);
	CHECK(!pthread_create(&threads[number], NULL, work, (void *)number), "no thread");
	sem_wait(&end);
}

static void start_threads(void)
{
	sem_init(&end, 0, 0);
	for (size_t i = 0; i < THREADS; i++)
		start_thread(i);
}

/* The child goes on with what is left to be read; this process ends as the child does. */
static void fork_off(void)
{
	const pid_t pid = fork();
	int status = 0;

	CHECK(pid >= 0, "no process");
	if (!pid) {
		start_threads();
		return;
	}
	waitpid(pid, &status, 0);
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

static void become_ordinary(rlim_t locked)
{
	const struct rlimit limit = {locked, locked};

	CHECK(!setrlimit(RLIMIT_MEMLOCK, &limit) && !setresgid(NOBODY, NOBODY, NOBODY) && !setresuid(NOBODY, NOBODY, NOBODY),
	      "cannot become an ordinary user");
}

int main(int words, char **word)
{
	setvbuf(stdin, NULL, _IONBF, 0); /* a child reads on where its parent was */
	if (words > 1)
		become_ordinary((rlim_t)atol(word[1]));
	ensure_ready();
	start_threads();
	while (scanf(" %c %u %u %zu", &command.operation, &command.thread, &command.slot, &command.size) == 4) {
		if (command.operation == 'k') {
			fork_off();
			continue;
		}
		sem_post(&begin[command.thread]);
		if (command.operation == 'e') {
			pthread_join(threads[command.thread], NULL);
			start_thread(command.thread);
		} else {
			sem_wait(&end);
		}
	}
	for (int i = 0; i < SLOTS_; i++)
		release(&pieces[i]);
	puts("ok");
	fflush(stdout);
	_exit(0);
}
