/* store.c - the store's life, its clients and tickets, and the pump that keeps everything going.
 *
 * Nothing here waits. What can be started is started by kvl_store_pump, which every call that
 * changed something ends with; what is under way ends inside kvl_store_poll. What waits for
 * something that no file descriptor announces (memory still being touched, a full queue) is
 * retried by a timer. */
#include "store.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "clock.h"
#include "store_private.h"

/* ---- life --------------------------------------------------------------------------------- */

static kvl_err watch(struct kvl_store *store, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (fd < 0 || epoll_ctl(store->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0)
        return KVL_OK;
    return kvl_err_from_errno(errno);
}

static kvl_err open_fds(struct kvl_store *store) {
    store->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (store->epoll_fd < 0)
        return kvl_err_from_errno(errno);
    store->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (store->timer_fd < 0)
        return kvl_err_from_errno(errno);
    kvl_err err = watch(store, store->timer_fd);
    if (err == KVL_OK)
        err = watch(store, kvl_workers_fd(store->workers));
    for (unsigned tier = 0; tier < KVL_TIER_COUNT && err == KVL_OK; tier++) {
        struct kvl_tier *owner = store->tiers[tier].tier;
        if (owner != NULL)
            err = watch(store, owner->ops->fd(owner));
    }
    return err;
}

static kvl_err make_epoch(uint64_t *epoch) {
    do {
        if (getrandom(epoch, sizeof(*epoch), 0) != (ssize_t)sizeof(*epoch))
            return kvl_err_from_errno(errno);
    } while (*epoch == 0);
    return KVL_OK;
}

static kvl_err make_policies(struct kvl_store *store, const struct kvl_policy_ops *ops) {
    for (unsigned tier = 0; tier < KVL_MEMORY_TIERS; tier++) {
        if (store->tiers[tier].tier == NULL)
            continue;
        kvl_err err = ops->create(&store->tiers[tier].policy);
        if (err != KVL_OK)
            return err;
    }
    return KVL_OK;
}

static kvl_err make_parts(struct kvl_store *store, const struct kvl_store_options *options) {
    kvl_err err = make_epoch(&store->epoch);
    if (err == KVL_OK)
        err = kvl_tenant_set_init(&store->tenants, options->tenants, options->tenant_count);
    if (err == KVL_OK)
        err = kvl_event_ring_init(&store->events);
    if (err == KVL_OK)
        err = kvl_table_create(&store->table);
    if (err == KVL_OK)
        err = kvl_lease_table_create((uint32_t)store->epoch, &store->leases);
    if (err == KVL_OK)
        err = kvl_ticket_pool_create(&store->tickets);
    if (err == KVL_OK)
        err = kvl_session_set_create(&store->sessions);
    if (err == KVL_OK)
        err = make_policies(store, options->policy != NULL ? options->policy : &kvl_policy_lru);
    if (err == KVL_OK)
        err = kvl_workers_create(
            "kvl-hash", options->hash_threads != 0 ? options->hash_threads : 1, &store->workers);
    if (err == KVL_OK)
        err = open_fds(store);
    return err;
}

kvl_err kvl_store_create(
    const struct kvl_store_options *options, struct kvl_store **out, struct kvl_errmsg *msg) {
    *out = NULL;
    if (options->device == NULL || (options->disk == NULL) != (options->catalog == NULL))
        return kvl_fail(
            msg, KVL_ERR_INVALID, "a store needs a device tier, and a catalog with its disk");
    bool is_far = options->device->ops->address(options->device, 0) == NULL;
    if (is_far && options->host == NULL)
        return kvl_fail(msg, KVL_ERR_INVALID,
            "the device %s needs a host tier, with room for at least %u blocks of the model: they "
            "pass through it",
            options->device->ops->name, KVL_FAR_HOST_BLOCKS_MIN);
    struct kvl_store *store = calloc(1, sizeof(*store));
    if (store == NULL)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory for the store");
    store->device_is_far = is_far;
    store->tiers[KVL_TIER_DEVICE].tier = options->device;
    store->tiers[KVL_TIER_HOST].tier = options->host;
    store->tiers[KVL_TIER_DISK].tier = options->disk;
    store->catalog = options->catalog;
    store->log = options->log;
    store->client_lease_bytes_max = options->client_lease_bytes_max;
    store->epoll_fd = -1;
    store->timer_fd = -1;
    store->generation_next = 1;
    store->start_ns = kvl_clock_ns();
    struct kvl_tier *stored_from = is_far ? options->host : options->device;
    store->storing_bytes_max = stored_from->ops->stats(stored_from).capacity_bytes / 4 * 3;
    store->now_s = (uint32_t)(kvl_clock_wall_ns() / 1000000000u);
    store->scratch_blocks = calloc(KVL_CHAIN_BLOCKS_MAX, sizeof(store->scratch_blocks[0]));
    store->scratch_held = calloc(KVL_CHAIN_BLOCKS_MAX, sizeof(store->scratch_held[0]));
    kvl_err err = KVL_ERR_NOMEM;
    if (store->scratch_blocks != NULL && store->scratch_held != NULL)
        err = make_parts(store, options);
    if (err != KVL_OK) {
        kvl_store_destroy(store);
        return kvl_fail(msg, err, "cannot start the store: %s", kvl_err_text(err));
    }
    kvl_recovery_listen(store);
    *out = store;
    return KVL_OK;
}

/* Ends what is under way: io borrows memory of the store, so nothing may outlive it. */
static void stop(struct kvl_store *store) {
    store->closing = true;
    if (store->workers == NULL)
        return;
    kvl_sealings_cancel_waiting(store);
    kvl_stage_cancel_waiting(store);
    kvl_transfers_cancel_waiting(store);
    do {
        kvl_workers_drain(store->workers);
        for (unsigned tier = 0; tier < KVL_TIER_COUNT; tier++) {
            struct kvl_tier *owner = store->tiers[tier].tier;
            if (owner != NULL && owner->ops->drain(owner) != KVL_OK)
                KVL_WARN(store->log, "event=drain_failed tier=%u", tier);
        }
    } while (kvl_workers_inflight(store->workers) > 0);
}

void kvl_store_destroy(struct kvl_store *store) {
    if (store == NULL)
        return;
    stop(store);
    while (store->operations != NULL) {
        struct kvl_operation *operation = store->operations;
        store->operations = operation->next;
        free(operation); /* stands first in every kind */
    }
    for (unsigned tier = 0; tier < KVL_TIER_COUNT; tier++) {
        if (store->tiers[tier].policy != NULL)
            store->tiers[tier].policy->ops->destroy(store->tiers[tier].policy);
        if (store->tiers[tier].tier != NULL)
            store->tiers[tier].tier->events = (struct kvl_tier_events){0};
    }
    kvl_workers_destroy(store->workers);
    kvl_pool_deinit(&store->seal_pool);
    kvl_pool_deinit(&store->transfer_pool);
    kvl_orphans_free(store);
    kvl_catalog_queue_free(store);
    kvl_namespaces_free(store);
    kvl_session_set_destroy(store->sessions);
    kvl_ticket_pool_destroy(store->tickets);
    kvl_lease_table_destroy(store->leases);
    kvl_table_destroy(store->table);
    kvl_tenant_set_deinit(&store->tenants);
    free(store->persist_items);
    free(store->events.events);
    free(store->sweep);
    free(store->scratch_blocks);
    free(store->scratch_held);
    if (store->timer_fd >= 0)
        close(store->timer_fd);
    if (store->epoll_fd >= 0)
        close(store->epoll_fd);
    free(store);
}

/* ---- going on ----------------------------------------------------------------------------- */

static void arm_timer(struct kvl_store *store) {
    if (!store->retry || store->timer_armed)
        return;
    struct itimerspec once = {.it_value.tv_nsec = KVL_RETRY_NS};
    store->timer_armed = timerfd_settime(store->timer_fd, 0, &once, NULL) == 0;
}

void kvl_store_pump(struct kvl_store *store) {
    if (store->closing)
        return;
    store->retry = false;
    kvl_device_pump(store);
    kvl_catalog_pump(store);
    kvl_sealing_pump(store);
    kvl_quota_pump(store);
    kvl_persist_pump(store);
    kvl_demote_pump(store);
    kvl_stage_pump(store);
    kvl_transfer_pump(store);
    kvl_flush_pump(store);
    kvl_clear_pump(store);
    kvl_verify_pump(store);
    arm_timer(store);
}

/* While the disk loads it stores nothing, which is no reason to shed as long as it goes on. */
static void poll_tier(struct kvl_store *store, unsigned kind) {
    struct kvl_tier *tier = store->tiers[kind].tier;
    if (tier == NULL)
        return;
    uint32_t fired = tier->ops->poll(tier);
    if (kind == KVL_TIER_DISK && !store->loaded && fired > 0)
        store->stored_ns = kvl_clock_ns();
}

void kvl_store_poll(struct kvl_store *store) {
    uint64_t fired = 0;
    if (store->timer_armed && read(store->timer_fd, &fired, sizeof(fired)) == sizeof(fired)) {
        store->timer_armed = store->demote_rests = false;
        for (uint32_t i = 0; i < store->tenants.count; i++)
            store->tenants.tenants[i]->demote_rests = false;
    }
    store->now_s = (uint32_t)(kvl_clock_wall_ns() / 1000000000u);
    for (unsigned tier = 0; tier < KVL_TIER_COUNT; tier++)
        poll_tier(store, tier);
    kvl_workers_poll(store->workers);
    kvl_store_pump(store);
}

static bool is_busy(const struct kvl_store *store) {
    return store->persist_pending > 0 || store->transfer_count > 0 || store->puts_count > 0 ||
           kvl_workers_inflight(store->workers) > 0 || !store->loaded;
}

/* The disk's own drain waits for however long it takes: it is called when there is nothing left. */
kvl_err kvl_store_drain(struct kvl_store *store, uint64_t deadline_ns) {
    struct kvl_settle *settle = &store->draining;
    if (!settle->asked)
        *settle = (struct kvl_settle){0};
    kvl_store_pump(store);
    while (is_busy(store) || !kvl_settle_step(store, settle)) {
        struct kvl_tier *disk = store->tiers[KVL_TIER_DISK].tier;
        if (disk != NULL && store->persist_count == 0 && store->storing > 0)
            disk->ops->quiesce(disk);
        if (kvl_clock_ns() >= deadline_ns)
            return KVL_ERR_TIMEOUT;
        struct pollfd ready = {.fd = store->epoll_fd, .events = POLLIN};
        (void)poll(&ready, 1, 20);
        kvl_store_poll(store);
    }
    if (settle->status != KVL_OK)
        return settle->status;
    for (unsigned tier = KVL_TIER_COUNT; tier > 0; tier--) {
        struct kvl_tier *owner = store->tiers[tier - 1].tier;
        kvl_err err = owner == NULL ? KVL_OK : owner->ops->drain(owner);
        if (err != KVL_OK)
            return err;
    }
    kvl_store_pump(store);
    return store->store_failed_blocks > 0 ? KVL_ERR_IO : KVL_OK;
}

int kvl_store_fd(const struct kvl_store *store) {
    return store->epoll_fd;
}

bool kvl_store_is_loaded(const struct kvl_store *store) {
    return store->loaded;
}

struct kvl_ticket_pool *kvl_store_tickets(struct kvl_store *store) {
    return store->tickets;
}

struct kvl_tier *kvl_store_tier(struct kvl_store *store, enum kvl_tier_kind kind) {
    return (unsigned)kind < KVL_TIER_COUNT ? store->tiers[kind].tier : NULL;
}

uint64_t kvl_store_epoch(const struct kvl_store *store) {
    return store->epoch;
}

/* ---- tenants ------------------------------------------------------------------------------ */

uint32_t kvl_store_tenant(const struct kvl_store *store, const char *name) {
    const struct kvl_tenant *tenant = kvl_tenant_find(&store->tenants, name);
    return tenant != NULL ? tenant->id : KVL_TENANT_ALL;
}

struct kvl_key kvl_store_salt(const struct kvl_store *store, uint32_t tenant) {
    return tenant < store->tenants.count ? store->tenants.tenants[tenant]->salt
                                         : (struct kvl_key){{0}};
}

/* ---- clients ------------------------------------------------------------------------------ */

struct kvl_client *kvl_client_find(struct kvl_store *store, uint32_t id) {
    struct kvl_client *client = &store->clients[id % KVL_CLIENTS_MAX];
    return id != 0 && client->open && client->id == id ? client : NULL;
}

kvl_err kvl_store_client_open(
    struct kvl_store *store, const struct kvl_client_info *info, uint32_t *client) {
    uint32_t place = 0;
    if (info->tenant >= store->tenants.count)
        return KVL_ERR_INVALID;
    while (place < KVL_CLIENTS_MAX && store->clients[place].open)
        place++;
    if (place == KVL_CLIENTS_MAX)
        return KVL_ERR_LIMIT;
    uint32_t uses = store->clients[place].id / KVL_CLIENTS_MAX + 1;
    if (uses > UINT32_MAX / KVL_CLIENTS_MAX)
        uses = 1;
    store->clients[place] = (struct kvl_client){
        .id = uses * KVL_CLIENTS_MAX + place,
        .open = true,
        .info = *info,
        .leases.first = KVL_LEASE_NONE,
    };
    store->clients[place].info.name[sizeof(info->name) - 1] = '\0';
    store->client_count++;
    store->tenants.tenants[info->tenant]->clients++;
    *client = store->clients[place].id;
    return KVL_OK;
}

static void release_tickets(struct kvl_store *store, struct kvl_client *client) {
    for (uint32_t number = 0; number < KVL_TICKET_WORDS && client->tickets > 0; number++)
        if (store->ticket_owners[number].client == client->id)
            kvl_ticket_release(store, client->id,
                (struct kvl_ticket){number, store->ticket_owners[number].generation});
}

bool kvl_store_client_leave(struct kvl_store *store, uint32_t id) {
    struct kvl_client *client = kvl_client_find(store, id);
    if (client == NULL)
        return false;
    client->leaving = true;
    release_tickets(store, client); /* a wait's would inherit */
    kvl_sessions_close_of(store, id);
    kvl_store_pump(store);
    return kvl_lease_first(store->leases, &client->leases) != NULL;
}

void kvl_store_client_close(struct kvl_store *store, uint32_t id) {
    struct kvl_client *client = kvl_client_find(store, id);
    if (client == NULL)
        return;
    release_tickets(store, client);
    client->open = false; /* inherits nothing of its own */
    struct kvl_lease *lease;
    while ((lease = kvl_lease_first(store->leases, &client->leases)) != NULL)
        kvl_lease_end(store, client, lease);
    kvl_sessions_close_of(store, id);
    store->client_count--;
    store->tenants.tenants[client->info.tenant]->clients--;
    kvl_store_pump(store);
}

/* ---- tickets and what they stand for ------------------------------------------------------ */

kvl_err kvl_operation_begin(struct kvl_store *store, uint32_t client_id,
    enum kvl_operation_kind kind, struct kvl_operation *operation, struct kvl_ticket *ticket) {
    struct kvl_client *client = kvl_client_find(store, client_id);
    *ticket = (struct kvl_ticket){0};
    if (client == NULL)
        return KVL_ERR_PERM;
    if (client->tickets >= KVL_CLIENT_TICKETS_MAX)
        return KVL_ERR_LIMIT;
    kvl_err err = kvl_ticket_take(store->tickets, ticket);
    if (err != KVL_OK)
        return err;
    client->tickets++;
    *operation = (struct kvl_operation){
        .kind = kind,
        .client = client_id,
        .ticket = *ticket,
        .word = kvl_ticket_word(store->tickets, *ticket),
        .next = store->operations,
    };
    if (store->operations != NULL)
        store->operations->prev = operation;
    store->operations = operation;
    store->ticket_owners[ticket->number] =
        (struct kvl_ticket_owner){client_id, ticket->generation, operation};
    return KVL_OK;
}

void kvl_operation_value(struct kvl_operation *operation, unsigned index, uint64_t value) {
    if (operation->word != NULL)
        atomic_store_explicit(&operation->word->values[index], value, memory_order_relaxed);
}

static void operation_unlink(struct kvl_store *store, struct kvl_operation *operation) {
    if (operation->prev != NULL)
        operation->prev->next = operation->next;
    else
        store->operations = operation->next;
    if (operation->next != NULL)
        operation->next->prev = operation->prev;
}

void kvl_operation_end(struct kvl_store *store, struct kvl_operation *operation, kvl_err status) {
    operation_unlink(store, operation);
    if (operation->word == NULL)
        return;
    store->ticket_owners[operation->ticket.number].operation = NULL;
    kvl_ticket_finish(operation->word, status);
}

void kvl_operations_step(struct kvl_store *store, enum kvl_operation_kind kind,
    void (*step)(struct kvl_store *store, struct kvl_operation *operation)) {
    struct kvl_operation *next;
    for (struct kvl_operation *at = store->operations; at != NULL; at = next) {
        next = at->next;
        if (at->kind == kind)
            step(store, at);
    }
}

bool kvl_store_ticket_is_of(struct kvl_store *store, uint32_t tenant, struct kvl_ticket ticket) {
    const struct kvl_client *owner =
        ticket.number < KVL_TICKET_WORDS
            ? kvl_client_find(store, store->ticket_owners[ticket.number].client)
            : NULL;
    return tenant == KVL_TENANT_ALL || (owner != NULL && owner->info.tenant == tenant);
}

void kvl_ticket_release(struct kvl_store *store, uint32_t client_id, struct kvl_ticket ticket) {
    struct kvl_client *client = kvl_client_find(store, client_id);
    struct kvl_ticket_owner *owner =
        ticket.number < KVL_TICKET_WORDS ? &store->ticket_owners[ticket.number] : NULL;
    if (client == NULL || owner == NULL || owner->client != client_id ||
        owner->generation != ticket.generation) {
        uint32_t tenant = client != NULL ? client->info.tenant : KVL_TENANT_DEFAULT;
        store->tenants.tenants[tenant]->stale_releases++;
        return;
    }
    struct kvl_operation *operation = owner->operation;
    *owner = (struct kvl_ticket_owner){0};
    client->tickets--;
    kvl_ticket_give_back(store->tickets, ticket);
    if (operation == NULL)
        return;
    operation->word = NULL;
    if (operation->kind == KVL_OPERATION_WAIT) {
        operation_unlink(store, operation);
        free(operation);
    }
}
