/* Requests that need no Python: the tables that Python fills and empties, and the function that answers from them. */
#ifndef SECRETFS_FAST_H
#define SECRETFS_FAST_H

#include <fuse_lowlevel.h>
#include <linux/fuse.h>
#include <stdint.h>

#define SECRETFS_FILES 1024
#define SECRETFS_PIECES 16
#define SECRETFS_DEFERRED 256
#define SECRETFS_VALID 300 /* seconds that the kernel may remember an answer: all changes go through it */

/* Where the bytes of a file from `start` up to `end` lie, in a secret area. */
struct secretfs_piece {
	uint64_t start;
	uint64_t end;
	char *memory;
};

/*
 * A file that is or was open. Python writes an entry, and takes it back before it changes anything about the file;
 * requests for what no piece covers go to Python.
 */
struct secretfs_file {
	uint64_t ino;       /* 0: an empty entry */
	uint64_t size;      /* st_size; writes here move it, within the pieces */
	int64_t written;    /* nanoseconds since the epoch of the last write here, 0: none since Python looked */
	int64_t read_until; /* seconds since the epoch until when a read leaves the access time alone */
	uint64_t writable;  /* 0: writes go to Python (set-user-ID bits to be taken away) */
	uint64_t openable;  /* 0: to open it one has to ask Python */
	uint64_t count;     /* of the pieces in use, which follow each other */
	struct secretfs_piece pieces[SECRETFS_PIECES];
};

/* What stat(2) says of the directory that changed last: the kernel asks again after each change in it. */
struct secretfs_attributes {
	uint64_t ino; /* 0: none */
	uint64_t size;
	int64_t atime, mtime, ctime; /* nanoseconds since the epoch */
	uint32_t mode, nlink, uid, gid;
};

/*
 * How many names have the same low bits of their hash, plus their directory's inode number: where that is 0, a name is
 * surely not there. Before each new file the kernel asks whether its name is taken.
 */
#define SECRETFS_NAMES (1 << 20)
#define SECRETFS_NAME_MAX 255

/* What Python has to do or to know when it has time: FUSE_OPEN, FUSE_RELEASE, FUSE_FORGET. */
struct secretfs_deferred {
	uint64_t opcode;
	uint64_t ino;
	uint64_t handle; /* that was opened or closed */
	uint64_t more;   /* flags of open(2), or how many references the kernel drops */
};
#define SECRETFS_FIRST_HANDLE (1ULL << 62) /* of those given out here; Python's own count from 1 */

/* The window: locked memory that plaintext is copied to on its way to the kernel. */
struct secretfs_window {
	char *start;
	size_t size;
};

/* Answer the request in `buf` if that can be done here: 1, or 0 where Python has to. */
int secretfs_fast_answer(int fd, const struct fuse_buf *buf, const struct secretfs_window *window);

/* Answer a lookup if the name is surely not there: 1, or 0 where Python has to look. */
int secretfs_answer_absent(int fd, const struct fuse_in_header *head, const struct fuse_buf *buf);

/* Send an answer. An error here (ENOENT; -1 is returned) means that the client was killed while it waited. */
int secretfs_reply(int fd, uint64_t unique, void *data, size_t size);

#endif
