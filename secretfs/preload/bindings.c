/*
 * The calls of one library, bound to other functions: its table of addresses that the dynamic linker has filled in is
 * written to (elf(5), DT_JMPREL and DT_RELA). For libraries that allocate with malloc(3) and have no hook of their own.
 */
#define _GNU_SOURCE
#include "bindings.h"

#include "areas.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __aarch64__
#define CALL R_AARCH64_JUMP_SLOT
#define ADDRESS R_AARCH64_GLOB_DAT
#else
#define CALL R_X86_64_JUMP_SLOT
#define ADDRESS R_X86_64_GLOB_DAT
#endif

/* A table of a library: where a tag of its dynamic section points to. */
static const void *table(const struct link_map *map, ElfW(Sxword) tag)
{
	for (const ElfW(Dyn) *entry = map->l_ld; entry->d_tag != DT_NULL; entry++)
		if (entry->d_tag == tag)
			return (const void *)entry->d_un.d_ptr;
	return NULL;
}

static size_t number(const struct link_map *map, ElfW(Sxword) tag)
{
	return (size_t)(uintptr_t)table(map, tag);
}

/* Write an address, also where the page is read-only; close_again() makes it so again. */
static int write_address(void **slot, void *address)
{
	char *const page = (char *)((uintptr_t)slot & ~(PAGE - 1));

	if (protect_raw(page, PAGE, PROT_READ | PROT_WRITE))
		return 0;
	__atomic_store_n(slot, address, __ATOMIC_RELEASE);
	return 1;
}

/* Pages that the dynamic linker has made read-only (PT_GNU_RELRO) are so again. */
static int close_again(struct dl_phdr_info *info, size_t size, void *data)
{
	const struct link_map *const map = data;

	(void)size;
	if (info->dlpi_addr != map->l_addr)
		return 0;
	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *const part = &info->dlpi_phdr[i];
		const uintptr_t start = (info->dlpi_addr + part->p_vaddr) & ~(PAGE - 1);
		const uintptr_t end = (info->dlpi_addr + part->p_vaddr + part->p_memsz) & ~(PAGE - 1);

		if (part->p_type == PT_GNU_RELRO && end > start)
			protect_raw((void *)start, end - start, PROT_READ);
	}
	return 1;
}

static int change_in(const struct link_map *map, const ElfW(Rela) *entries, size_t size, const struct binding *binding)
{
	const ElfW(Sym) *const symbols = table(map, DT_SYMTAB);
	const char *const names = table(map, DT_STRTAB);
	int bound = 0;

	for (size_t i = 0; entries && i < size / sizeof *entries; i++) {
		const unsigned type = ELF64_R_TYPE(entries[i].r_info);
		const char *const name = names + symbols[ELF64_R_SYM(entries[i].r_info)].st_name;

		if ((type == CALL || type == ADDRESS) && !strcmp(name, binding->name))
			bound += write_address((void **)(map->l_addr + entries[i].r_offset), binding->function);
	}
	return bound;
}

int bindings_change(void *library, const struct binding *bindings, size_t count)
{
	struct link_map *map;
	int bound = 0;

	if (dlinfo(library, RTLD_DI_LINKMAP, &map) || !table(map, DT_SYMTAB) || !table(map, DT_STRTAB))
		return 0;
	for (size_t i = 0; i < count; i++) {
		bound += change_in(map, table(map, DT_JMPREL), number(map, DT_PLTRELSZ), &bindings[i]);
		bound += change_in(map, table(map, DT_RELA), number(map, DT_RELASZ), &bindings[i]);
	}
	dl_iterate_phdr(close_again, map);
	return bound;
}
