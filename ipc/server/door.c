/* door.c - as which tenant a client comes in, and what is its own on the way in and out.
 *
 * Inside the store a tenant's keys are turned by its salt (core/tenant.h) and its sessions are
 * called "TENANT/NAME"; outside they are what the client made of them. This file is the only place
 * where that changes, for every verb, so that no verb can forget it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "server_internal.h"

/* ---- who ---------------------------------------------------------------------------------- */

static const struct kvl_server_tenant *find(const struct kvl_server *server, const char *name) {
    for (uint32_t i = 0; i < server->tenant_count; i++)
        if (strcmp(server->tenants[i].name, name) == 0)
            return &server->tenants[i];
    return NULL;
}

kvl_err kvl_door_admit(struct kvl_server *server, const char *name, struct kvl_client_info *info) {
    const struct kvl_server_tenant *tenant = find(server, name);
    info->sees_all = server->tenant_count == 0 || (tenant && tenant->sees_all);
    info->tenant = KVL_TENANT_DEFAULT;
    if (server->tenant_count == 0)
        return name[0] == 0 ? KVL_OK : KVL_ERR_PERM;
    if (!tenant)
        return KVL_ERR_PERM;
    if (!tenant->sees_all)
        info->tenant = kvl_store_tenant(server->store, name);
    return info->tenant == KVL_TENANT_ALL ? KVL_ERR_PERM : KVL_OK;
}

/* An unknown name is compared as well, with a secret that nobody has: it takes as long. */
struct kvl_bytes kvl_door_secret(struct kvl_server *server, const char *name) {
    const struct kvl_server_tenant *tenant = name[0] ? find(server, name) : NULL;
    if (name[0] == 0)
        return (struct kvl_bytes){server->secret.data, server->secret.bytes};
    return tenant ? tenant->secret
                  : (struct kvl_bytes){server->nobodys_secret, sizeof server->nobodys_secret};
}

kvl_err kvl_door_open(struct kvl_server *server) {
    server->keys =
        server->tenant_count == 0 ? NULL : malloc(KVL_CHAIN_BLOCKS_MAX * sizeof(struct kvl_key));
    bool random = getrandom(server->nobodys_secret, sizeof server->nobodys_secret, 0) ==
                  (ssize_t)sizeof server->nobodys_secret;
    if (!random)
        return KVL_ERR_IO;
    return server->tenant_count != 0 && !server->keys ? KVL_ERR_NOMEM : KVL_OK;
}

void kvl_door_enter(struct kvl_server *server, struct kvl_server_client *client,
    const struct kvl_client_info *info, const char *name) {
    client->view = info->sees_all ? KVL_TENANT_ALL : info->tenant;
    client->salt = kvl_store_salt(server->store, client->view);
    client->is_turned = !kvl_key_is_zero(&client->salt);
    snprintf(client->tenant, sizeof client->tenant, "%s", name);
}

/* ---- in ----------------------------------------------------------------------------------- */

static void turn_chain(struct kvl_server *server, const struct kvl_server_client *client,
    struct kvl_wire_chain *chain) {
    memcpy(server->keys, chain->keys, chain->count * sizeof *chain->keys);
    for (uint32_t i = 0; i < chain->count; i++)
        kvl_tenant_turn_key(&client->salt, &server->keys[i]);
    chain->keys = server->keys;
}

/* Only who sees all may name another tenant's session. */
static kvl_err name_inside(
    const struct kvl_server_client *client, char name[KVL_SESSION_NAME_MAX + 1]) {
    char full[2 * (KVL_SESSION_NAME_MAX + 1)];
    if (client->view == KVL_TENANT_ALL)
        return KVL_OK;
    if (!kvl_session_name_is_valid(name))
        return KVL_ERR_INVALID;
    if (client->tenant[0] == 0)
        return KVL_OK;
    int bytes = snprintf(full, sizeof full, "%s/%s", client->tenant, name);
    if (bytes > (int)KVL_SESSION_NAME_MAX)
        return KVL_ERR_INVALID;
    memcpy(name, full, (size_t)bytes + 1);
    return KVL_OK;
}

kvl_err kvl_door_in(struct kvl_server *server, const struct kvl_server_client *client,
    uint32_t verb, union kvl_wire_request *request) {
    switch (verb) {
    case KVL_VERB_NAMESPACE_OPEN:
        kvl_tenant_turn_key(&client->salt, &request->namespace_open.key);
        return KVL_OK;
    case KVL_VERB_LOOKUP:
    case KVL_VERB_RESTORE:
    case KVL_VERB_PREFETCH:
    case KVL_VERB_ALLOC:
    case KVL_VERB_PIN:
    case KVL_VERB_DEMOTE:
        if (client->is_turned)
            turn_chain(server, client, &request->chain);
        return KVL_OK;
    case KVL_VERB_SESSION_OPEN:
    case KVL_VERB_SESSION_READ:
    case KVL_VERB_SESSION_APPEND:
    case KVL_VERB_SESSION_TAIL:
    case KVL_VERB_SESSION_CLOSE:
    case KVL_VERB_SESSION_DROP:
        return name_inside(client, request->session.name);
    case KVL_VERB_CLEAR:
        return request->clear.scope == KVL_CLEAR_SESSION ? name_inside(client, request->clear.name)
                                                         : KVL_OK;
    default: /* seals are turned one by one, see verbs.c */
        return KVL_OK;
    }
}

/* ---- out ---------------------------------------------------------------------------------- */

static void name_outside(const struct kvl_server_client *client, struct kvl_session_info *info) {
    size_t length = strlen(client->tenant);
    if (client->view != KVL_TENANT_ALL && length != 0 &&
        strncmp(info->name, client->tenant, length) == 0 && info->name[length] == '/')
        memmove(info->name, info->name + length + 1, strlen(info->name) - length);
}

static void turn_blocks(
    const struct kvl_server_client *client, struct kvl_block_report *blocks, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        kvl_tenant_turn_key(&client->salt, &blocks[i].key);
        kvl_tenant_turn_key(&client->salt, &blocks[i].parent);
    }
}

static void turn_events(
    const struct kvl_server_client *client, struct kvl_event *events, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        kvl_tenant_turn_key(&client->salt, &events[i].key);
}

void kvl_door_out(struct kvl_server *server, const struct kvl_server_client *client, uint32_t verb,
    union kvl_wire_reply *reply) {
    switch (verb) {
    case KVL_VERB_NAMESPACE_OPEN:
    case KVL_VERB_NAMESPACE_AT:
        kvl_tenant_turn_key(&client->salt, &reply->namespace_info.key);
        break;
    case KVL_VERB_LIST_BLOCKS: /* these lists stand in the scratch */
        turn_blocks(client, server->scratch, reply->items.count);
        break;
    case KVL_VERB_EVENTS:
        turn_events(client, server->scratch, reply->items.count);
        break;
    case KVL_VERB_SESSION_OPEN:
    case KVL_VERB_SESSION_DROP:
    case KVL_VERB_SESSION_AT:
        name_outside(client, &reply->session);
        break;
    case KVL_VERB_SESSION_READ:
        name_outside(client, &reply->session_tokens.info);
        break;
    default:
        break;
    }
}
