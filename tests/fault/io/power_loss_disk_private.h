/* power_loss_disk_private.h - what power_loss_disk.c and power_loss_image.c share. */
#ifndef KVL_POWER_LOSS_DISK_PRIVATE_H
#define KVL_POWER_LOSS_DISK_PRIVATE_H

#include <stdio.h>
#include <stdlib.h>

#include "power_loss_disk.h"

#define POWER_PAGE 4096u
#define POWER_NAMES_MAX 64u

#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* An entry that a power loss may undo. */
struct pending {
    uint32_t entry;
    uint32_t done_at; /* index of its DONE; 0: under way */
    uint32_t journal; /* its number in the journal; 0: a write */
    bool must;
};

struct node {
    bool folder;
    uint8_t *bytes; /* durable content */
    uint64_t size, capacity;
    uint8_t *dirty; /* a byte a page: the file below root may differ */
    uint64_t ino;   /* of the file below root; 0: none */
    struct pending *pending;
    uint32_t pending_count, pending_capacity;
};

/* One metadata change. */
struct journal_op {
    uint32_t entry, node, folder;
};

struct power_disk {
    char root[256];
    struct node *nodes[POWER_NODES_MAX];
    struct power_name names[POWER_NAMES_MAX], image_names[POWER_NAMES_MAX];
    uint32_t name_count, image_name_count;
    struct journal_op *journal; /* number 1 first */
    uint32_t journal_count, journal_capacity;
    uint32_t journal_must; /* so many are durable */
    uint32_t journal_done; /* so many are in names */
    uint32_t next;
};

/* The file below root may differ from what is durable there. */
void power_node_mark(struct node *node, uint64_t offset, uint64_t bytes);
bool power_entry_is_name(const struct power_entry *entry);
/* Applies CREATE, RENAME or REMOVE. */
void power_names_apply(struct power_name *names, uint32_t *count, const struct power_log *log,
    const struct power_entry *entry);

#endif
