/*
 * Requests answered without Python: reads and writes of open files, another open of one that was open before, the
 * attributes of the directory that changed last, and what nobody waits for (a handle closed, an inode forgotten). What
 * is about names is in names.c.
 *
 * Python decides everything: it publishes an entry for a file that it has opened and takes it back before it changes the
 * file's layout, size, mode or times. Here bytes are copied between the file's area and the kernel, and what has to be
 * known about it afterwards (size, time of the last write) is left in the entry; secretfs_written lists those entries,
 * secretfs_deferred what is to be done later, and secretfs_news counts both.
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 35

#include "fast.h"

#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#define SECOND 1000000000LL /* nanoseconds */
#define API __attribute__((visibility("default")))

API extern struct secretfs_file secretfs_files[SECRETFS_FILES];
API extern struct secretfs_attributes secretfs_attributes;
API extern struct secretfs_deferred secretfs_deferred[SECRETFS_DEFERRED];
API extern uint32_t secretfs_deferred_count;
API extern uint32_t secretfs_written[SECRETFS_FILES];
API extern uint32_t secretfs_written_count;
API extern uint32_t secretfs_news;
API extern uint32_t secretfs_unlinked;
API extern uint32_t secretfs_open_flags;
API extern uint64_t secretfs_next_handle;

struct secretfs_file secretfs_files[SECRETFS_FILES];
struct secretfs_attributes secretfs_attributes;
struct secretfs_deferred secretfs_deferred[SECRETFS_DEFERRED];
uint32_t secretfs_deferred_count;
uint32_t secretfs_written[SECRETFS_FILES]; /* numbers of entries with `written` set */
uint32_t secretfs_written_count;
uint32_t secretfs_news; /* how much there is for Python to look at */
uint32_t secretfs_unlinked; /* whether there is a FUSE_UNLINK: nothing may be opened until Python has looked */
uint32_t secretfs_open_flags; /* FOPEN_DIRECT_IO, or 0 */
uint64_t secretfs_next_handle = SECRETFS_FIRST_HANDLE;

/* What follows the head of a request, if it is all there. */
#define BODY(buf, type) \
	((buf)->size >= sizeof(struct fuse_in_header) + sizeof(type) ? \
		 (const type *)((const struct fuse_in_header *)(buf)->mem + 1) : NULL)

int secretfs_reply(int fd, uint64_t unique, void *data, size_t size)
{
	struct fuse_out_header head = {.len = (uint32_t)(sizeof head + size), .unique = unique};
	struct iovec parts[] = {{&head, sizeof head}, {data, size}};

	return writev(fd, parts, size ? 2 : 1) < 0 ? -1 : 0;
}

/* Whether the bytes from `offset` up to `end` all lie in pieces. */
static int covered(const struct secretfs_file *file, uint64_t offset, uint64_t end)
{
	for (uint64_t i = 0; i < file->count && offset < end; i++) {
		const struct secretfs_piece *piece = &file->pieces[i];

		if (piece->end <= offset)
			continue;
		if (piece->start > offset)
			return 0;
		offset = piece->end;
	}
	return offset >= end;
}

/* Copy the bytes from `offset` up to `end`, which are covered: to `target`, or from `source` where that is given. */
static void copy(const struct secretfs_file *file, uint64_t offset, uint64_t end, char *target, const char *source)
{
	for (uint64_t i = 0; offset < end; i++) {
		const struct secretfs_piece *piece = &file->pieces[i];
		uint64_t length;

		if (piece->end <= offset)
			continue;
		length = (piece->end < end ? piece->end : end) - offset;
		if (source) {
			memcpy(piece->memory + (offset - piece->start), source, length);
			source += length;
		} else {
			memcpy(target, piece->memory + (offset - piece->start), length);
			target += length;
		}
		offset += length;
	}
}

struct secretfs_file *secretfs_mortal_file(uint64_t ino)
{
	struct secretfs_file *const file = &secretfs_files[ino % SECRETFS_FILES];

	return file->ino == ino && file->whole && !file->opens ? file : NULL;
}

void secretfs_end_file(struct secretfs_file *file)
{
	for (uint64_t i = 0; i < file->count; i++)
		explicit_bzero(file->pieces[i].memory, file->pieces[i].end - file->pieces[i].start);
	file->ino = 0;
}

static int answer_read(int fd, const struct fuse_in_header *head, const struct fuse_read_in *in,
		       const struct secretfs_file *file, const struct secretfs_window *window)
{
	uint64_t length = in->size;

	if (!(in->read_flags & FUSE_READ_LOCKOWNER)) /* for the page cache: Python must know */
		return 0;
	if (time(NULL) >= file->read_until)
		return 0;
	if (in->offset >= file->size)
		length = 0;
	else if (length > file->size - in->offset)
		length = file->size - in->offset;
	if (length > window->size || (length && !covered(file, in->offset, in->offset + length)))
		return 0;
	if (length)
		copy(file, in->offset, in->offset + length, window->start, NULL);
	secretfs_reply(fd, head->unique, window->start, length);
	explicit_bzero(window->start, length);
	return 1;
}

int64_t secretfs_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	return now.tv_sec * SECOND + now.tv_nsec;
}

static void note_written(struct secretfs_file *file)
{
	if (!file->written) {
		secretfs_written[secretfs_written_count++] = (uint32_t)(file - secretfs_files);
		secretfs_news++;
	}
	file->written = secretfs_now();
	file->read_until = 0; /* the next read sets the access time */
}

static int answer_write(int fd, const struct fuse_in_header *head, const struct fuse_write_in *in,
			struct secretfs_file *file, size_t received)
{
	struct fuse_write_out out = {.size = in->size};
	uint64_t end;

	if (!file->writable || in->write_flags & FUSE_WRITE_CACHE || !in->size)
		return 0;
	if (received < sizeof *head + sizeof *in + in->size || __builtin_add_overflow(in->offset, in->size, &end) ||
	    !covered(file, in->offset, end))
		return 0;
	copy(file, in->offset, end, NULL, (const char *)(in + 1));
	if (end > file->size)
		file->size = end;
	note_written(file);
	secretfs_reply(fd, head->unique, &out, sizeof out);
	return 1;
}

/* Nanoseconds as seconds and the rest, also before the epoch. */
static void split_time(int64_t time, uint64_t *seconds, uint32_t *rest)
{
	const int64_t left = (time % SECOND + SECOND) % SECOND;

	*seconds = (uint64_t)((time - left) / SECOND);
	*rest = (uint32_t)left;
}

static int answer_getattr(int fd, const struct fuse_in_header *head)
{
	const struct secretfs_attributes *const known = &secretfs_attributes;
	struct fuse_attr_out out = {
		.attr_valid = SECRETFS_VALID,
		.attr = {.ino = known->ino, .size = known->size, .mode = known->mode, .nlink = known->nlink,
			 .uid = known->uid, .gid = known->gid, .blksize = 4096},
	};

	if (!known->ino || known->ino != head->nodeid)
		return 0;
	split_time(known->atime, &out.attr.atime, &out.attr.atimensec);
	split_time(known->mtime, &out.attr.mtime, &out.attr.mtimensec);
	split_time(known->ctime, &out.attr.ctime, &out.attr.ctimensec);
	secretfs_reply(fd, head->unique, &out, sizeof out);
	return 1;
}

int secretfs_defer(const struct fuse_in_header *head, uint64_t handle, uint64_t more)
{
	if (secretfs_deferred_count >= SECRETFS_DEFERRED)
		return 0;
	secretfs_deferred[secretfs_deferred_count++] =
		(struct secretfs_deferred){head->opcode, head->nodeid, handle, more};
	secretfs_news++;
	return 1;
}

static void forget_last(void)
{
	secretfs_deferred_count--;
	secretfs_news--;
}

static int answer_open(int fd, const struct fuse_in_header *head, const struct fuse_open_in *in,
		       struct secretfs_file *file)
{
	struct fuse_open_out out = {.fh = secretfs_next_handle, .open_flags = secretfs_open_flags};

	if (!file->openable || secretfs_unlinked || in->flags & O_TRUNC)
		return 0;
	if (!secretfs_defer(head, secretfs_next_handle, in->flags))
		return 0;
	secretfs_next_handle++;
	if (secretfs_reply(fd, head->unique, &out, sizeof out))
		forget_last(); /* nobody has it */
	else
		file->opens++;
	return 1;
}

/* Whether the last that was left to Python is that this handle was opened. */
static int has_just_opened(uint64_t handle)
{
	const struct secretfs_deferred *last;

	if (!secretfs_deferred_count)
		return 0;
	last = &secretfs_deferred[secretfs_deferred_count - 1];
	return last->opcode == FUSE_OPEN && last->handle == handle;
}

/* What Python has not heard of yet it need not hear of. */
static int answer_release(int fd, const struct fuse_in_header *head, const struct fuse_release_in *in)
{
	struct secretfs_file *const file = &secretfs_files[head->nodeid % SECRETFS_FILES];

	if (!in->fh)
		return 0;
	if (has_just_opened(in->fh))
		forget_last();
	else if (!secretfs_defer(head, in->fh, 0))
		return 0;
	if (file->ino == head->nodeid && file->opens)
		file->opens--;
	secretfs_reply(fd, head->unique, NULL, 0);
	return 1;
}

static int answer_for_file(int fd, const struct fuse_in_header *head, const struct fuse_buf *buf,
			   const struct secretfs_window *window)
{
	struct secretfs_file *const file = &secretfs_files[head->nodeid % SECRETFS_FILES];
	const struct fuse_read_in *const read = BODY(buf, struct fuse_read_in);
	const struct fuse_write_in *const write = BODY(buf, struct fuse_write_in);
	const struct fuse_open_in *const open = BODY(buf, struct fuse_open_in);

	if (!file->ino || file->ino != head->nodeid)
		return 0;
	if (head->opcode == FUSE_READ)
		return read && answer_read(fd, head, read, file, window);
	if (head->opcode == FUSE_OPEN)
		return open && answer_open(fd, head, open, file);
	return write && answer_write(fd, head, write, file, buf->size);
}

int secretfs_fast_answer(int fd, const struct fuse_buf *buf, const struct secretfs_window *window)
{
	const struct fuse_in_header *head = buf->mem;
	const struct fuse_release_in *release;
	const struct fuse_forget_in *forget;

	if (buf->size < sizeof *head)
		return 0;
	switch (head->opcode) {
	case FUSE_OPEN:
	case FUSE_READ:
	case FUSE_WRITE:
		return answer_for_file(fd, head, buf, window);
	case FUSE_LOOKUP:
		return secretfs_answer_lookup(fd, head, buf);
	case FUSE_UNLINK:
		return secretfs_answer_unlink(fd, head, buf);
	case FUSE_GETATTR:
		return answer_getattr(fd, head);
	case FUSE_RELEASE:
		release = BODY(buf, struct fuse_release_in);
		return release && answer_release(fd, head, release);
	case FUSE_FORGET: /* has no reply */
		forget = BODY(buf, struct fuse_forget_in);
		return forget && secretfs_defer(head, 0, forget->nlookup);
	default:
		return 0;
	}
}
