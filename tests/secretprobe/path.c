/* The descriptor by a name: what /proc shows of it, and what opens through /proc. */
#include "probe.h"

#include <sys/inotify.h>

static char link_of[64];

static void reopened(void) {
    char other[64];
    struct stat said;
    SAY_OPENED("reopen.read", open(link_of, O_RDONLY));
    SAY_OPENED("reopen.path", open(link_of, O_PATH));
    snprintf(other, sizeof other, "/dev/fd/%s", link_of + strlen("/proc/self/fd/"));
    SAY_OPENED("reopen.dev_fd", open(other, O_RDONLY));
    int path = open(link_of, O_PATH);
    SAY("path.read", read(path, other, 1));
    SAY("path.map", mmap(NULL, PAGE, PROT_READ, MAP_SHARED, path, 0) == MAP_FAILED ? -1 : 0);
    SAY("path.stat", fstat(path, &said));
    SAY("path.size", said.st_size);
    close(path);
}

static void by_name(const struct area *of) {
    char text[64] = "";
    struct stat said;
    if (readlink(link_of, text, sizeof text - 1) == -1)
        exit(2);
    say_text("readlink.text", text);
    SAY("stat", stat(link_of, &said));
    SAY("access", access(link_of, R_OK | W_OK));
    SAY("truncate", truncate(link_of, (off_t)of->size));
    SAY("chmod", chmod(link_of, 0600));
    SAY("rename", rename(link_of, "/tmp/probe-never"));
    SAY("execve", execve(link_of, (char *[]){link_of, NULL}, (char *[]){NULL}));
    int watch = inotify_init1(IN_CLOEXEC);
    SAY("inotify", inotify_add_watch(watch, link_of, IN_MODIFY));
    close(watch);
}

static void handles(int fd) {
    union {
        struct file_handle head;
        char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
    } handle = {.head = {.handle_bytes = MAX_HANDLE_SZ}};
    int mount;
    SAY("name_to_handle_at", name_to_handle_at(fd, "", &handle.head, &mount, AT_EMPTY_PATH));
    SAY("linkat", linkat(AT_FDCWD, link_of, AT_FDCWD, "probe-linked", AT_SYMLINK_FOLLOW));
    unlink("probe-linked");
}

/* The line of /proc/self/maps or smaps for an address. */
static FILE *seek_map(const char *file, const char *map, char *line, int size) {
    char start[32];
    FILE *maps = fopen(file, "re");
    snprintf(start, sizeof start, "%08lx-", (unsigned long)map);
    while (fgets(line, size, maps) != NULL)
        if (strncmp(line, start, strlen(start)) == 0)
            break;
    return maps;
}

static void in_maps(const struct area *of) {
    char line[512] = "", rights[8] = "", name[64] = "", offset[32] = "";
    fclose(seek_map("/proc/self/maps", of->map, line, sizeof line));
    sscanf(line, "%*s %7s %31s %*s %*s %63[^\n]", rights, offset, name);
    say_text("maps.rights", rights);
    say_text("maps.offset", offset);
    say_text("maps.name", name);
}

static void in_smaps(const struct area *of) {
    char line[512] = "", word[64];
    FILE *smaps = seek_map("/proc/self/smaps", of->map, line, sizeof line);
    while (fgets(line, sizeof line, smaps) != NULL) {
        if (sscanf(line, "Locked: %63s", word) == 1)
            say_text("smaps.locked", word);
        if (sscanf(line, "Rss: %63s", word) == 1)
            say_text("smaps.rss", word);
        if (strncmp(line, "VmFlags:", 8) == 0) {
            SAY("smaps.flag_shared", strstr(line, " sh ") != NULL);
            SAY("smaps.flags_locked_dontdump", strstr(line, " lo ") != NULL && strstr(line, " dd ") != NULL);
            break;
        }
    }
    fclose(smaps);
}

static void map_files(const struct area *of) {
    char name[96];
    snprintf(name, sizeof name, "/proc/self/map_files/%lx-%lx", (unsigned long)of->map,
             (unsigned long)of->map + of->size);
    SAY_OPENED("reopen.map_files", open(name, O_RDWR));
}

static long locked_kib(void) {
    char line[256];
    long found = -1;
    FILE *status = fopen("/proc/self/status", "re");
    while (fgets(line, sizeof line, status) != NULL)
        if (sscanf(line, "VmLck: %ld", &found) == 1)
            break;
    fclose(status);
    return found;
}

void probe_path(void) {
    long before = locked_kib();
    struct area two = area(2 * PAGE);
    snprintf(link_of, sizeof link_of, "/proc/self/fd/%d", two.fd);
    SAY("status.locked_kib", locked_kib() - before);
    reopened();
    by_name(&two);
    handles(two.fd);
    in_maps(&two);
    in_smaps(&two);
    map_files(&two);
    SAY("path.nothing_changed", filled(two.map, 's', two.size));
    drop(&two);
    SAY("status.locked_kib_after", locked_kib() - before);
}
