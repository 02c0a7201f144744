/*
 * The client of the benchmarks: runs operations on a mounted directory and prints their rate and latency as JSON.
 *
 *     client [-d] [-w] [-m MILLISECONDS] DIR OPERATION:COUNT...
 *
 *     w<size>  r<size>          pwrite, pread of <size> bytes at rotating offsets of an open file of 4 MiB
 *     orc      cwcu             open + read 4 KiB + close; create + write 4 KiB + close + unlink
 *     create   lookup  unlink   of COUNT files, one after the other (by name, empty files)
 *     fill                      like create, and write 64 bytes into each
 *
 * -d  O_DIRECT, for file systems that would answer from the page cache.
 * -w  print "ready" and wait for a line on standard input before the first operation.
 * -m  end an operation after that many milliseconds even if its count is not reached.
 */
#define _GNU_SOURCE

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define SPAN (4 << 20)
#define LARGEST (1 << 20)
#define SMALL 4096

static char *buffer;
static int flags; /* of every open: O_DIRECT or 0 */
static int file = -1;
static char path[4096], other[4096], extra[4096];
static const char *directory;

static _Noreturn void fail(const char *what)
{
	fprintf(stderr, "client: %s: %s\n", what, strerror(errno));
	exit(1);
}

static uint64_t clock_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int open_or_fail(const char *name, int how)
{
	const int fd = open(name, how | flags | O_CLOEXEC, 0600);

	if (fd < 0)
		fail(name);
	return fd;
}

static void write_all(int fd, size_t size, off_t offset)
{
	if (pwrite(fd, buffer, size, offset) != (ssize_t)size)
		fail("write");
}

static void read_all(int fd, size_t size, off_t offset)
{
	if (pread(fd, buffer, size, offset) != (ssize_t)size)
		fail("read");
}

static void do_write(size_t size, uint64_t i)
{
	write_all(file, size, (off_t)(i * size % SPAN));
}

static void do_read(size_t size, uint64_t i)
{
	read_all(file, size, (off_t)(i * size % SPAN));
}

static void do_open(size_t size, uint64_t i)
{
	const int fd = open_or_fail(other, O_RDONLY);

	(void)i;
	read_all(fd, size, 0);
	close(fd);
}

static void do_create(size_t size, uint64_t i)
{
	const int fd = open_or_fail(extra, O_RDWR | O_CREAT | O_EXCL);

	(void)i;
	write_all(fd, size, 0);
	close(fd);
	if (unlink(extra))
		fail("unlink");
}

static const char *numbered(uint64_t i)
{
	static char name[4200];

	snprintf(name, sizeof name, "%s/file-%" PRIu64, directory, i);
	return name;
}

static void do_grow(size_t size, uint64_t i)
{
	const int fd = open_or_fail(numbered(i), O_RDWR | O_CREAT | O_EXCL);

	if (size)
		write_all(fd, size, 0);
	close(fd);
}

static void do_lookup(size_t size, uint64_t i)
{
	struct stat result;

	(void)size;
	if (stat(numbered(i), &result))
		fail("stat");
}

static void do_remove(size_t size, uint64_t i)
{
	(void)size;
	if (unlink(numbered(i)))
		fail("unlink");
}

static int by_value(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

static void run(const char *text, uint64_t limit, int first)
{
	void (*operation)(size_t size, uint64_t i);
	const char *colon = strchr(text, ':');
	const uint64_t count = colon ? strtoull(colon + 1, NULL, 10) : 0;
	const int length = colon ? (int)(colon - text) : 0;
	uint64_t *times = calloc(count + 1, sizeof *times);
	uint64_t start, before, end, i, warm;
	size_t size = SMALL;

	if (!count || !times)
		fail(text);
	warm = count / 10 < 200 ? count / 10 : 200;
	if (*text == 'w' || *text == 'r') {
		size = strtoul(text + 1, NULL, 10);
		operation = *text == 'w' ? do_write : do_read;
		if (!size || size > LARGEST || SPAN % size)
			fail(text);
	} else if (!strncmp(text, "orc:", 4)) {
		operation = do_open;
	} else if (!strncmp(text, "cwcu:", 5)) {
		operation = do_create;
	} else {
		warm = 0;
		size = *text == 'f' ? 64 : 0;
		operation = *text == 'c' || *text == 'f' ? do_grow : *text == 'l' ? do_lookup : do_remove;
	}
	for (i = 0; i < warm; i++)
		operation(size, i);
	start = before = end = clock_ns();
	for (i = 0; i < count && (!limit || end - start < limit); i++) {
		operation(size, i);
		end = clock_ns();
		times[i] = end - before;
		before = end;
	}
	qsort(times, i, sizeof *times, by_value);
	printf("%s\"%.*s\": {\"count\": %" PRIu64 ", \"start\": %" PRIu64 ", \"end\": %" PRIu64
	       ", \"rate\": %.1f, \"p50\": %.2f, \"p99\": %.2f, \"max\": %.2f}",
	       first ? "{" : ", ", length, text, i, start, end, (double)i * 1e9 / (double)(end - start),
	       (double)times[i / 2] / 1e3, (double)times[i * 99 / 100] / 1e3, (double)times[i - 1] / 1e3);
	free(times);
}

int main(int argc, char *argv[])
{
	uint64_t limit = 0;
	int option, wait = 0, data = 0, i;

	while ((option = getopt(argc, argv, "dwm:")) != -1) {
		if (option == 'd')
			flags = O_DIRECT;
		else if (option == 'w')
			wait = 1;
		else if (option == 'm')
			limit = strtoull(optarg, NULL, 10) * 1000000u;
		else
			return 2;
	}
	if (argc - optind < 2)
		return 2;
	directory = argv[optind];
	snprintf(path, sizeof path, "%s/open-%d", directory, (int)getpid());
	snprintf(other, sizeof other, "%s/small-%d", directory, (int)getpid());
	snprintf(extra, sizeof extra, "%s/new-%d", directory, (int)getpid());
	if (posix_memalign((void **)&buffer, 4096, LARGEST))
		fail("memory");
	memset(buffer, 0x5a, LARGEST);
	for (i = optind + 1; i < argc; i++)
		data |= strchr("wr", argv[i][0]) != NULL || argv[i][0] == 'o';
	if (data) { /* fresh memory is slow: have it before the clock runs */
		file = open_or_fail(path, O_RDWR | O_CREAT | O_EXCL);
		for (off_t at = 0; at < SPAN; at += LARGEST)
			write_all(file, LARGEST, at);
		i = open_or_fail(other, O_RDWR | O_CREAT | O_EXCL);
		write_all(i, SMALL, 0);
		close(i);
	}
	if (wait) {
		puts("ready");
		fflush(stdout);
		getchar();
	}
	for (i = optind + 1; i < argc; i++)
		run(argv[i], limit, i == optind + 1);
	puts("}");
	if (data) {
		close(file);
		unlink(path);
		unlink(other);
	}
	return 0;
}
