/* power_loss_usage.c - see power_loss_usage.h. */
#include "power_loss_usage.h"

#include <dirent.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* The lock is there while a process holds the directory. */
static bool is_documented(const char *path) {
    static const char *const names[] = {"lock", "index", "segments", "index/data.mdb",
        "index/data.mdb-lock", "index/state", "segments/journal"};
    uint32_t id, used = 0;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        if (strcmp(path, names[i]) == 0)
            return true;
    }
    return sscanf(path, "segments/%8u.seg%n", &id, &used) == 1 && path[used] == '\0' &&
           used == strlen("segments/") + 12;
}

uint64_t power_usage(const char *root, const char *folder, char stray[64]) {
    char path[700];
    uint64_t bytes = 0;
    snprintf(path, sizeof(path), "%s/%s", root, folder);
    DIR *directory = opendir(path);
    struct dirent *found;
    while (directory != NULL && (found = readdir(directory)) != NULL) {
        struct stat file;
        char name[330];
        if (strcmp(found->d_name, ".") == 0 || strcmp(found->d_name, "..") == 0)
            continue;
        snprintf(name, sizeof(name), "%s%s%s", folder, folder[0] != '\0' ? "/" : "", found->d_name);
        if (!is_documented(name))
            snprintf(stray, 64, "%.63s", name);
        snprintf(path, sizeof(path), "%s/%s", root, name);
        if (stat(path, &file) == 0)
            bytes += (uint64_t)file.st_blocks * 512;
        if (found->d_type == DT_DIR)
            bytes += power_usage(root, name, stray);
    }
    if (directory != NULL)
        closedir(directory);
    return bytes;
}
