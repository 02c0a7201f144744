/*
 * secretfs: secret memory for C programs, on memfd_secret(2) where the kernel has it, else on locked memory.
 *
 * The functions are in libsecretfs-preload.so: link with `pkg-config --cflags --libs` of what
 * `secretfs preload --print-pkgconfig` names, or load it with LD_PRELOAD. All are thread-safe; none is safe in a signal
 * handler. A forked child gets copies of its own (pthread_atfork(3)); a child of a raw clone(2) has none of it and must
 * exec. Configuration is by the environment: SECRETFS_BACKEND=auto|kernel|emulator and what docs/preload.md lists.
 */
#ifndef SECRETFS_H
#define SECRETFS_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* `size` bytes, zeroed; NULL with errno ENOMEM where no more may be locked (also under the policy "fallback"). */
void *secretfs_alloc(size_t size);

/* Wipe and free; NULL is fine. What is not from secretfs_alloc() or secretfs_map() ends the process with a message. */
void secretfs_free(void *memory);

/* How many bytes the memory at `memory` has, at least what was asked for; 0 where it is not ours. */
size_t secretfs_size(const void *memory);

/* Whole pages between guard pages, wiped and unmapped by secretfs_free(). The last byte is next to the guard page. */
void *secretfs_map(size_t size);

/*
 * Access windows, for memory from secretfs_map(): hide() makes it unreadable, reveal() readable and, with `write`,
 * writable. Windows are counted: each reveal() needs its hide(). It is made revealed for writing, as by one reveal().
 * 0, or -1 with errno EINVAL where `memory` is something else.
 */
int secretfs_reveal(void *memory, int write);
int secretfs_hide(void *memory);

/* What is in force. Guarantees are those of the Python side (docs/backends.md). */
struct secretfs_protection {
	const char *backend;     /* "kernel" or "emulator" */
	int off_direct_map;      /* 1: /proc/kcore does not find it */
	int refuses_pinning;     /* 1: ptrace, /proc/PID/mem and process_vm_readv fail, for root too */
	int unswappable;
	int undumpable;
	int cleared_by_kernel;   /* 1: cleared after kill -9 */
	size_t locked;           /* bytes of secret memory that are mapped */
	size_t used;             /* bytes of it in use, in whole spans of 64 KiB */
	unsigned long fallbacks; /* how many allocations got ordinary memory because no more could be locked */
};
void secretfs_protection(struct secretfs_protection *report);

#ifdef __cplusplus
}
#endif

#endif
