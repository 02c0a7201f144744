/* Objects that are loaded, each once; looked at again after something was unloaded, since another may lie there then. */
#define _GNU_SOURCE
#include "loaded.h"

#include <elf.h>
#include <link.h>
#include <string.h>

#define OBJECTS 2048
#define LEAST_CONSTANTS (1 << 18)

static uintptr_t seen[OBJECTS];
static size_t seen_count;
static unsigned long long unloaded;

const char *object_name(const struct object *object)
{
	const char *const slash = strrchr(object->path, '/');

	return !object->path[0] ? "this program" : slash ? slash + 1 : object->path;
}

static int is_seen(uintptr_t start)
{
	for (size_t i = 0; i < seen_count; i++)
		if (seen[i] == start)
			return 1;
	return 0;
}

/* Where it lies, from its first to its last segment. */
static void measure(const struct dl_phdr_info *info, struct object *object)
{
	object->start = UINTPTR_MAX;
	object->end = 0;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *const part = &info->dlpi_phdr[i];
		const uintptr_t start = info->dlpi_addr + part->p_vaddr;

		if (part->p_type != PT_LOAD)
			continue;
		if (start < object->start)
			object->start = start;
		if (start + part->p_memsz > object->end)
			object->end = start + part->p_memsz;
	}
}

/* "OpenSSL 1.1.1w  11 Sep 2023", "OpenSSL 3.0.19 27 Jan 2026" */
static int has_version(const char *at, const char *end)
{
	static const char name[] = "OpenSSL ";

	while ((at = memmem(at, (size_t)(end - at), name, sizeof name - 1)) && end - at > 32) {
		at += sizeof name - 1;
		if (at[0] >= '1' && at[0] <= '9' && at[1] == '.' && at[3] == '.' && memmem(at, 20, " 20", 3))
			return 1;
	}
	return 0;
}

/* Whether it has constants in a segment of their own; older linkers put them beside the code. */
static int has_constants(const struct dl_phdr_info *info)
{
	for (int i = 0; i < info->dlpi_phnum; i++)
		if (info->dlpi_phdr[i].p_type == PT_LOAD && info->dlpi_phdr[i].p_flags == PF_R)
			return 1;
	return 0;
}

static int has_openssl(const struct dl_phdr_info *info)
{
	const ElfW(Word) flags = has_constants(info) ? PF_R : PF_R | PF_X;

	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *const part = &info->dlpi_phdr[i];
		const char *const start = (const char *)(info->dlpi_addr + part->p_vaddr);

		if (part->p_type == PT_LOAD && part->p_flags == flags && part->p_filesz >= LEAST_CONSTANTS &&
		    has_version(start, start + part->p_filesz))
			return 1;
	}
	return 0;
}

static int find_new(struct dl_phdr_info *info, size_t size, void *data)
{
	struct object *const object = data;

	(void)size;
	if (info->dlpi_subs != unloaded) {
		unloaded = info->dlpi_subs;
		seen_count = 0;
	}
	measure(info, object);
	if (is_seen(object->start) || seen_count == OBJECTS)
		return 0;
	seen[seen_count++] = object->start;
	strncpy(object->path, info->dlpi_name, sizeof object->path - 1);
	object->openssl = has_openssl(info);
	return 1;
}

int next_new_object(struct object *object)
{
	object->path[sizeof object->path - 1] = 0;
	return dl_iterate_phdr(find_new, object);
}
