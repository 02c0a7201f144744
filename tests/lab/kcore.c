/*
 * Searches all physical memory, through the kernel's direct map (/proc/kcore), for byte strings that it never holds.
 *
 *     kcore KEY NAME=HEX...
 *
 * HEX is a needle whose every byte was XORed with KEY (two hex digits), so that neither the arguments nor this process's
 * memory have it in the clear. It is looked for in pieces of eight bytes; adjacent pieces make one place. A line of
 * output per needle: NAME, in how many places it or a piece of it was found, and the bytes of the longest one; then one
 * per place, up to SHOWN: `at NAME PHYSICAL LENGTH`; at last `searched BYTES`, without pages of zeros.
 *
 * What is read passes through the buffer here and one of the kernel's, both in the direct map too. A block with a hit is
 * therefore read once more page by page, with both wiped in between, and only that is counted.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PAGE = 4096, BLOCK = 1 << 20, PIECE = 8, NEEDLES = 64, LONGEST = 256, SHOWN = 8, SEGMENTS = 64 };

#define KERNEL_TEXT 0xffffffff80000000u /* the kernel image, mapped once more: not the direct map */

struct needle {
	char name[32];
	unsigned char masked[LONGEST];
	size_t pieces;
	size_t places, longest;
	uint64_t next_at; /* where the piece `next` would continue the last place */
	size_t next;
	uint64_t at[SHOWN];
	size_t length[SHOWN];
};

static struct needle needles[NEEDLES];
static size_t needle_count;
static uint64_t key; /* in each of its bytes */
static unsigned char beginnings[1 << 16]; /* by the first two masked bytes of a piece */
static unsigned char buffer[BLOCK + LONGEST] __attribute__((aligned(PAGE)));

static uint64_t load(const unsigned char *at)
{
	uint64_t value;

	memcpy(&value, at, sizeof value);
	return value;
}

static void add_needle(char *word)
{
	struct needle *one = &needles[needle_count];
	char *hex = strchr(word, '=');
	size_t length = hex ? strlen(hex + 1) / 2 : 0;

	if (needle_count == NEEDLES || length < PIECE || length > LONGEST || (size_t)(hex - word) >= sizeof one->name)
		errx(2, "not NAME=HEX of %d to %d bytes", PIECE, LONGEST);
	memcpy(one->name, word, (size_t)(hex - word));
	for (size_t i = 0; i < length; i++) {
		unsigned int byte;

		if (sscanf(hex + 1 + 2 * i, "%2x", &byte) != 1)
			errx(2, "%s: not hex", one->name);
		one->masked[i] = (unsigned char)byte;
	}
	one->pieces = length / PIECE;
	for (size_t i = 0; i < one->pieces; i++)
		beginnings[load(one->masked + i * PIECE) & 0xffff] = 1;
	needle_count++;
}

static void note(struct needle *one, size_t piece, uint64_t physical)
{
	size_t length = PIECE, place = one->places - 1;

	if (one->places && one->next == piece && one->next_at == physical) {
		if (place < SHOWN)
			length = one->length[place] += PIECE;
		else
			length = 0;
	} else if (++place < SHOWN) {
		one->at[place] = physical;
		one->length[place] = PIECE;
		one->places++;
	} else {
		one->places++;
	}
	if (length > one->longest)
		one->longest = length;
	one->next = piece + 1;
	one->next_at = physical + PIECE;
}

static int is_zero(const unsigned char *page)
{
	for (size_t i = 0; i < PAGE; i += 4 * sizeof(uint64_t))
		if (load(page + i) | load(page + i + 8) | load(page + i + 16) | load(page + i + 24))
			return 0;
	return 1;
}

/* Look at one page; pieces that begin in it may end behind it. `count`: note what is found. */
static int search_page(const unsigned char *page, uint64_t physical, int count)
{
	int found = 0;

	for (size_t i = 0; i < PAGE; i++) {
		uint64_t value;

		if (!beginnings[(page[i] | page[i + 1] << 8) ^ (int)(key & 0xffff)])
			continue;
		value = load(page + i) ^ key;
		for (size_t n = 0; n < needle_count; n++) {
			for (size_t piece = 0; piece < needles[n].pieces; piece++) {
				if (value != load(needles[n].masked + piece * PIECE))
					continue;
				found = 1;
				if (count)
					note(&needles[n], piece, physical + i);
			}
		}
	}
	return found;
}

/* Fill the buffer: `size` bytes, and some of what follows. What cannot be read is zero. */
static void fill(int fd, off_t position, size_t size)
{
	memset(buffer, 0, sizeof buffer);
	for (size_t done = 0; done < size + LONGEST;) {
		const ssize_t got = pread(fd, buffer + done, size + LONGEST - done, position + (off_t)done);

		if (got <= 0)
			break;
		done += (size_t)got;
	}
}

/* Read a block once more, so that no copy of what is found is made that could be found as well. */
static void count_exactly(int fd, const Elf64_Phdr *segment, size_t offset, size_t size)
{
	for (size_t i = 0; i < size; i += PAGE) {
		fill(fd, (off_t)(segment->p_offset + offset + i), PAGE);
		if (search_page(buffer, segment->p_paddr + offset + i, 1))
			fill(fd, (off_t)segment->p_offset, PAGE); /* something else passes through the kernel's buffer */
	}
}

static uint64_t search_segment(int fd, const Elf64_Phdr *segment)
{
	uint64_t searched = 0;

	for (size_t offset = 0; offset < segment->p_filesz; offset += BLOCK) {
		const size_t left = segment->p_filesz - offset, size = left < BLOCK ? left : BLOCK;
		int found = 0;

		fill(fd, (off_t)(segment->p_offset + offset), size);
		for (size_t i = 0; i < size; i += PAGE) {
			if (is_zero(buffer + i))
				continue;
			searched += PAGE;
			found |= search_page(buffer + i, segment->p_paddr + offset + i, 0);
		}
		if (found)
			count_exactly(fd, segment, offset, size);
	}
	return searched;
}

static uint64_t search_memory(int fd)
{
	static Elf64_Phdr table[SEGMENTS];
	Elf64_Ehdr head;
	uint64_t searched = 0;

	if (pread(fd, &head, sizeof head, 0) != sizeof head || head.e_phnum > SEGMENTS)
		errx(1, "/proc/kcore is not as expected");
	if (pread(fd, table, head.e_phnum * sizeof *table, (off_t)head.e_phoff) != (ssize_t)(head.e_phnum * sizeof *table))
		err(1, "/proc/kcore");
	for (size_t i = 0; i < head.e_phnum; i++)
		if (table[i].p_type == PT_LOAD && table[i].p_paddr != (Elf64_Addr)-1 && table[i].p_vaddr < KERNEL_TEXT)
			searched += search_segment(fd, &table[i]);
	return searched;
}

int main(int argc, char **argv)
{
	const int fd = open("/proc/kcore", O_RDONLY | O_CLOEXEC);
	uint64_t searched;

	if (argc < 3)
		errx(2, "usage: kcore KEY NAME=HEX...");
	if (fd < 0)
		err(1, "/proc/kcore");
	key = strtoul(argv[1], NULL, 16) * 0x0101010101010101u;
	for (int i = 2; i < argc; i++)
		add_needle(argv[i]);
	searched = search_memory(fd);
	for (size_t n = 0; n < needle_count; n++) {
		printf("%s %zu %zu\n", needles[n].name, needles[n].places, needles[n].longest);
		for (size_t i = 0; i < needles[n].places && i < SHOWN; i++)
			printf("at %s %#lx %zu\n", needles[n].name, needles[n].at[i], needles[n].length[i]);
	}
	printf("searched %lu\n", searched);
	return 0;
}
