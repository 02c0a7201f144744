/*
 * Reads and writes of open files, answered without Python.
 *
 * Python decides everything: it publishes an entry for a file that it has opened and takes it back before it changes the
 * file's layout, size, mode or times. Here bytes are copied between the file's area and the kernel, and what has to be
 * known about it afterwards (size, time of the last write) is left in the entry; secretfs_written lists those entries.
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 35

#include "fast.h"

#include <linux/fuse.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#define API __attribute__((visibility("default")))

API extern struct secretfs_file secretfs_files[SECRETFS_FILES];
API extern uint32_t secretfs_written[SECRETFS_FILES];
API extern uint32_t secretfs_written_count;

struct secretfs_file secretfs_files[SECRETFS_FILES];
uint32_t secretfs_written[SECRETFS_FILES]; /* numbers of entries with `written` set */
uint32_t secretfs_written_count;

/* An error here (ENOENT) means that the client was killed while it waited. */
static void reply(int fd, uint64_t unique, void *data, size_t size)
{
	struct fuse_out_header head = {.len = (uint32_t)(sizeof head + size), .unique = unique};
	struct iovec parts[] = {{&head, sizeof head}, {data, size}};

	if (writev(fd, parts, size ? 2 : 1) < 0)
		return;
}

static int answer_read(int fd, const struct fuse_in_header *head, const struct secretfs_file *file,
		       const struct secretfs_window *window)
{
	const struct fuse_read_in *in = (const void *)(head + 1);
	uint64_t length = in->size;

	if (!(in->read_flags & FUSE_READ_LOCKOWNER)) /* for the page cache: Python must know */
		return 0;
	if (time(NULL) >= file->read_until)
		return 0;
	if (in->offset >= file->size)
		length = 0;
	else if (length > file->size - in->offset)
		length = file->size - in->offset;
	if (length > window->size || (length && in->offset + length > file->capacity))
		return 0;
	if (length)
		memcpy(window->start, file->memory + in->offset, length);
	reply(fd, head->unique, window->start, length);
	explicit_bzero(window->start, length);
	return 1;
}

static void note_written(struct secretfs_file *file)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (!file->written)
		secretfs_written[secretfs_written_count++] = (uint32_t)(file - secretfs_files);
	file->written = now.tv_sec * 1000000000LL + now.tv_nsec;
	file->read_until = 0; /* the next read sets the access time */
}

static int answer_write(int fd, const struct fuse_in_header *head, struct secretfs_file *file, size_t received)
{
	const struct fuse_write_in *in = (const void *)(head + 1);
	struct fuse_write_out out = {.size = in->size};

	if (!file->writable || in->write_flags & FUSE_WRITE_CACHE)
		return 0;
	if (received < sizeof *head + sizeof *in + in->size || in->offset > file->capacity ||
	    in->size > file->capacity - in->offset)
		return 0;
	memcpy(file->memory + in->offset, in + 1, in->size);
	if (in->offset + in->size > file->size)
		file->size = in->offset + in->size;
	note_written(file);
	reply(fd, head->unique, &out, sizeof out);
	return 1;
}

int secretfs_fast_answer(int fd, const struct fuse_buf *buf, const struct secretfs_window *window)
{
	const struct fuse_in_header *head = buf->mem;
	struct secretfs_file *file;

	if (buf->size < sizeof *head + sizeof(struct fuse_read_in))
		return 0;
	file = &secretfs_files[head->nodeid % SECRETFS_FILES];
	if (file->ino != head->nodeid)
		return 0;
	if (head->opcode == FUSE_READ)
		return answer_read(fd, head, file, window);
	if (head->opcode == FUSE_WRITE && buf->size >= sizeof *head + sizeof(struct fuse_write_in))
		return answer_write(fd, head, file, buf->size);
	return 0;
}
