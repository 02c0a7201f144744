/* Reads and writes of open files that need no Python: the table that Python fills, and the loop that uses it. */
#ifndef SECRETFS_FAST_H
#define SECRETFS_FAST_H

#include <fuse_lowlevel.h>
#include <stdint.h>

#define SECRETFS_FILES 1024

/*
 * An open file whose first bytes lie in one piece. Python writes an entry, and takes it back before it changes anything
 * about the file; requests for what no entry covers go to Python.
 */
struct secretfs_file {
	uint64_t ino;       /* 0: an empty entry */
	char *memory;       /* where byte 0 of the file lies, in a secret area */
	uint64_t capacity;  /* how many bytes from there on are the file's */
	uint64_t size;      /* st_size; writes here move it, within capacity */
	int64_t written;    /* nanoseconds since the epoch of the last write here, 0: none since Python looked */
	int64_t read_until; /* seconds since the epoch until when a read leaves the access time alone */
	uint64_t writable;  /* 0: writes go to Python (set-user-ID bits to be taken away) */
};

/* The window: locked memory that plaintext is copied to on its way to the kernel. */
struct secretfs_window {
	char *start;
	size_t size;
};

/* Answer the request in `buf` if an entry covers it: 1, or 0 where Python has to. */
int secretfs_fast_answer(int fd, const struct fuse_buf *buf, const struct secretfs_window *window);

#endif
