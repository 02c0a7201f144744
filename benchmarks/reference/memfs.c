/*
 * The reference that secretfs is measured against: what a C programmer writes first with libfuse's low-level interface.
 * One flat directory of regular files in ordinary memory (malloc), one thread, direct I/O, nothing locked, nothing wiped.
 *
 *     memfs [-f] [-o OPTIONS] MOUNTPOINT
 */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 35

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define BUCKETS 65536
#define PAGE ((size_t)4096)
#define TIMEOUT 300.0 /* seconds for which the kernel may keep names and attributes: pyfuse3's default */

struct file {
	struct file *next; /* in its bucket */
	char *name;        /* NULL once unlinked */
	char *data;
	size_t capacity;
	uint64_t references; /* of the kernel: lookups not yet forgotten, and open handles */
	struct stat stat;
};

static struct file *buckets[BUCKETS];
static struct stat root;
static uint64_t count;

static struct timespec now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_REALTIME, &time);
	return time;
}

static struct file *file_of(fuse_ino_t ino)
{
	return (struct file *)(uintptr_t)ino;
}

static struct file **find(const char *name)
{
	uint32_t hash = 2166136261u; /* FNV-1a */
	struct file **link;

	for (const char *c = name; *c; c++)
		hash = (hash ^ (unsigned char)*c) * 16777619u;
	for (link = &buckets[(hash ^ hash >> 16) % BUCKETS]; *link; link = &(*link)->next)
		if (!strcmp((*link)->name, name))
			break;
	return link;
}

static void drop(struct file *file, uint64_t references)
{
	file->references -= references;
	if (file->references || file->name)
		return;
	free(file->data);
	free(file);
}

/* 0, or an errno. What is new is zero. */
static int resize(struct file *file, size_t size)
{
	const size_t old = (size_t)file->stat.st_size;

	if (size > file->capacity) {
		const size_t capacity = size > 2 * file->capacity ? size : 2 * file->capacity;
		/* Whole pages at page boundaries: what malloc gives can be three times as slow to copy to (4K aliasing). */
		char *data = capacity < PAGE ? malloc(capacity) : aligned_alloc(PAGE, (capacity + PAGE - 1) / PAGE * PAGE);

		if (!data)
			return ENOSPC;
		if (old)
			memcpy(data, file->data, old);
		free(file->data);
		file->data = data;
		file->capacity = capacity;
	}
	if (size > old)
		memset(file->data + old, 0, size - old);
	file->stat.st_size = (off_t)size;
	file->stat.st_blocks = (blkcnt_t)((size + 511) / 512);
	return 0;
}

static struct fuse_entry_param entry_of(struct file *file)
{
	struct fuse_entry_param entry = {
		.ino = (uintptr_t)file, .attr = file->stat, .attr_timeout = TIMEOUT, .entry_timeout = TIMEOUT};

	file->references++;
	return entry;
}

static void fs_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct file *file = parent == FUSE_ROOT_ID ? *find(name) : NULL;
	struct fuse_entry_param entry;

	if (!file) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	entry = entry_of(file);
	fuse_reply_entry(req, &entry);
}

static void fs_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
	if (ino != FUSE_ROOT_ID)
		drop(file_of(ino), nlookup);
	fuse_reply_none(req);
}

static void fs_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)fi;
	fuse_reply_attr(req, ino == FUSE_ROOT_ID ? &root : &file_of(ino)->stat, TIMEOUT);
}

static void fs_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
	struct stat *stat = ino == FUSE_ROOT_ID ? &root : &file_of(ino)->stat;
	int error = 0;

	(void)fi;
	if (to_set & FUSE_SET_ATTR_SIZE)
		error = ino == FUSE_ROOT_ID ? EISDIR : resize(file_of(ino), (size_t)attr->st_size);
	if (error) {
		fuse_reply_err(req, error);
		return;
	}
	if (to_set & FUSE_SET_ATTR_MODE)
		stat->st_mode = (stat->st_mode & S_IFMT) | (attr->st_mode & ~(mode_t)S_IFMT);
	if (to_set & FUSE_SET_ATTR_UID)
		stat->st_uid = attr->st_uid;
	if (to_set & FUSE_SET_ATTR_GID)
		stat->st_gid = attr->st_gid;
	stat->st_ctim = now();
	if (to_set & FUSE_SET_ATTR_ATIME)
		stat->st_atim = to_set & FUSE_SET_ATTR_ATIME_NOW ? stat->st_ctim : attr->st_atim;
	if (to_set & FUSE_SET_ATTR_MTIME)
		stat->st_mtim = to_set & FUSE_SET_ATTR_MTIME_NOW ? stat->st_ctim : attr->st_mtim;
	fuse_reply_attr(req, stat, TIMEOUT);
}

static void fs_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
	struct file **link = find(name);
	struct file *file = parent == FUSE_ROOT_ID && !*link ? calloc(1, sizeof *file) : NULL;
	struct fuse_entry_param entry;

	if (!file || !(file->name = strdup(name))) {
		fuse_reply_err(req, parent != FUSE_ROOT_ID ? ENOTDIR : *link ? EEXIST : ENOMEM);
		free(file);
		return;
	}
	file->stat.st_ino = (uintptr_t)file;
	file->stat.st_mode = S_IFREG | (mode & 07777);
	file->stat.st_nlink = 1;
	file->stat.st_uid = fuse_req_ctx(req)->uid;
	file->stat.st_gid = fuse_req_ctx(req)->gid;
	file->stat.st_atim = file->stat.st_mtim = file->stat.st_ctim = now();
	root.st_mtim = root.st_ctim = file->stat.st_ctim;
	*link = file;
	count++;
	fi->fh = (uintptr_t)file;
	fi->direct_io = 1;
	file->references++;
	entry = entry_of(file);
	fuse_reply_create(req, &entry, fi);
}

static void fs_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct file **link = find(name);
	struct file *file = *link;

	if (parent != FUSE_ROOT_ID || !file) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	*link = file->next;
	free(file->name);
	file->name = NULL;
	file->stat.st_nlink = 0;
	file->stat.st_ctim = root.st_mtim = root.st_ctim = now();
	count--;
	drop(file, 0);
	fuse_reply_err(req, 0);
}

static void fs_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct file *file = file_of(ino);

	file->references++;
	fi->fh = (uintptr_t)file;
	fi->direct_io = 1;
	fuse_reply_open(req, fi);
}

static void fs_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	drop((struct file *)(uintptr_t)fi->fh, 1);
	fuse_reply_err(req, 0);
}

static void fs_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
	const struct file *file = (struct file *)(uintptr_t)fi->fh;
	const size_t end = (size_t)file->stat.st_size, start = (size_t)offset;

	(void)ino;
	if (start >= end)
		fuse_reply_buf(req, NULL, 0);
	else
		fuse_reply_buf(req, file->data + start, size < end - start ? size : end - start);
}

static void fs_write(fuse_req_t req, fuse_ino_t ino, const char *data, size_t size, off_t offset,
		     struct fuse_file_info *fi)
{
	struct file *file = (struct file *)(uintptr_t)fi->fh;
	const size_t end = (size_t)offset + size;
	const int error = end > (size_t)file->stat.st_size ? resize(file, end) : 0;

	(void)ino;
	if (error) {
		fuse_reply_err(req, error);
		return;
	}
	memcpy(file->data + offset, data, size);
	file->stat.st_mtim = file->stat.st_ctim = now();
	fuse_reply_write(req, size);
}

/* Entries are numbered by their place in the table; enough for one reader while nothing changes. */
static void fs_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t offset, struct fuse_file_info *fi)
{
	char *buffer = malloc(size);
	size_t used = 0;
	off_t position = 0;

	(void)ino, (void)fi;
	if (!buffer) {
		fuse_reply_err(req, ENOMEM);
		return;
	}
	for (int i = -2; i < BUCKETS; i++) {
		const struct file *file = i < 0 ? NULL : buckets[i];

		do {
			const char *name = i == -2 ? "." : i == -1 ? ".." : file ? file->name : NULL;
			const size_t space = size - used;

			if (name && position++ >= offset) {
				const size_t taken = fuse_add_direntry(req, buffer + used, space, name,
								       file ? &file->stat : &root, position);

				if (taken > space)
					goto full;
				used += taken;
			}
			file = file ? file->next : NULL;
		} while (file);
	}
full:
	fuse_reply_buf(req, buffer, used);
	free(buffer);
}

static void fs_statfs(fuse_req_t req, fuse_ino_t ino)
{
	const struct statvfs data = {.f_bsize = 4096, .f_frsize = 4096, .f_blocks = 1 << 20, .f_bfree = 1 << 20,
				     .f_bavail = 1 << 20, .f_files = 1 << 20, .f_ffree = (1 << 20) - count,
				     .f_namemax = 255};

	(void)ino;
	fuse_reply_statfs(req, &data);
}

/* fuse_session_loop(), but after a request it polls for the next one for so many microseconds before it sleeps. */
static int spin_loop(struct fuse_session *session, long microseconds)
{
	struct pollfd device = {.fd = fuse_session_fd(session), .events = POLLIN};
	struct fuse_buf request = {.mem = NULL};
	struct timespec last = now(), here;
	int size = 0;

	if (fcntl(device.fd, F_SETFL, O_RDWR | O_NONBLOCK))
		return 1;
	while (!fuse_session_exited(session)) {
		size = fuse_session_receive_buf(session, &request);
		if (size > 0) {
			fuse_session_process_buf(session, &request);
			last = now();
		} else if (size != -EAGAIN && size != -EINTR) {
			break;
		} else {
			here = now();
			if ((here.tv_sec - last.tv_sec) * 1000000 + (here.tv_nsec - last.tv_nsec) / 1000 < microseconds)
				sched_yield();
			else
				poll(&device, 1, -1);
		}
	}
	free(request.mem);
	return size < 0 && size != -EINTR && size != -EAGAIN && size != -ENODEV;
}

int main(int argc, char *argv[])
{
	const char *spin = getenv("MEMFS_SPIN");
	static const struct fuse_lowlevel_ops operations = {
		.lookup = fs_lookup, .forget = fs_forget, .getattr = fs_getattr, .setattr = fs_setattr,
		.create = fs_create, .unlink = fs_unlink, .open = fs_open, .release = fs_release, .read = fs_read,
		.write = fs_write, .readdir = fs_readdir, .statfs = fs_statfs,
	};
	struct fuse_args args = FUSE_ARGS_INIT(argc, argv);
	struct fuse_cmdline_opts options;
	struct fuse_session *session;
	int result = 1;

	root = (struct stat){.st_ino = FUSE_ROOT_ID, .st_mode = S_IFDIR | 0700, .st_nlink = 2, .st_uid = getuid(),
			     .st_gid = getgid()};
	root.st_atim = root.st_mtim = root.st_ctim = now();
	if (fuse_parse_cmdline(&args, &options) || !options.mountpoint)
		return 2;
	session = fuse_session_new(&args, &operations, sizeof operations, NULL);
	if (session && !fuse_set_signal_handlers(session)) {
		if (!fuse_session_mount(session, options.mountpoint)) {
			fuse_daemonize(options.foreground);
			result = (spin ? spin_loop(session, atol(spin)) : fuse_session_loop(session)) != 0;
			fuse_session_unmount(session);
		}
		fuse_remove_signal_handlers(session);
	}
	if (session)
		fuse_session_destroy(session);
	free(options.mountpoint);
	fuse_opt_free_args(&args);
	return result;
}
