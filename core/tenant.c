/* tenant.c - see tenant.h. */
#include "tenant.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "little_endian.h"

/* ---- names and salts ---------------------------------------------------------------------- */

bool kvl_tenant_name_is_valid(const char *name) {
    static const char allowed[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    size_t length = name == NULL ? 0 : strnlen(name, KVL_TENANT_NAME_MAX + 1);
    return length > 0 && length <= KVL_TENANT_NAME_MAX && strspn(name, allowed) == length;
}

static bool add_field(EVP_MD_CTX *hash, const void *data, uint32_t bytes) {
    uint8_t prefix[4];
    kvl_le_put(prefix, bytes, sizeof(prefix));
    return EVP_DigestUpdate(hash, prefix, sizeof(prefix)) == 1 &&
           EVP_DigestUpdate(hash, data, bytes) == 1;
}

kvl_err kvl_tenant_salt(
    const char *name, const void *secret, uint32_t secret_bytes, struct kvl_key *salt) {
    static const char label[] = "kvloft tenant salt 1";
    EVP_MD_CTX *hash = EVP_MD_CTX_new();
    bool good = hash != NULL && EVP_DigestInit_ex(hash, EVP_sha256(), NULL) == 1 &&
                EVP_DigestUpdate(hash, label, sizeof(label)) == 1 &&
                add_field(hash, name, (uint32_t)strlen(name)) &&
                add_field(hash, secret, secret_bytes) &&
                EVP_DigestFinal_ex(hash, salt->bytes, NULL) == 1;
    EVP_MD_CTX_free(hash);
    return good ? KVL_OK : KVL_ERR_NOMEM;
}

static kvl_err tag_of(const struct kvl_key *salt, uint64_t *tag) {
    static const char label[] = "kvloft tenant tag 1";
    uint8_t text[sizeof(label) + KVL_KEY_BYTES], digest[EVP_MAX_MD_SIZE];
    const uint8_t *at = digest;
    memcpy(text, label, sizeof(label));
    memcpy(text + sizeof(label), salt->bytes, KVL_KEY_BYTES);
    if (EVP_Digest(text, sizeof(text), digest, NULL, EVP_sha256(), NULL) != 1)
        return KVL_ERR_NOMEM;
    *tag = kvl_le_get(&at, 8);
    return KVL_OK;
}

void kvl_tenant_turn_key(const struct kvl_key *salt, struct kvl_key *key) {
    if (kvl_key_is_zero(key))
        return;
    for (unsigned i = 0; i < KVL_KEY_BYTES; i++)
        key->bytes[i] ^= salt->bytes[i];
}

/* ---- the set ------------------------------------------------------------------------------ */

static kvl_err add(struct kvl_tenant_set *set, const char *name, struct kvl_tenant **out) {
    if (set->count >= KVL_TENANTS_MAX)
        return KVL_ERR_LIMIT;
    struct kvl_tenant **all = realloc(set->tenants, (set->count + 1u) * sizeof(all[0]));
    if (all == NULL)
        return KVL_ERR_NOMEM;
    set->tenants = all;
    struct kvl_tenant *tenant = calloc(1, sizeof(*tenant));
    if (tenant == NULL)
        return KVL_ERR_NOMEM;
    strncpy(tenant->name, name, sizeof(tenant->name) - 1);
    tenant->id = set->count;
    all[set->count++] = tenant;
    *out = tenant;
    return KVL_OK;
}

struct kvl_tenant *kvl_tenant_find(const struct kvl_tenant_set *set, const char *name) {
    for (uint32_t i = 0; i < set->count; i++)
        if (set->tenants[i]->admitted && strcmp(set->tenants[i]->name, name) == 0)
            return set->tenants[i];
    return NULL;
}

static kvl_err admit(struct kvl_tenant_set *set, const struct kvl_tenant_options *options) {
    struct kvl_tenant *tenant = set->tenants[KVL_TENANT_DEFAULT];
    bool named = options->name[0] != '\0';
    if (named && !kvl_tenant_name_is_valid(options->name))
        return KVL_ERR_INVALID;
    if (named && kvl_tenant_find(set, options->name) != NULL)
        return KVL_ERR_INVALID;
    kvl_err err = named ? add(set, options->name, &tenant) : KVL_OK;
    if (err == KVL_OK && named) {
        tenant->admitted = true;
        tenant->salt = options->salt;
        err = tag_of(&tenant->salt, &tenant->tag);
    }
    if (err == KVL_OK)
        err = kvl_event_ring_init(&tenant->events);
    if (err == KVL_OK)
        for (unsigned tier = 0; tier < KVL_TIER_COUNT; tier++)
            tenant->tiers[tier].quota_bytes = options->quota_bytes[tier];
    return err;
}

kvl_err kvl_tenant_set_init(
    struct kvl_tenant_set *set, const struct kvl_tenant_options *options, uint32_t count) {
    *set = (struct kvl_tenant_set){0};
    struct kvl_tenant *tenant = NULL;
    kvl_err err = add(set, "", &tenant);
    if (err == KVL_OK)
        tenant->admitted = true;
    for (uint32_t i = 0; i < count && err == KVL_OK; i++)
        err = admit(set, &options[i]);
    return err;
}

void kvl_tenant_set_deinit(struct kvl_tenant_set *set) {
    for (uint32_t i = 0; i < set->count; i++) {
        free(set->tenants[i]->events.events);
        explicit_bzero(&set->tenants[i]->salt, sizeof(set->tenants[i]->salt));
        free(set->tenants[i]);
    }
    free(set->tenants);
    *set = (struct kvl_tenant_set){0};
}

kvl_err kvl_tenant_of_record(
    struct kvl_tenant_set *set, const char *name, uint64_t tag, struct kvl_tenant **out) {
    for (uint32_t i = 0; i < set->count; i++) {
        *out = set->tenants[i];
        if ((*out)->tag == tag && strcmp((*out)->name, name) == 0)
            return KVL_OK;
    }
    kvl_err err = add(set, name, out);
    if (err == KVL_OK)
        (*out)->tag = tag;
    return err;
}

/* ---- events ------------------------------------------------------------------------------- */

kvl_err kvl_event_ring_init(struct kvl_event_ring *ring) {
    if (ring->events == NULL)
        ring->events = calloc(KVL_EVENTS_KEPT, sizeof(ring->events[0]));
    return ring->events == NULL ? KVL_ERR_NOMEM : KVL_OK;
}

void kvl_event_ring_add(struct kvl_event_ring *ring, const struct kvl_event *event) {
    if (ring->events == NULL)
        return;
    struct kvl_event *place = &ring->events[++ring->last % KVL_EVENTS_KEPT];
    *place = *event;
    place->sequence = ring->last;
}

uint32_t kvl_event_ring_read(const struct kvl_event_ring *ring, uint64_t after, uint32_t max,
    struct kvl_event *out, uint64_t *oldest) {
    *oldest = ring->last >= KVL_EVENTS_KEPT ? ring->last - KVL_EVENTS_KEPT + 1 : 1;
    if (after >= ring->last)
        return 0;
    uint64_t next = after >= *oldest ? after + 1 : *oldest;
    uint32_t count = 0;
    for (; next <= ring->last && count < max; next++)
        out[count++] = ring->events[next % KVL_EVENTS_KEPT];
    return count;
}
