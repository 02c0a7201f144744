/*
 * Reading files into secret memory, and what stdio keeps of a key file.
 *
 * A file in a secretfs mount is read past the page cache, and the kernel cannot put such a read into secret memory
 * (EFAULT). So reads into our memory that fail that way are repeated through a window: locked memory that is wiped.
 * fread(3) hands larger pieces straight to read(2) inside libc, where nothing can stand in between; what goes into our
 * memory therefore always passes the window. fclose(3) wipes the buffer of what it closes.
 */
#define _GNU_SOURCE
#include "config.h"
#include "files.h"
#include "memory.h"
#include "toolkits.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define WINDOW ((size_t)64 << 10)

API ssize_t read(int fd, void *buffer, size_t size);
API ssize_t pread(int fd, void *buffer, size_t size, off_t offset);
API ssize_t pread64(int fd, void *buffer, size_t size, off64_t offset);
API ssize_t readv(int fd, const struct iovec *parts, int count);
API size_t fread(void *buffer, size_t size, size_t count, FILE *stream);
API size_t (fread_unlocked)(void *buffer, size_t size, size_t count, FILE *stream);
API int fclose(FILE *stream);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *kept;

static char *map_window(void)
{
	char *const window = mmap(NULL, WINDOW, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (window == MAP_FAILED)
		return NULL;
	if (mlock(window, WINDOW)) {
		munmap(window, WINDOW);
		return NULL;
	}
	madvise(window, WINDOW, MADV_DONTDUMP);
	madvise(window, WINDOW, MADV_DONTFORK);
	return window;
}

/* The window, or one more: the other may wait for a pipe that this one is to fill. NULL where none can be locked. */
static char *take_window(void)
{
	if (pthread_mutex_trylock(&lock))
		return map_window();
	if (!kept)
		kept = map_window();
	if (!kept)
		pthread_mutex_unlock(&lock);
	return kept;
}

/* Copy what came to where it is wanted, and leave the window clean. */
static void give_window_back(char *window, void *target, ssize_t got)
{
	const int before = errno;

	if (got > 0) {
		memcpy(target, window, (size_t)got);
		explicit_bzero(window, (size_t)got);
	}
	if (window == kept)
		pthread_mutex_unlock(&lock);
	else
		munmap(window, WINDOW);
	errno = before;
}

void files_in_child(void)
{
	kept = NULL; /* left out of the fork; whoever had it is not there */
	pthread_mutex_init(&lock, NULL);
}

static int refused(ssize_t result, const void *buffer)
{
	return result < 0 && errno == EFAULT && is_ours(buffer);
}

ssize_t read(int fd, void *buffer, size_t size)
{
	static ssize_t (*real)(int, void *, size_t);
	char *window;
	ssize_t got;

	if (!real)
		real = (ssize_t (*)(int, void *, size_t))next_function("read");
	got = real(fd, buffer, size);
	if (refused(got, buffer) && (window = take_window())) {
		got = real(fd, window, size < WINDOW ? size : WINDOW);
		give_window_back(window, buffer, got);
	}
	return got;
}

ssize_t pread64(int fd, void *buffer, size_t size, off64_t offset)
{
	static ssize_t (*real)(int, void *, size_t, off64_t);
	char *window;
	ssize_t got;

	if (!real)
		real = (ssize_t (*)(int, void *, size_t, off64_t))next_function("pread64");
	got = real(fd, buffer, size, offset);
	if (refused(got, buffer) && (window = take_window())) {
		got = real(fd, window, size < WINDOW ? size : WINDOW, offset);
		give_window_back(window, buffer, got);
	}
	return got;
}

ssize_t pread(int fd, void *buffer, size_t size, off_t offset)
{
	return pread64(fd, buffer, size, offset);
}

ssize_t readv(int fd, const struct iovec *parts, int count)
{
	static ssize_t (*real)(int, const struct iovec *, int);
	ssize_t got;

	if (!real)
		real = (ssize_t (*)(int, const struct iovec *, int))next_function("readv");
	got = real(fd, parts, count);
	for (int i = 0; got < 0 && errno == EFAULT && i < count; i++)
		if (parts[i].iov_len && is_ours(parts[i].iov_base))
			return read(fd, parts[i].iov_base, parts[i].iov_len); /* fewer bytes than asked for are right */
	return got;
}

static size_t read_stream(char *buffer, size_t size, FILE *stream, size_t (*real)(void *, size_t, size_t, FILE *))
{
	size_t done = 0;

	while (done < size) {
		const size_t wanted = size - done < WINDOW ? size - done : WINDOW;
		char *const window = take_window();
		size_t got;

		if (!window)
			return done + real(buffer + done, 1, size - done, stream);
		got = real(window, 1, wanted, stream);
		give_window_back(window, buffer + done, (ssize_t)got);
		done += got;
		if (got < wanted)
			break;
	}
	return done;
}

size_t fread(void *buffer, size_t size, size_t count, FILE *stream)
{
	static size_t (*real)(void *, size_t, size_t, FILE *);
	size_t all;

	if (!real)
		real = (size_t (*)(void *, size_t, size_t, FILE *))next_function("fread");
	if (!is_ours(buffer) || !size || __builtin_mul_overflow(size, count, &all))
		return real(buffer, size, count, stream);
	return read_stream(buffer, all, stream, real) / size;
}

size_t (fread_unlocked)(void *buffer, size_t size, size_t count, FILE *stream)
{
	static size_t (*real)(void *, size_t, size_t, FILE *);
	size_t all;

	if (!real)
		real = (size_t (*)(void *, size_t, size_t, FILE *))next_function("fread_unlocked");
	if (!is_ours(buffer) || !size || __builtin_mul_overflow(size, count, &all))
		return real(buffer, size, count, stream);
	return read_stream(buffer, all, stream, real) / size;
}

int fclose(FILE *stream)
{
	static int (*real)(FILE *);

	if (!real)
		real = (int (*)(FILE *))next_function("fclose");
	/* glibc maps what was opened with "m" read-only (_IO_FLAGS2_MMAP, libio.h) */
	if (!(stream->_flags2 & 1) && stream->_IO_buf_base && stream->_IO_buf_end > stream->_IO_buf_base && !fflush(stream))
		explicit_bzero(stream->_IO_buf_base, (size_t)(stream->_IO_buf_end - stream->_IO_buf_base));
	return real(stream);
}
