/* The objects that are loaded: the program and its libraries. */
#ifndef SECRETFS_LOADED_H
#define SECRETFS_LOADED_H

#include <stdint.h>

struct object {
	uintptr_t start, end; /* where it lies */
	int openssl;          /* OpenSSL's version is among its constants */
	char path[4096];      /* "": the program itself */
};

/* The name of an object's file, for messages and comparisons. */
const char *object_name(const struct object *object);

/* One that was not there before, each once; 0 if there is none. One caller at a time. */
int next_new_object(struct object *object);

#endif
