/* What the tests of `secretfs run` start: makes secrets and says what came of it, one line each on stdout.
 *
 *   run_secret once            one secret: sized, mapped, touched, and read through its descriptor; exit code 7
 *   run_secret loop            a secret that stays mapped; then for each line on stdin another one is made
 *   run_secret map BYTES       one secret of that size is mapped
 *   run_secret fork            the same in two children and their parent
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const char *name(int failed) { return failed ? strerrorname_np(errno) : "ok"; }

static char *map(int fd, size_t size)
{
	char *memory = MAP_FAILED;

	if (ftruncate(fd, (off_t)size) == 0)
		memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	return memory;
}

static void once(void)
{
	char byte;
	int fd = (int)syscall(447, O_CLOEXEC);

	printf("made=%s", name(fd < 0));
	if (fd >= 0) {
		char *memory = map(fd, 4096);

		printf(" mapped=%s", name(memory == MAP_FAILED));
		if (memory != MAP_FAILED)
			memory[0] = 'x';
		printf(" read=%s", name(read(fd, &byte, 1) < 0));
		close(fd);
	}
	printf("\n");
}

static void loop(void)
{
	char line[16], *memory;
	int kept = (int)syscall(447, O_CLOEXEC);

	memory = map(kept, 4096);
	strcpy(memory, "alive");
	printf("pid %d\n", getpid());
	while (fgets(line, sizeof line, stdin)) {
		char byte;
		int fd = (int)syscall(447, O_CLOEXEC);

		printf("%s made=%s", memory, name(fd < 0));
		printf(" read=%s\n", name(read(kept, &byte, 1) < 0));
		if (fd >= 0)
			close(fd);
	}
}

int main(int count, char **words)
{
	setbuf(stdout, NULL);
	if (count > 1 && strcmp(words[1], "loop") == 0) {
		loop();
		return 5;
	}
	if (count > 2 && strcmp(words[1], "map") == 0) {
		printf("mapped=%s\n", name(map((int)syscall(447, 0), strtoul(words[2], NULL, 10)) == MAP_FAILED));
		return 0;
	}
	if (count > 1 && strcmp(words[1], "fork") == 0) {
		for (int child = 0; child < 2; child++)
			if (fork() == 0) {
				once();
				_exit(0);
			} else {
				wait(NULL);
			}
	}
	once();
	return 7;
}
