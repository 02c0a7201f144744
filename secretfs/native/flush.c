/*
 * Write memory back and drop it from every cache of the CPU, line by line: the nearest thing to uncached memory that
 * userspace has. x86_64: CLFLUSH (SSE2); aarch64: DC CIVAC, which Linux lets userspace use. Elsewhere there is no such
 * instruction for userspace, and the answer is 0.
 */
#include <stddef.h>
#include <stdint.h>

#define API __attribute__((visibility("default")))

API int secretfs_flush(const void *memory, size_t length);

#if defined(__x86_64__)

#include <emmintrin.h>

int secretfs_flush(const void *memory, size_t length)
{
	const uintptr_t line = 64;
	const uintptr_t end = (uintptr_t)memory + length;

	_mm_mfence();
	for (uintptr_t at = (uintptr_t)memory & ~(line - 1); at < end; at += line)
		_mm_clflush((const void *)at);
	_mm_mfence();
	return 1;
}

#elif defined(__aarch64__)

int secretfs_flush(const void *memory, size_t length)
{
	const uintptr_t end = (uintptr_t)memory + length;
	uint64_t type;
	uintptr_t line;

	__asm__ volatile("mrs %0, ctr_el0" : "=r"(type));
	line = (uintptr_t)4 << ((type >> 16) & 15);
	for (uintptr_t at = (uintptr_t)memory & ~(line - 1); at < end; at += line)
		__asm__ volatile("dc civac, %0" : : "r"(at) : "memory");
	__asm__ volatile("dsb sy" : : : "memory");
	return 1;
}

#else

int secretfs_flush(const void *memory, size_t length)
{
	(void)memory;
	(void)length;
	return 0;
}

#endif
