/* Requests that are put in another way before pyfuse3 sees them. */
#ifndef SECRETFS_REWRITE_H
#define SECRETFS_REWRITE_H

#include <stddef.h>
#include <stdint.h>

/* Rewrite the request of `size` bytes in place, if it is one of those. */
void secretfs_rewrite(void *request, size_t size);

#endif
