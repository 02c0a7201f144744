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
	uint64_t opens;     /* how many handles there are, or more; never fewer */
	uint64_t whole;     /* the pieces are all that there is of it, and it has one name */
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

/*
 * Names that are surely there, and lead to what is no directory: each in the place that the low bits of its hash, plus
 * its directory's inode number, say. Python takes one back before it is gone or leads to something else.
 */
struct secretfs_known_name {
	uint64_t directory; /* its inode number; 0: an empty place */
	uint64_t ino;       /* of what the name leads to */
	uint64_t length;
	char *name; /* in a secret area */
};
#define SECRETFS_KNOWN_NAMES 1024
#define SECRETFS_NAME_SIZE 20 /* by how much a name makes its directory larger, as on tmpfs */

/* What Python has to do or to know when it has time: FUSE_OPEN, FUSE_RELEASE, FUSE_FORGET, FUSE_UNLINK. */
struct secretfs_deferred {
	uint64_t opcode;
	uint64_t ino;    /* of FUSE_UNLINK the directory's */
	uint64_t handle; /* that was opened or closed; of FUSE_UNLINK the name's place */
	uint64_t more;   /* flags of open(2), how many references the kernel drops, or nanoseconds since the epoch */
};
#define SECRETFS_FIRST_HANDLE (1ULL << 62) /* of those given out here; Python's own count from 1 */

extern struct secretfs_attributes secretfs_attributes;
extern uint32_t secretfs_unlinked;

/* The window: locked memory that plaintext is copied to on its way to the kernel. */
struct secretfs_window {
	char *start;
	size_t size;
};

/* Answer the request in `buf` if that can be done here: 1, or 0 where Python has to. */
int secretfs_fast_answer(int fd, const struct fuse_buf *buf, const struct secretfs_window *window);

/* Answer a lookup if the name is surely not there: 1, or 0 where Python has to look. */
int secretfs_answer_lookup(int fd, const struct fuse_in_header *head, const struct fuse_buf *buf);

/*
 * Answer an unlink if the name surely is there and a file goes with it that nobody has open: 1, or 0 where Python has to
 * do it. Name and data are wiped, then it is answered; the rest is left to Python.
 */
int secretfs_answer_unlink(int fd, const struct fuse_in_header *head, const struct fuse_buf *buf);

/* The file with that number, if all that there is of it goes with its name: in the table, whole, not open. Or NULL. */
struct secretfs_file *secretfs_mortal_file(uint64_t ino);

/* Wipe what a file holds, and know it no more. */
void secretfs_end_file(struct secretfs_file *file);

/* Leave something to Python; 0 where there is no room, and Python has to do it now. */
int secretfs_defer(const struct fuse_in_header *head, uint64_t handle, uint64_t more);

/* Nanoseconds since the epoch. */
int64_t secretfs_now(void);

/* Send an answer. An error here (ENOENT; -1 is returned) means that the client was killed while it waited. */
int secretfs_reply(int fd, uint64_t unique, void *data, size_t size);

#endif
