/*
 * A program that handles a secret and leaves no copy of its own behind: what is found afterwards was left by others.
 *
 *     client WHAT KEY HEX PATH [MORE]
 *
 * HEX is the secret, each byte XORed with KEY. It is uncovered in locked memory, used, and wiped. Compiled without vector
 * registers and without the C library's copying functions, so that no register carries it into the kernel.
 *
 * WHAT   write      make a file PATH of MORE bytes (or PAGES pages) with the secret in it, and read it back
 *        map        PATH is such a file of PAGES pages: map it privately and look at the secret; `mapped`
 *        send       sendfile(2) all of PATH to /dev/null; `sent`, with the file still open
 *        hold       keep the secret in the locked memory; `held`
 *        watch      (no secret) PATH is a file that others will map; `watching`
 *        xattr      set the attribute MORE of PATH to the secret and read it back
 *        symlink    make a link PATH whose target is the secret, and read it
 *        name       make a file in the directory PATH whose name is the secret, find it, rename it and back
 *        unname     remove that file
 *
 * Those that print a word then wait for the end of their input, holding what they hold. `watch` prints for each byte of
 * input how many pages of its file are in the page cache. Its mapping is made first because mapping a file anew empties
 * its cache.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 3, OFFSET = PAGE + 100, LONGEST = 256 };

static const char *path;
/* A file's bytes, written and read back. The memory is locked. */
static unsigned char *data, *back;
static size_t size = PAGES * PAGE;
/* Where in the file the secret is, and its bytes. */
static size_t at, length;

static void put(const char *line)
{
	if (write(STDOUT_FILENO, line, strlen(line)) < 0)
		err(1, "output");
}

static int next_input(void)
{
	char byte;

	return read(STDIN_FILENO, &byte, 1) == 1;
}

static void wipe(void)
{
	for (volatile unsigned char *byte = data; byte < data + 2 * size; byte++)
		*byte = 0;
}

static void uncover(const char *key, const char *hex, unsigned char *to)
{
	const unsigned char mask = (unsigned char)strtoul(key, NULL, 16);
	volatile unsigned char *out = to;

	length = strlen(hex) / 2;
	if (!length || length > LONGEST)
		errx(2, "a secret of 1 to %d bytes", LONGEST);
	for (size_t i = 0; i < length; i++) {
		char digits[3] = {hex[2 * i], hex[2 * i + 1], 0};

		out[i] = (unsigned char)strtoul(digits, NULL, 16) ^ mask;
	}
}

static void must_be_equal(const volatile unsigned char *one, const volatile unsigned char *other)
{
	for (size_t i = 0; i < length; i++)
		if (one[i] != other[i])
			errx(1, "what was read is not what was written");
}

static int open_file(int flags)
{
	const int fd = open(path, flags | O_CLOEXEC, 0600);

	if (fd < 0)
		err(1, "%s", path);
	return fd;
}

static void write_file(void)
{
	const int fd = open_file(O_RDWR | O_CREAT | O_EXCL);

	if (write(fd, data, size) != (ssize_t)size || pread(fd, back, size, 0) != (ssize_t)size)
		err(1, "%s", path);
	must_be_equal(data + at, back + at);
	close(fd);
}

static void map_file(void)
{
	const int fd = open_file(O_RDONLY);
	const unsigned char *mapped = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);

	if (mapped == MAP_FAILED)
		err(1, "%s", path);
	close(fd);
	must_be_equal(data + at, mapped + at);
	wipe();
	put("mapped\n");
	while (next_input())
		;
}

static void send_file(void)
{
	const int fd = open_file(O_RDONLY), null = open("/dev/null", O_WRONLY | O_CLOEXEC);

	for (ssize_t sent; (sent = sendfile(null, fd, NULL, size));)
		if (sent < 0)
			err(1, "%s", path);
	wipe();
	put("sent\n");
	while (next_input())
		;
}

static void set_attribute(const char *name)
{
	if (setxattr(path, name, data, length, 0) || getxattr(path, name, back, size) != (ssize_t)length)
		err(1, "%s", path);
	must_be_equal(data, back);
}

static void make_link(void)
{
	if (symlink((const char *)data, path) || readlink(path, (char *)back, size) != (ssize_t)length)
		err(1, "%s", path);
	must_be_equal(data, back);
}

static void use_name(void)
{
	struct stat status;
	int fd;

	if (chdir(path))
		err(1, "%s", path);
	fd = open((const char *)data, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || stat((const char *)data, &status) || rename((const char *)data, "x") || rename("x", (const char *)data))
		err(1, "a file in %s", path);
}

static void remove_name(void)
{
	if (chdir(path) || unlink((const char *)data))
		err(1, "a file in %s", path);
}

static void hold(void)
{
	put("held\n");
	while (next_input())
		;
}

static void watch(void)
{
	const int fd = open_file(O_RDONLY);
	void *mapped = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
	unsigned char states[PAGES];

	if (mapped == MAP_FAILED)
		err(1, "%s", path);
	put("watching\n");
	while (next_input()) {
		int resident = 0;
		char line[32];

		if (mincore(mapped, size, states))
			err(1, "mincore");
		for (size_t i = 0; i < sizeof states; i++)
			resident += states[i] & 1;
		snprintf(line, sizeof line, "%d\n", resident);
		put(line);
	}
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "", *more = argc > 5 ? argv[5] : NULL;

	if (argc < 5)
		errx(2, "usage: client WHAT KEY HEX PATH [MORE]");
	path = argv[4];
	if (!strcmp(what, "write") && more)
		size = strtoul(more, NULL, 10);
	if (!strcmp(what, "write") || !strcmp(what, "map"))
		at = size > OFFSET + LONGEST ? OFFSET : 0;
	data = mmap(NULL, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (data == MAP_FAILED || mlock(data, 2 * size))
		err(1, "memory");
	back = data + size;
	if (strcmp(what, "watch"))
		uncover(argv[2], argv[3], data + at);
	if (!strcmp(what, "write"))
		write_file();
	else if (!strcmp(what, "map"))
		map_file();
	else if (!strcmp(what, "send"))
		send_file();
	else if (!strcmp(what, "hold"))
		hold();
	else if (!strcmp(what, "watch"))
		watch();
	else if (!strcmp(what, "xattr") && more)
		set_attribute(more);
	else if (!strcmp(what, "symlink"))
		make_link();
	else if (!strcmp(what, "name"))
		use_name();
	else if (!strcmp(what, "unname"))
		remove_name();
	else
		errx(2, "%s: no such thing to do", what);
	wipe();
	return 0;
}
