/*
 * How much room the memory cgroups leave: asked before pages are faulted in, because past the limit the kernel kills.
 *
 * The rule is that of secretfs/cgroup.py: this process's group and each ancestor that is visible, in cgroup v2 and v1
 * (cgroups(7), Documentation/admin-guide/cgroup-v2.rst); page cache counts as room, since the kernel drops it first.
 * Nothing here allocates: a forked child and malloc's caller come here. Everything is read anew each time, as a process
 * may be moved and limits may change; areas are few.
 */
#define _GNU_SOURCE
#include "cgroup.h"

#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SPARE ((long long)1 << 20) /* left alone for page tables and whatever else runs in the group */
#define UNLIMITED ((long long)1 << 60)
#define TEXT 65536

struct hierarchy {
	const char *type, *limit, *usage, *caches[2];
	char root[PATH_MAX], mountpoint[PATH_MAX], group[PATH_MAX];
};

static struct hierarchy hierarchies[] = {
	{.type = "cgroup2", .limit = "memory.max", .usage = "memory.current", .caches = {"inactive_file ", "active_file "}},
	{.type = "cgroup", .limit = "memory.limit_in_bytes", .usage = "memory.usage_in_bytes",
	 .caches = {"total_inactive_file ", "total_active_file "}},
};
static char text[TEXT]; /* like all that is static here: the caller holds the lock of memory.c; stacks may be small */
static atomic_int refused;

static int read_file(const char *path)
{
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	size_t length = 0;
	ssize_t got;

	if (fd < 0)
		return -1;
	while (length < sizeof text - 1 && (got = syscall(SYS_read, fd, text + length, sizeof text - 1 - length)) > 0)
		length += (size_t)got;
	close(fd);
	text[length] = 0;
	return 0;
}

/* A file of a group; -1 if there is none. */
static int read_of(const char *folder, const char *name)
{
	static char path[2 * PATH_MAX + 64];

	snprintf(path, sizeof path, "%s/%s", folder, name);
	return read_file(path);
}

static long long number_of(const char *folder, const char *name)
{
	return read_of(folder, name) || text[0] < '0' || text[0] > '9' ? -1 : strtoll(text, NULL, 10);
}

static long long cache_of(const struct hierarchy *kind, const char *folder)
{
	long long bytes = 0;

	if (read_of(folder, "memory.stat"))
		return 0;
	for (const char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL)
		for (int i = 0; i < 2; i++)
			if (!strncmp(line, kind->caches[i], strlen(kind->caches[i])))
				bytes += strtoll(line + strlen(kind->caches[i]), NULL, 10);
	return bytes;
}

/* The bytes left in one group. */
static long long room_in(const struct hierarchy *kind, const char *folder)
{
	const long long limit = number_of(folder, kind->limit), usage = number_of(folder, kind->usage);

	if (limit < 0 || usage < 0 || limit >= UNLIMITED)
		return UNLIMITED;
	return limit - usage + cache_of(kind, folder);
}

static int has_word(char *words, const char *wanted)
{
	char *rest = words;

	for (const char *word; (word = strsep(&rest, ","));)
		if (!strcmp(word, wanted))
			return 1;
	return 0;
}

/* Where the two hierarchies are mounted, from /proc/self/mountinfo (proc(5)). */
static void find_mounts(void)
{
	char root[1024], mountpoint[1024], type[64], options[1024];
	char *rest = text;

	for (int i = 0; i < 2; i++)
		hierarchies[i].mountpoint[0] = 0;
	if (read_file("/proc/self/mountinfo"))
		return;
	for (char *line; (line = strsep(&rest, "\n"));) {
		const char *const after = strstr(line, " - ");

		if (!after || sscanf(line, "%*s %*s %*s %1023s %1023s", root, mountpoint) < 2 ||
		    sscanf(after, " - %63s %*s %1023s", type, options) < 2)
			continue;
		for (int i = 0; i < 2; i++)
			if (!strcmp(type, hierarchies[i].type) && (i == 0 || has_word(options, "memory"))) {
				strcpy(hierarchies[i].root, root);
				strcpy(hierarchies[i].mountpoint, mountpoint);
			}
	}
}

/* This process's group in each, from /proc/self/cgroup: "0::/a/b", "4:cpu,memory:/a/b". */
static void find_groups(void)
{
	char *rest = text;

	for (int i = 0; i < 2; i++)
		hierarchies[i].group[0] = 0;
	if (read_file("/proc/self/cgroup"))
		return;
	for (char *line; (line = strsep(&rest, "\n"));) {
		const char *const number = strsep(&line, ":");
		char *const controllers = strsep(&line, ":");

		if (line && !strcmp(number, "0"))
			snprintf(hierarchies[0].group, PATH_MAX, "%s", line);
		else if (line && has_word(controllers, "memory"))
			snprintf(hierarchies[1].group, PATH_MAX, "%s", line);
	}
}

/* The least room in a group and its ancestors. */
static long long least_room(const struct hierarchy *kind)
{
	const size_t above = strcmp(kind->root, "/") ? strlen(kind->root) : 0;
	static char folder[2 * PATH_MAX];
	const char *group = kind->group;
	long long least = UNLIMITED;

	if (!kind->mountpoint[0] || !group[0])
		return UNLIMITED;
	if (above && !strncmp(group, kind->root, above) && (!group[above] || group[above] == '/'))
		group += above; /* a container sees only a part of the tree */
	while (!strncmp(group, "/..", 3))
		group += 3; /* above the namespace's root */
	snprintf(folder, sizeof folder, "%s%s", kind->mountpoint, strcmp(group, "/") ? group : "");
	for (;;) {
		const long long room = room_in(kind, folder);

		if (room < least)
			least = room;
		if (strlen(folder) <= strlen(kind->mountpoint))
			return least;
		*strrchr(folder, '/') = 0;
	}
}

int cgroup_has_room(size_t size)
{
	int enough = 1;

	find_mounts();
	find_groups();
	for (int i = 0; i < 2; i++)
		if (least_room(&hierarchies[i]) < (long long)size + SPARE)
			enough = 0;
	atomic_store(&refused, !enough);
	return enough;
}

const char *cgroup_or_lock_remedy(void)
{
	return atomic_load(&refused) ? "raise the limit of the memory cgroup: MemoryMax= in a systemd unit, docker run --memory" :
				       "raise the lock limit: LimitMEMLOCK= in a systemd unit, or ulimit -l";
}
