/* harness.h - daemons of their own for tests, and the few steps that most tests begin with. */
#ifndef KVL_TEST_HARNESS_H
#define KVL_TEST_HARNESS_H

#include <sys/types.h>

#include "kvloft.h"

#define TEST_BLOCK_BYTES 8192u

struct test_daemon {
    pid_t pid; /* 0: not running */
    char directory[64];
    char address[96];
    char disk[96];    /* passed on when with_disk */
    char output[512]; /* the first line it printed */
    bool with_disk;
    int device_mib;
};

/* A directory of its own; start may follow several times. */
void daemon_init(struct test_daemon *daemon);
/* False when it did not say "ready"; it is gone then. */
bool daemon_start(struct test_daemon *daemon);
int daemon_stop(struct test_daemon *daemon); /* SIGTERM; its exit status */
void daemon_kill(struct test_daemon *daemon);
void daemon_remove(struct test_daemon *daemon); /* kills and deletes the directory */

/* For a server that is a thread of this process: ipc:// in a folder of its own, always the same. */
const char *own_address(void);
struct kvl_client *connect_own(const char *name);

/* The calling test fails when they do not succeed. */
struct kvl_client *connect_to(const struct test_daemon *daemon, const char *name);
struct kvl_namespace_info open_opaque(struct kvl_client *client);
struct kvl_key opaque_key(const struct kvl_namespace_info *info, uint32_t number);
/* Allocates, fills with bytes that depend on the number, seals; returns the lease. */
uint64_t store_block(
    struct kvl_client *client, const struct kvl_namespace_info *info, uint32_t number);
void fill_pattern(uint8_t *data, uint32_t number);
bool has_pattern(const uint8_t *data, uint32_t number);
/* Until it is visible (sealing is behind); false after half a minute. At most 64 keys. */
bool wait_visible(struct kvl_client *client, const struct kvl_key *keys, uint32_t count);

#endif
