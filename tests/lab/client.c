/*
 * A program that handles a secret and leaves no copy of its own behind: what is found afterwards was left by others.
 *
 *     client WHAT KEY HEX PATH [NAME]
 *
 * HEX is the secret, each byte XORed with KEY. It is uncovered in one locked page, used, and wiped. Compiled without
 * vector registers and without the C library's copying functions, so that no register carries it into the kernel.
 *
 * WHAT   write      PATH is a file; the secret is written at offset AT of SIZE bytes, and read back
 *        map        PATH is such a file: map it privately and look at the secret; `mapped`, and go at the end of input
 *        send       sendfile(2) all of PATH to /dev/null, with the file open until the end of input
 *        xattr      set the attribute NAME of PATH to the secret and read it back
 *        symlink    make a link PATH whose target is the secret, and read it
 *        name       make a file in the directory PATH whose name is the secret, find it, and move it to another name
 *                   and back;   unname    remove it
 *        hold       keep the secret in the locked page: `held`, and wipe it at the end of input
 *        resident   PATH is a file that others map: print how many of its pages are in the page cache, once per byte of
 *                   input; made before they are, because mapping a file anew empties its cache
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

enum { PAGE = 4096, SIZE = 3 * PAGE, AT = PAGE + 100, LONGEST = 256 };

/* What is written, and what is read back: locked. */
static unsigned char *page, *back;
static size_t length;
static const char *path;

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
	for (volatile unsigned char *byte = page; byte < page + 2 * SIZE; byte++)
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

	if (write(fd, page, SIZE) != SIZE || pread(fd, back, SIZE, 0) != SIZE)
		err(1, "%s", path);
	must_be_equal(page + AT, back + AT);
	close(fd);
}

static void map_file(void)
{
	const int fd = open_file(O_RDONLY);
	const unsigned char *mapped = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE, fd, 0);

	if (mapped == MAP_FAILED)
		err(1, "%s", path);
	close(fd);
	must_be_equal(page + AT, mapped + AT);
	wipe();
	put("mapped\n");
	while (next_input())
		;
}

static void send_file(void)
{
	const int fd = open_file(O_RDONLY), null = open("/dev/null", O_WRONLY | O_CLOEXEC);

	for (ssize_t sent; (sent = sendfile(null, fd, NULL, SIZE));)
		if (sent < 0)
			err(1, "%s", path);
	wipe();
	put("sent\n");
	while (next_input())
		;
}

static void set_attribute(const char *name)
{
	if (setxattr(path, name, page, length, 0) || getxattr(path, name, back, SIZE) != (ssize_t)length)
		err(1, "%s", path);
	must_be_equal(page, back);
}

static void make_link(void)
{
	if (symlink((const char *)page, path) || readlink(path, (char *)back, SIZE) != (ssize_t)length)
		err(1, "%s", path);
	must_be_equal(page, back);
}

static void use_name(void)
{
	struct stat status;
	int fd;

	if (chdir(path))
		err(1, "%s", path);
	fd = open((const char *)page, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0 || stat((const char *)page, &status) || rename((const char *)page, "x") || rename("x", (const char *)page))
		err(1, "a file in %s", path);
}

static void remove_name(void)
{
	if (chdir(path) || unlink((const char *)page))
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
	void *mapped = mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE, fd, 0);
	unsigned char states[SIZE / PAGE];

	if (mapped == MAP_FAILED)
		err(1, "%s", path);
	put("watching\n");
	while (next_input()) {
		int resident = 0;
		char line[32];

		if (mincore(mapped, SIZE, states))
			err(1, "mincore");
		for (size_t i = 0; i < sizeof states; i++)
			resident += states[i] & 1;
		snprintf(line, sizeof line, "%d\n", resident);
		put(line);
	}
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (argc < 5)
		errx(2, "usage: client WHAT KEY HEX PATH [NAME]");
	path = argv[4];
	page = mmap(NULL, 2 * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED || mlock(page, 2 * SIZE))
		err(1, "memory");
	back = page + SIZE;
	uncover(argv[2], argv[3], page + (!strcmp(what, "write") || !strcmp(what, "map") ? AT : 0));
	if (!strcmp(what, "write"))
		write_file();
	else if (!strcmp(what, "map"))
		map_file();
	else if (!strcmp(what, "send"))
		send_file();
	else if (!strcmp(what, "xattr") && argc > 5)
		set_attribute(argv[5]);
	else if (!strcmp(what, "symlink"))
		make_link();
	else if (!strcmp(what, "name"))
		use_name();
	else if (!strcmp(what, "unname"))
		remove_name();
	else if (!strcmp(what, "hold"))
		hold();
	else if (!strcmp(what, "resident"))
		watch();
	else
		errx(2, "%s: no such thing to do", what);
	wipe();
	return 0;
}
