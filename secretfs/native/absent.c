/* Lookups of names that are surely not there: what the kernel asks before it creates a file. */
#define FUSE_USE_VERSION 35
#include "fast.h"

#include <string.h>
#include <sys/types.h>

#define API __attribute__((visibility("default")))

API extern uint8_t secretfs_names[SECRETFS_NAMES];
API extern ssize_t (*secretfs_hash_name)(const void *, ssize_t);

uint8_t secretfs_names[SECRETFS_NAMES];
ssize_t (*secretfs_hash_name)(const void *, ssize_t); /* Python's hash of bytes; NULL: Python looks every name up */

int secretfs_answer_absent(int fd, const struct fuse_in_header *head, const struct fuse_buf *buf)
{
	const char *const name = (const char *)(head + 1);
	const size_t room = buf->size - sizeof *head, length = strnlen(name, room);
	struct fuse_entry_out nothing = {.entry_valid = SECRETFS_VALID};

	if (!secretfs_hash_name || length == room || length == 0 || length > SECRETFS_NAME_MAX)
		return 0;
	if (name[0] == '.' && (length == 1 || (length == 2 && name[1] == '.')))
		return 0;
	if (secretfs_names[((uint64_t)secretfs_hash_name(name, (ssize_t)length) + head->nodeid) % SECRETFS_NAMES])
		return 0;
	secretfs_reply(fd, head->unique, &nothing, sizeof nothing);
	return 1;
}
