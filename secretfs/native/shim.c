/*
 * The request shim: between libfuse and pyfuse3, so that no request and no reply leaves a copy behind.
 *
 * Loaded with RTLD_GLOBAL before pyfuse3, it takes the place of some functions of libfuse, calls the real one and then
 * - locks the receive buffer (out of swap, core dumps and forks) when libfuse has allocated it,
 * - wipes a request when pyfuse3 has taken what it needs (its handlers copy before they return),
 * - wipes what a reply was made from (pyfuse3's buffer of directory entries), except the window, which wipes itself,
 * - lets the descriptor be non-blocking, so that a request taken back by its client does not block the loop,
 * - answers from the tables that Python has filled (fast.c): reads and writes of open files, and more,
 * - tells what requests say and pyfuse3 does not: whether a read fills the page cache, so that it can be emptied again;
 *   the flags that the descriptor has now; whether a write takes set-user-ID bits away,
 * - tells which handle the kernel has not heard of, so that it can be closed again.
 *
 * One thread calls all of it: pyfuse3's, with the GIL held.
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 35

#include "fast.h"
#include "registers.h"
#include "rewrite.h"

#include <dlfcn.h>
#include <errno.h>
#include <linux/fuse.h>
#include <malloc.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define BATCH 64 /* requests answered here before Python's event loop gets its turn */
#define YIELD 8  /* while there are none, how often to try before others get this CPU */
API int secretfs_shim_prepare(char *window, size_t window_size, long spin);
API int secretfs_shim_error(void);
API unsigned long secretfs_shim_requests(void);
API extern int secretfs_shim_page_cache_read;
API extern uint32_t secretfs_shim_open_flags;
API extern int secretfs_shim_keeps_privileges;
API extern int secretfs_shim_spun;
API extern int secretfs_shim_answers;
API extern uint64_t secretfs_shim_lost_handle;

static struct {
	struct secretfs_window window; /* replies from here are wiped by their owner */
	long spin;                     /* nanoseconds to poll after a request was answered here */
	void *locked;       /* the receive buffer that has been locked */
	int error;          /* why it could not be, an errno */
	unsigned long requests;
} shim;

/* libfuse's own functions. */
static struct {
	__typeof__(&fuse_session_receive_buf) receive_buf;
	__typeof__(&fuse_session_process_buf) process_buf;
	__typeof__(&fuse_reply_buf) reply_buf;
	__typeof__(&fuse_reply_open) reply_open;
	__typeof__(&fuse_reply_create) reply_create;
} real;

/* Whether the request in hand is a read that fills the page cache. */
int secretfs_shim_page_cache_read;

/* The flags of the descriptor through which the request in hand reads a file or a directory, as fcntl(2) left them. */
uint32_t secretfs_shim_open_flags;

/* Whether the request in hand is a write by somebody who may leave set-user-ID bits where they are (CAP_FSETID). */
int secretfs_shim_keeps_privileges;

/* Whether polling has just been tried here, in vain. */
int secretfs_shim_spun;

/* Whether to answer requests here: Python has to be told before it answers the next one, and when there is none. */
int secretfs_shim_answers;

/* The handle of what was opened in vain, as the reply has failed: nobody will close it. 0: none. Python takes it back. */
uint64_t secretfs_shim_lost_handle;

/* Find libfuse's functions and announce the window; 0, or ENOSYS where one is missing. */
int secretfs_shim_prepare(char *window, size_t window_size, long spin)
{
	*(void **)&real.receive_buf = dlsym(RTLD_NEXT, "fuse_session_receive_buf");
	*(void **)&real.process_buf = dlsym(RTLD_NEXT, "fuse_session_process_buf");
	*(void **)&real.reply_buf = dlsym(RTLD_NEXT, "fuse_reply_buf");
	*(void **)&real.reply_open = dlsym(RTLD_NEXT, "fuse_reply_open");
	*(void **)&real.reply_create = dlsym(RTLD_NEXT, "fuse_reply_create");
	if (!real.receive_buf || !real.process_buf || !real.reply_buf || !real.reply_open || !real.reply_create)
		return ENOSYS;
	shim.window.start = window;
	shim.window.size = window_size;
	shim.spin = spin;
	return 0;
}

/* Why the receive buffer is not locked (an errno), or 0. */
int secretfs_shim_error(void)
{
	return shim.error;
}

/* How many requests have come: shows that pyfuse3 is really bound to these functions. */
unsigned long secretfs_shim_requests(void)
{
	return shim.requests;
}

static void lock_buffer(void *buffer)
{
	const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
	const uintptr_t start = (uintptr_t)buffer & ~(page - 1);
	const uintptr_t end = ((uintptr_t)buffer + malloc_usable_size(buffer) + page - 1) & ~(page - 1);

	shim.locked = buffer;
	shim.error = 0;
	if (mlock((void *)start, end - start) || madvise((void *)start, end - start, MADV_DONTDUMP))
		shim.error = errno;
}

/*
 * Read a request. Only the first one through libfuse, which allocates the buffer: where it may make a pipe large enough
 * (CAP_SYS_RESOURCE), it splices requests through one, and the kernel does not clear the pages of a pipe.
 */
static int read_request(struct fuse_session *se, struct fuse_buf *buf)
{
	ssize_t received;
	int error;

	if (!buf->mem)
		return real.receive_buf(se, buf);
	do {
		received = read(fuse_session_fd(se), buf->mem, malloc_usable_size(buf->mem));
		error = errno;
	} while (received < 0 && error == ENOENT); /* a client took its request back meanwhile */
	if (received < 0 && error == ENODEV) /* unmounted */
		fuse_session_exit(se);
	if (fuse_session_exited(se))
		return 0;
	if (received < 0)
		return -error;
	if ((size_t)received < sizeof(struct fuse_in_header))
		return -EIO;
	buf->size = (size_t)received;
	buf->flags = 0;
	return (int)received;
}

/*
 * Take note of what the request says. A read on behalf of a program names the owner of its locks; one that fills the page
 * cache (a private mapping of a file that is otherwise direct_io) does not: fs/fuse/file.c, fuse_send_read() and
 * fuse_send_readpages(). A write past the page cache says whether it takes privileges away: fuse_direct_io().
 */
static void look_into(const struct fuse_buf *buf)
{
	const struct fuse_in_header *head = buf->mem;
	const struct fuse_read_in *read = (const void *)(head + 1);
	const struct fuse_write_in *write = (const void *)(head + 1);

	secretfs_shim_page_cache_read = 0;
	secretfs_shim_open_flags = 0;
	secretfs_shim_keeps_privileges = 0;
	if (!head || buf->size < sizeof *head + sizeof *read)
		return;
	switch (head->opcode) {
	case FUSE_READ:
		secretfs_shim_page_cache_read = !(read->read_flags & FUSE_READ_LOCKOWNER);
		/* fall through */
	case FUSE_READDIR:
	case FUSE_READDIRPLUS:
		secretfs_shim_open_flags = read->flags;
		break;
	case FUSE_WRITE:
		if (buf->size >= sizeof *head + sizeof *write)
			secretfs_shim_keeps_privileges =
				!(write->write_flags & (FUSE_WRITE_CACHE | FUSE_WRITE_KILL_SUIDGID));
		break;
	default:
		break;
	}
}

static int receive(struct fuse_session *se, struct fuse_buf *buf)
{
	const int received = read_request(se, buf);

	/* Nothing there after all: the client was killed before its request was read. pyfuse3 tries again after EINTR. */
	if (received == -EAGAIN)
		return -EINTR;
	if (buf->mem && buf->mem != shim.locked)
		lock_buffer(buf->mem);
	if (received > 0)
		shim.requests++;
	return received;
}

static long nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000L + now.tv_nsec;
}

/*
 * Receive the next request, if it comes within the time to spin. A client's CPU halts about 2 us after it has sent one,
 * and takes 10 to be woken again: what is answered before that is worth some haste.
 */
static int receive_soon(struct fuse_session *se, struct fuse_buf *buf)
{
	int received = receive(se, buf);
	const long start = received == -EINTR ? nanoseconds() : 0;
	long waited = 0;

	for (unsigned int tries = 0; received == -EINTR && waited <= shim.spin; tries++) {
		if (tries % YIELD == 0)
			sched_yield(); /* to a client on this CPU */
		received = receive(se, buf);
		waited = nanoseconds() - start;
	}
	secretfs_shim_spun = received == -EINTR;
	return received;
}

/*
 * Receive a request that Python has to answer; -EINTR, which makes pyfuse3 wait again, when there is none.
 * The descriptor is not blocking.
 */
API int fuse_session_receive_buf(struct fuse_session *se, struct fuse_buf *buf)
{
	const int fd = fuse_session_fd(se);

	for (int answered = 0; answered < BATCH; answered++) {
		const int received = receive_soon(se, buf);

		if (received <= 0 || !secretfs_shim_answers || !secretfs_fast_answer(fd, buf, &shim.window))
			return received;
		explicit_bzero(buf->mem, buf->size);
		secretfs_shim_forget_registers();
	}
	return -EINTR;
}

API void fuse_session_process_buf(struct fuse_session *se, const struct fuse_buf *buf)
{
	/* Both may change while the request is processed. */
	void *const request = buf->mem;
	const size_t size = buf->size;

	look_into(buf);
	if (request)
		secretfs_rewrite(request, size);
	real.process_buf(se, buf);
	if (request)
		explicit_bzero(request, size);
	secretfs_shim_forget_registers();
}

/* Also wipes what the reply was made from; one byte or none may be an object that all of Python shares. */
API int fuse_reply_buf(fuse_req_t req, const char *buf, size_t size)
{
	const int result = real.reply_buf(req, buf, size);
	const int from_window = buf >= shim.window.start && buf < shim.window.start + shim.window.size;

	if (!from_window && size > 1)
		explicit_bzero((void *)(uintptr_t)buf, size);
	return result;
}

static int noting_loss(int result, const struct fuse_file_info *fi)
{
	if (result)
		secretfs_shim_lost_handle = fi->fh;
	return result;
}

API int fuse_reply_open(fuse_req_t req, const struct fuse_file_info *fi)
{
	return noting_loss(real.reply_open(req, fi), fi);
}

API int fuse_reply_create(fuse_req_t req, const struct fuse_entry_param *e, const struct fuse_file_info *fi)
{
	return noting_loss(real.reply_create(req, e, fi), fi);
}
