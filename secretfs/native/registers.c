/*
 * Vector registers keep the last bytes that memcpy has carried, up to half a kilobyte, for as long as nothing else is
 * copied. From there they get into memory: onto the stack of a thread that is started (it inherits the registers) and
 * calls a function that has yet to be bound, into the frame of a signal, and into what the kernel saves when another
 * process is let run.
 *
 * They are set to ones, not to zeros: a part that is zero is not saved by XSAVES, which leaves what was saved before
 * where it is. The upper halves of ymm0 to ymm15 are zeros all the same, as after every function that uses them,
 * because other code is slow while they are not.
 */
#include "registers.h"

#if defined(__x86_64__)

#define ONES(n) "pcmpeqd %%xmm" #n ", %%xmm" #n "\n\t"
#define WIDE_ONES(n) "vpternlogd $0xff, %%zmm" #n ", %%zmm" #n ", %%zmm" #n "\n\t"

void secretfs_shim_forget_registers(void)
{
	if (__builtin_cpu_supports("avx512f")) /* the compiler does not use these sixteen, so they are no clobbers */
		__asm__ volatile(WIDE_ONES(16) WIDE_ONES(17) WIDE_ONES(18) WIDE_ONES(19) WIDE_ONES(20) WIDE_ONES(21)
				 WIDE_ONES(22) WIDE_ONES(23) WIDE_ONES(24) WIDE_ONES(25) WIDE_ONES(26) WIDE_ONES(27)
				 WIDE_ONES(28) WIDE_ONES(29) WIDE_ONES(30) WIDE_ONES(31)::);
	if (__builtin_cpu_supports("avx"))
		__asm__ volatile("vzeroupper" ::: "xmm0");
	__asm__ volatile(ONES(0) ONES(1) ONES(2) ONES(3) ONES(4) ONES(5) ONES(6) ONES(7) ONES(8) ONES(9) ONES(10)
			 ONES(11) ONES(12) ONES(13) ONES(14) ONES(15)::
			 : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
			   "xmm12", "xmm13", "xmm14", "xmm15");
}

#elif defined(__aarch64__)

#define ONES(n) "movi v" #n ".16b, #0xff\n\t"

void secretfs_shim_forget_registers(void) /* v8 to v15 are the caller's */
{
	__asm__ volatile(ONES(0) ONES(1) ONES(2) ONES(3) ONES(4) ONES(5) ONES(6) ONES(7) ONES(16) ONES(17) ONES(18)
			 ONES(19) ONES(20) ONES(21) ONES(22) ONES(23) ONES(24) ONES(25) ONES(26) ONES(27) ONES(28)
			 ONES(29) ONES(30) ONES(31)::
			 : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19", "v20", "v21", "v22",
			   "v23", "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31");
}

#else

void secretfs_shim_forget_registers(void) /* not known how */
{
}

#endif
