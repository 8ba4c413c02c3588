#include <inttypes.h>
#include <string.h>

#include "cli.h"
#include "cuda_device.h"

static const char *const tier_names[KVL_TIER_COUNT] = KVL_TIER_NAMES;

struct status {
    struct kvl_store_report report;
    struct kvl_daemon_info daemon;
};

static json_t *tiers_json(const struct kvl_store_report *report) {
    json_t *tiers = json_object();
    for (int i = 0; i < KVL_TIER_COUNT; i++) {
        const struct kvl_tier_report *t = &report->tiers[i];
        json_object_set_new(tiers, tier_names[i],
            json_pack("{s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I}", "capacity_bytes",
                (json_int_t)t->capacity_bytes, "used_bytes", (json_int_t)t->used_bytes, "blocks",
                (json_int_t)t->blocks, "hits", (json_int_t)t->hits, "misses", (json_int_t)t->misses,
                "read_bytes", (json_int_t)t->read_bytes, "written_bytes",
                (json_int_t)t->written_bytes, "evicted_blocks", (json_int_t)t->evicted_blocks,
                "corrupt_blocks", (json_int_t)t->corrupt_blocks, "errors", (json_int_t)t->errors,
                "inflight", (json_int_t)t->inflight, "block_bytes", (json_int_t)t->block_bytes,
                "reserved_bytes", (json_int_t)t->reserved_bytes));
    }
    return tiers;
}

static json_t *clients_json(struct kvl_client *client) {
    json_t *list = json_array();
    struct kvl_client_report c;
    for (uint32_t i = 0; kvl_stats_client(client, i, &c) == KVL_OK; i++)
        json_array_append_new(list,
            json_pack("{s:s,s:I,s:b,s:I,s:I,s:I}", "name", c.name, "pid", (json_int_t)c.pid,
                "leaving", c.leaving, "read_leases", (json_int_t)c.read_leases, "write_leases",
                (json_int_t)c.write_leases, "leased_bytes", (json_int_t)c.leased_bytes));
    return list;
}

static json_t *tenants_json(struct kvl_client *client) {
    json_t *list = json_array();
    struct kvl_tenant_report t;
    for (uint32_t i = 0; kvl_stats_tenant(client, i, &t) == KVL_OK; i++) {
        json_t *tiers = json_object();
        for (int tier = 0; tier < KVL_TIER_COUNT; tier++)
            json_object_set_new(tiers, tier_names[tier],
                json_pack("{s:I,s:I,s:I,s:I,s:I,s:I}", "quota_bytes",
                    (json_int_t)t.tiers[tier].quota_bytes, "used_bytes",
                    (json_int_t)t.tiers[tier].used_bytes, "blocks",
                    (json_int_t)t.tiers[tier].blocks, "hits", (json_int_t)t.tiers[tier].hits,
                    "misses", (json_int_t)t.tiers[tier].misses, "evicted_blocks",
                    (json_int_t)t.tiers[tier].evicted_blocks));
        json_array_append_new(list,
            json_pack("{s:s,s:b,s:I,s:I,s:o}", "name", t.name, "admitted", t.admitted, "clients",
                (json_int_t)t.clients, "sessions", (json_int_t)t.sessions, "tiers", tiers));
    }
    return list;
}

static json_t *warnings_json(struct kvl_client *client) {
    json_t *list = json_array();
    char text[256];
    for (uint32_t i = 0; kvl_stats_warning(client, i, text, sizeof text) == KVL_OK; i++)
        json_array_append_new(list, json_string(text));
    return list;
}

/* Resident memory of the daemon, file pages aside: those are the page cache's. 0: not to be had
 * from here (over tcp). */
static uint64_t memory_bytes(const struct status *s) {
    char path[64], line[256];
    unsigned long long kib, sum_kib = 0;
    snprintf(path, sizeof path, "/proc/%" PRIu32 "/status", s->daemon.pid);
    FILE *file = strncmp(s->daemon.address, "ipc://", 6) == 0 ? fopen(path, "re") : NULL;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "RssAnon: %llu", &kib) == 1 || sscanf(line, "RssShmem: %llu", &kib) == 1)
            sum_kib += kib;
    if (file)
        fclose(file);
    return sum_kib * 1024;
}

/* What docs/operations.md promises: the arenas in RAM (a GPU's is not), the disk's share for its
 * index (a row there takes no less than the 128 bytes that its block takes in RAM), and buffers. */
static uint64_t memory_bytes_max(const struct status *s) {
    const struct kvl_tier_report *tiers = s->report.tiers;
    uint32_t number;
    bool is_gpu = kvl_cuda_device_parse(s->daemon.device, &number);
    uint64_t index_bytes = tiers[KVL_TIER_DISK].capacity_bytes / 32;
    if (index_bytes > 4ull << 30)
        index_bytes = 4ull << 30;
    return (is_gpu ? 0 : tiers[KVL_TIER_DEVICE].capacity_bytes) +
           tiers[KVL_TIER_HOST].capacity_bytes + index_bytes + (256ull << 20);
}

static int print_json(struct kvl_client *client, const struct status *s) {
    const struct kvl_store_report *r = &s->report;
    char epoch[20];
    snprintf(epoch, sizeof epoch, "%016" PRIx64, r->epoch);
    return cli_print_json(json_pack("{s:s,s:I,s:s,s:s,s:s,s:I,s:s,s:I,s:b,s:o,s:I,s:I,s:I,s:I,s:I,"
                                    "s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:o,s:o,s:o}",
        "version", s->daemon.version, "pid", (json_int_t)s->daemon.pid, "address",
        s->daemon.address, "device", s->daemon.device, "disk_path", s->daemon.disk_path,
        "persist_ms", (json_int_t)s->daemon.persist_ms, "epoch", epoch, "uptime_ms",
        (json_int_t)(r->uptime_ns / 1000000), "loaded", r->loaded, "tiers", tiers_json(r), "blocks",
        (json_int_t)r->blocks, "table_bytes", (json_int_t)r->table_bytes, "memory_bytes",
        (json_int_t)memory_bytes(s), "memory_bytes_max", (json_int_t)memory_bytes_max(s), "leases",
        (json_int_t)r->leases, "leased_bytes", (json_int_t)r->leased_bytes, "sessions",
        (json_int_t)r->sessions, "pins", (json_int_t)r->pins, "unpersisted_blocks",
        (json_int_t)r->unpersisted_blocks, "sealed_blocks", (json_int_t)r->sealed_blocks,
        "refused_seals", (json_int_t)r->refused_seals, "hash_mismatches",
        (json_int_t)r->hash_mismatches, "shed_blocks", (json_int_t)r->shed_blocks, "clients",
        clients_json(client), "tenants", tenants_json(client), "warnings", warnings_json(client)));
}

/* What stands in the column "used" of an empty disk, too. */
static void print_reserve(const struct kvl_tier_report *tier) {
    char blocks[32], reserve[32], unused[32];
    uint64_t known_bytes = tier->block_bytes + tier->reserved_bytes;
    uint64_t unused_bytes = tier->used_bytes > known_bytes ? tier->used_bytes - known_bytes : 0;
    printf("%-7s of that: blocks %s, reserve for the index %s, room for more %s\n", "",
        cli_bytes(tier->block_bytes, blocks), cli_bytes(tier->reserved_bytes, reserve),
        cli_bytes(unused_bytes, unused));
}

static void print_tiers(const struct kvl_store_report *report) {
    char used[32], capacity[32], read[32], written[32];
    printf("\n%-7s %10s %10s %8s %8s %8s %8s %10s %10s\n", "tier", "used", "capacity", "blocks",
        "hits", "misses", "evicted", "read", "written");
    for (int i = 0; i < KVL_TIER_COUNT; i++) {
        const struct kvl_tier_report *t = &report->tiers[i];
        if (t->capacity_bytes == 0) {
            printf("%-7s %10s\n", tier_names[i], "none");
            continue;
        }
        printf("%-7s %10s %10s %8" PRIu64 " %8" PRIu64 " %8" PRIu64 " %8" PRIu64 " %10s %10s\n",
            tier_names[i], cli_bytes(t->used_bytes, used), cli_bytes(t->capacity_bytes, capacity),
            t->blocks, t->hits, t->misses, t->evicted_blocks, cli_bytes(t->read_bytes, read),
            cli_bytes(t->written_bytes, written));
        if (t->reserved_bytes)
            print_reserve(t);
        if (t->errors || t->corrupt_blocks)
            printf("%-7s %" PRIu64 " errors, %" PRIu64 " corrupt blocks dropped\n", "", t->errors,
                t->corrupt_blocks);
    }
}

static void print_clients(struct kvl_client *client) {
    struct kvl_client_report c;
    char leased[32];
    puts("\nclients");
    for (uint32_t i = 0; kvl_stats_client(client, i, &c) == KVL_OK; i++)
        printf("  %-24s pid %-8" PRIu32 " leases %" PRIu64 " read, %" PRIu64 " write, %s%s\n",
            c.name, c.pid, c.read_leases, c.write_leases, cli_bytes(c.leased_bytes, leased),
            c.leaving ? ", leaving: held until the process has ended" : "");
}

/* The default tenant alone is not worth a line. */
static void print_tenants(struct kvl_client *client) {
    struct kvl_tenant_report t;
    char used[32], quota[32];
    bool several = kvl_stats_tenant(client, 1, &t) == KVL_OK;
    for (uint32_t i = 0; kvl_stats_tenant(client, i, &t) == KVL_OK; i++) {
        if (!several && t.name[0] == '\0')
            return;
        printf("%s  %-24s", i == 0 ? "\ntenants\n" : "", t.name[0] ? t.name : "(none named)");
        for (int tier = 0; tier < KVL_TIER_COUNT; tier++)
            printf("  %s %s of %s", tier_names[tier], cli_bytes(t.tiers[tier].used_bytes, used),
                t.tiers[tier].quota_bytes ? cli_bytes(t.tiers[tier].quota_bytes, quota) : "all");
        puts(t.admitted ? "" : "  not admitted any more");
    }
}

static void print_sessions(struct kvl_client *client) {
    struct kvl_session_info session;
    for (uint32_t i = 0; kvl_session_at(client, i, &session) == KVL_OK; i++) {
        if (i == 0)
            puts("\nsessions");
        printf("  %-24s %8" PRIu64 " tokens", session.name, session.token_count);
        if (session.holder_pid)
            printf("  open in %s (pid %" PRIu32 ")", session.holder_name, session.holder_pid);
        putchar('\n');
    }
}

static void print_warnings(struct kvl_client *client) {
    char text[256];
    for (uint32_t i = 0; kvl_stats_warning(client, i, text, sizeof text) == KVL_OK; i++) {
        if (i == 0)
            puts("\nwarnings (`kvloft doctor` says what to change)");
        printf("  %s\n", text);
    }
}

static int print_text(struct kvl_client *client, const struct status *s) {
    const struct kvl_store_report *r = &s->report;
    char up[32], leased[32], table[32], memory[32], memory_max[32];
    printf("kvloft %s  pid %" PRIu32 "  up %s  %s%s\n", s->daemon.version, s->daemon.pid,
        cli_duration(r->uptime_ns, up), s->daemon.address, r->loaded ? "" : "  (loading)");
    printf("device %s  disk %s  persist within %" PRIu32 " ms\n", s->daemon.device,
        s->daemon.disk_path[0] ? s->daemon.disk_path : "none", s->daemon.persist_ms);
    print_tiers(r);
    printf("\nmemory %s, at most %s\n", cli_bytes(memory_bytes(s), memory),
        cli_bytes(memory_bytes_max(s), memory_max));
    printf("blocks %" PRIu64 " (table %s)  not durable yet %" PRIu64 "  leases %" PRIu64
           " (%s)  pins %" PRIu64 "\n",
        r->blocks, cli_bytes(r->table_bytes, table), r->unpersisted_blocks, r->leases,
        cli_bytes(r->leased_bytes, leased), r->pins);
    if (r->shed_blocks > 0)
        printf(
            "shed %" PRIu64 ": they left memory before the disk had taken them\n", r->shed_blocks);
    print_clients(client);
    print_tenants(client);
    print_sessions(client);
    print_warnings(client);
    return CLI_DONE;
}

static int run_status(const struct cli_options *options, int argc, char **argv) {
    struct status status;
    (void)argv;
    if (argc > 0)
        return cli_wrong("status takes no words");
    struct kvl_client *client = cli_connect(options);
    if (!client)
        return CLI_FAILED;
    kvl_err err = kvl_stats(client, &status.report, &status.daemon);
    int result = CLI_FAILED;
    if (err != KVL_OK)
        cli_error("the daemon gave no status: %s", kvl_err_text(err));
    else
        result = options->json ? print_json(client, &status) : print_text(client, &status);
    kvl_client_close(client);
    return result;
}

const struct cli_command cli_status = {
    .name = "status",
    .summary = "what the daemon holds: tiers, sessions, leases, warnings",
    .usage = "[--wait SECONDS] [--connect ADDR] [--json]",
    .run = run_status,
};
