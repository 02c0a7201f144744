/* Preloaded into openssl-speed(1): its measurements last ALARM microseconds, and not whole seconds. */
#include <stdlib.h>
#include <unistd.h>

unsigned alarm(unsigned seconds)
{
	const char *const length = getenv("ALARM");

	return seconds && length ? ualarm((useconds_t)atol(length), 0) : ualarm(0, 0);
}
