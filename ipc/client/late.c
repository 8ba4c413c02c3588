/* late.c - leases that come after their caller has been told TIMEOUT: they go back at once. What
 * cannot be sent back now goes back with the client's end. */
#include <string.h>

#include "client_internal.h"

static void late_restored(struct kvl_client *client, const union kvl_wire_reply *reply) {
    const struct kvl_wire_items *items = &reply->items;
    uint64_t leases[KVL_CLIENT_CALLS_MAX];
    for (uint32_t at = 0; at < items->count || at == 0;) {
        uint32_t count = 0;
        for (; at < items->count && count < KVL_CLIENT_CALLS_MAX; at++, count++) {
            struct kvl_restored item;
            memcpy(&item, (const uint8_t *)items->data + at * sizeof item, sizeof item);
            leases[count] = item.lease;
        }
        bool last = at >= items->count;
        kvl_err err = kvl_release_async(client, leases, count, &items->ticket,
            last && items->ticket.generation != 0 ? 1 : 0, NULL, NULL);
        if (err != KVL_OK || last)
            return; /* what is left goes back with the client's end */
    }
}

static void late_allocated(struct kvl_client *client, const union kvl_wire_reply *reply) {
    const struct kvl_wire_items *items = &reply->items;
    for (uint32_t at = 0; at < items->count; at++) {
        struct kvl_allocated item;
        memcpy(&item, (const uint8_t *)items->data + at * sizeof item, sizeof item);
        if (item.status == KVL_ALLOC_GRANTED &&
            kvl_release_async(client, &item.lease, 1, NULL, 0, NULL, NULL) != KVL_OK)
            return;
    }
    if (items->ticket.generation != 0 &&
        kvl_release_async(client, NULL, 0, &items->ticket, 1, NULL, NULL) != KVL_OK)
        return;
}

void kvl_late_reply(struct kvl_client *client, uint16_t verb, const union kvl_wire_reply *reply) {
    if (verb == KVL_VERB_RESTORE)
        late_restored(client, reply);
    if (verb == KVL_VERB_ALLOC)
        late_allocated(client, reply);
}
