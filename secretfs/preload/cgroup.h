/* How much room the memory cgroups leave. */
#ifndef SECRETFS_CGROUP_H
#define SECRETFS_CGROUP_H

#include <stddef.h>

/* Whether `size` bytes can be taken without waking the OOM killer of a memory cgroup; 1 where no group can be read. */
int cgroup_has_room(size_t size);

/* What helps when secret memory has run out: the lock limit, or the cgroup's if that refused last. */
const char *cgroup_or_lock_remedy(void);

#endif
