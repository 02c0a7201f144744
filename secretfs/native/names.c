/*
 * Requests about names: lookups of what is surely not there, which the kernel asks for before it creates a file, and
 * unlinks of what surely is.
 */
#define FUSE_USE_VERSION 35
#include "fast.h"

#include <string.h>
#include <sys/types.h>

#define API __attribute__((visibility("default")))
#define FULL UINT8_MAX /* a count that is not trusted any more */

API extern uint8_t secretfs_names[SECRETFS_NAMES];
API extern struct secretfs_known_name secretfs_known_names[SECRETFS_KNOWN_NAMES];
API extern ssize_t (*secretfs_hash_name)(const void *, ssize_t);

uint8_t secretfs_names[SECRETFS_NAMES];
struct secretfs_known_name secretfs_known_names[SECRETFS_KNOWN_NAMES];
ssize_t (*secretfs_hash_name)(const void *, ssize_t); /* Python's hash of bytes; NULL: Python does it all */

/* The name in a request that has nothing but one, and its length; NULL where that is none for us. */
static const char *name_in(const struct fuse_in_header *head, const struct fuse_buf *buf, size_t *length)
{
	const char *const name = (const char *)(head + 1);
	const size_t room = buf->size - sizeof *head;

	*length = strnlen(name, room);
	if (!secretfs_hash_name || *length == room || *length == 0 || *length > SECRETFS_NAME_MAX)
		return NULL;
	if (name[0] == '.' && (*length == 1 || (*length == 2 && name[1] == '.')))
		return NULL;
	return name;
}

static uint64_t place_of(const struct fuse_in_header *head, const char *name, size_t length)
{
	return (uint64_t)secretfs_hash_name(name, (ssize_t)length) + head->nodeid;
}

int secretfs_answer_lookup(int fd, const struct fuse_in_header *head, const struct fuse_buf *buf)
{
	struct fuse_entry_out nothing = {.entry_valid = SECRETFS_VALID};
	size_t length;
	const char *const name = name_in(head, buf, &length);

	if (!name || secretfs_names[place_of(head, name, length) % SECRETFS_NAMES])
		return 0;
	secretfs_reply(fd, head->unique, &nothing, sizeof nothing);
	return 1;
}

/* Only in the directory that changed last: then what stat(2) says of it stays known here. */
int secretfs_answer_unlink(int fd, const struct fuse_in_header *head, const struct fuse_buf *buf)
{
	struct secretfs_attributes *const directory = &secretfs_attributes;
	struct secretfs_known_name *known;
	struct secretfs_file *file;
	size_t length;
	const char *const name = name_in(head, buf, &length);
	uint64_t place;
	int64_t now;

	if (!name || directory->ino != head->nodeid)
		return 0;
	place = place_of(head, name, length);
	known = &secretfs_known_names[place % SECRETFS_KNOWN_NAMES];
	if (known->directory != head->nodeid || known->length != length || memcmp(known->name, name, length))
		return 0;
	file = secretfs_mortal_file(known->ino);
	now = secretfs_now();
	if (!file || !secretfs_defer(head, place % SECRETFS_KNOWN_NAMES, (uint64_t)now))
		return 0;
	secretfs_unlinked = 1;
	secretfs_end_file(file);
	explicit_bzero(known->name, length);
	known->directory = 0;
	if (secretfs_names[place % SECRETFS_NAMES] < FULL)
		secretfs_names[place % SECRETFS_NAMES]--;
	directory->size -= SECRETFS_NAME_SIZE;
	directory->mtime = directory->ctime = now;
	secretfs_reply(fd, head->unique, NULL, 0);
	return 1;
}
