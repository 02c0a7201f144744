/* What one library calls when it calls a function of another one. */
#ifndef SECRETFS_BINDINGS_H
#define SECRETFS_BINDINGS_H

#include <stddef.h>

struct binding {
	const char *name;
	void *function;
};

/* Bind a loaded library's calls of those names to these functions. `library`: from dlopen(3). How many were bound. */
int bindings_change(void *library, const struct binding *bindings, size_t count);

#endif
