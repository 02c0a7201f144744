/* What the parts of the probe share: how an observation is printed, and areas of secret memory to observe.
 *
 * Each observation is one line `name=result errno`: -1 with the errno's name, anything else with 0. Names never repeat,
 * and nothing that differs from run to run (addresses, inode numbers, process ids) is printed. */
#pragma once

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define PAGE 4096UL

#ifndef SYS_memfd_secret
#define SYS_memfd_secret 447
#endif

/* Print the result of a call: a number. */
#define SAY(name, call) (errno = 0, say(name, (long)(call)))
/* The same for a call that returns a descriptor: 0 and it is closed, or -1. */
#define SAY_OPENED(name, call) (errno = 0, say(name, opened(call)))
/* The same for a call that returns an address: 0 and it is unmapped again, or -1. */
#define SAY_MAPPED(name, call, size) (errno = 0, say(name, mapped(call, size)))

struct area {
    int fd;
    char *map;
    size_t size;
};

void say(const char *name, long result);
void say_text(const char *name, const char *text);
long opened(int fd);
long mapped(void *map, size_t size);

/* memfd_secret(2). */
int secret(unsigned long flags);
/* A secret of that size without a mapping, or with one to read and write; each byte of it is 's'. Ends the probe if
 * that fails. */
struct area sized(size_t size);
struct area area(size_t size);
void drop(struct area *gone);
void *map_shared(const struct area *of, int protection);

/* How a function ends in a forked child: its result (0..127), or -1 and the name of the signal. */
void say_fate(const char *name, int (*function)(void *), void *argument);
/* Fork; the child runs the function, with its result as exit code. -1, or the exit code. */
int in_child(int (*function)(void *), void *argument);

/* Whether all bytes of a piece are `byte`. */
int filled(const char *piece, char byte, size_t size);
/* Send a descriptor over a socket of AF_UNIX; take one. */
void send_fd(int socket, int fd);
int receive_fd(int socket);

/* The parts. */
void probe_create(void);
void probe_descriptor(void);
void probe_file(void);
void probe_path(void);
void probe_mapping(void);
void probe_advice(void);
void probe_access(void);
void probe_tracing(void);
void probe_devices(void);
void probe_life(void);
void probe_passing(void);
void probe_limits(void);

/* What the probe's own execve() leads to: probe exec FD, probe locks. */
int after_exec(int argc, char **argv);
