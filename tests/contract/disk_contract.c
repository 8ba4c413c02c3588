/* The contract over the disk tier, on io_uring where there is one and on threads, in a folder of
 * its own under TMPDIR. */
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "disk/disk_tier.h"
#include "tier_contract.h"

struct disk_contract {
    struct kvl_tier_contract contract; /* first */
    enum kvl_disk_io io;
    char path[256];
};

static struct disk_contract *disk_contract_of(const struct kvl_tier_contract *contract) {
    return kvl_container_of((struct kvl_tier_contract *)contract, struct disk_contract, contract);
}

static kvl_err make(const struct kvl_tier_contract *contract, struct kvl_tier **out) {
    struct disk_contract *disk = disk_contract_of(contract);
    const char *tmp = getenv("TMPDIR");
    snprintf(disk->path, sizeof disk->path, "%s/kvloft-contract-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(disk->path))
        return KVL_ERR_IO;
    const struct kvl_disk_options options = {.path = disk->path,
        .capacity_bytes = contract->capacity_bytes,
        .persist_ms = 5, /* the suite waits for each block */
        .io = disk->io};
    struct kvl_catalog *catalog;
    struct kvl_errmsg msg = {""};
    kvl_err err = kvl_disk_tier_create(&options, out, &catalog, &msg);
    if (err != KVL_OK)
        fprintf(stderr, "%s\n", msg.text);
    return err;
}

static int remove_entry(const char *path, const struct stat *stat, int type, struct FTW *ftw) {
    (void)stat, (void)type, (void)ftw;
    return remove(path);
}

static void clean(const struct kvl_tier_contract *contract) {
    nftw(disk_contract_of(contract)->path, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

/* Flips a bit in the middle one of a file's pages that are not all zero; false if there is none. */
static bool damage_file(const char *path) {
    static char page[KVL_PAGE_BYTES];
    static const char zero[KVL_PAGE_BYTES];
    static off_t used[1u << 16];
    size_t count = 0;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return false;
    for (off_t at = 0; pread(fd, page, sizeof page, at) == sizeof page; at += sizeof page) {
        if (memcmp(page, zero, sizeof page) != 0 && count < sizeof used / sizeof used[0])
            used[count++] = at;
    }
    bool damaged = false;
    if (count > 0 && pread(fd, page, 1, used[count / 2] + 777) == 1) {
        page[0] ^= 0x10;
        damaged = pwrite(fd, page, 1, used[count / 2] + 777) == 1 && fsync(fd) == 0;
    }
    close(fd);
    return damaged;
}

/* The suite has stored one block only, so whatever page is hit is that block's. */
static void damage(const struct kvl_tier_contract *contract, uint64_t location) {
    (void)location;
    char folder[300], path[600];
    snprintf(folder, sizeof folder, "%s/segments", disk_contract_of(contract)->path);
    DIR *dir = opendir(folder);
    struct dirent *entry;
    bool damaged = false;
    while (dir && (entry = readdir(dir)) != NULL) {
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        damaged = (entry->d_name[0] != '.' && damage_file(path)) || damaged;
    }
    if (dir)
        closedir(dir);
    if (!damaged)
        fprintf(stderr, "nothing to damage in %s\n", folder);
}

int main(void) {
    const struct kvl_tier_contract contract = {.name = "disk",
        .capacity_bytes = 32u << 20,
        .block_bytes = 300000,
        .persistent = true,
        .make = make,
        .damage = damage,
        .clean = clean};
    struct disk_contract best = {.contract = contract, .io = KVL_DISK_IO_AUTO};
    struct disk_contract threads = {.contract = contract, .io = KVL_DISK_IO_POSIX};
    threads.contract.name = "disk on threads";
    return kvl_tier_contract_run(&best.contract) + kvl_tier_contract_run(&threads.contract);
}
