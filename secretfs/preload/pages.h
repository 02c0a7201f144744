/* Pages of secret memory at addresses that are reserved for them. */
#ifndef SECRETFS_PAGES_H
#define SECRETFS_PAGES_H

#include <stddef.h>

#define PAGE ((size_t)4096)

enum kind { KIND_NONE, KIND_KERNEL, KIND_EMULATOR };

/* Map memory of that kind, zeroed and faulted in, left out of forks and dumps. 0, or -1 and the addresses are reserved. */
int pages_map(char *start, size_t size, enum kind kind);

/* Take them back; the addresses stay reserved. */
void pages_release(char *start, size_t size);

/* The errno of memfd_secret(2); 0 where it works. */
int pages_kernel_error(void);

/* Whether a page is secret: the kernel pins an ordinary page for us, and refuses this one. */
int pages_are_secret(char *page);

#endif
