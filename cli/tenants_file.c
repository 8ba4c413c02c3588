/* tenants_file.c - see tenants_file.h. */
#include "tenants_file.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "secret.h"
#include "size.h"

#define ENTRIES_MAX 256u

/* One entry on its way in. */
struct entry {
    const char *path; /* of the file, for messages */
    const char *name;
    const json_t *json;
    struct kvl_secret secret;
    uint64_t quota_bytes[KVL_TIER_COUNT];
    bool is_operator;
};

static kvl_err wrong(
    const struct entry *entry, struct kvl_errmsg *msg, const char *what, const char *member) {
    return kvl_fail(
        msg, KVL_ERR_INVALID, "%s: tenant '%s': \"%s\" %s", entry->path, entry->name, member, what);
}

/* ---- members ------------------------------------------------------------------------------ */

static kvl_err take_quota(
    struct entry *entry, const char *member, unsigned tier, struct kvl_errmsg *msg) {
    const json_t *value = json_object_get(entry->json, member);
    uint64_t bytes = 0;
    if (value == NULL)
        return KVL_OK;
    bool good = json_is_string(value) ? kvl_parse_size(json_string_value(value), &bytes)
                                      : json_is_integer(value) && json_integer_value(value) > 0;
    if (json_is_integer(value))
        bytes = (uint64_t)json_integer_value(value);
    if (!good || bytes == 0)
        return wrong(entry, msg, "is no size such as 4096, \"512M\" or \"2G\"", member);
    if (entry->is_operator)
        return wrong(entry, msg, "is for tenants: an operator stores nothing of its own", member);
    entry->quota_bytes[tier] = bytes;
    return KVL_OK;
}

static kvl_err take_secret(struct entry *entry, struct kvl_errmsg *msg) {
    const json_t *text = json_object_get(entry->json, "secret");
    const json_t *file = json_object_get(entry->json, "secret_file");
    struct kvl_errmsg reason = {{0}};
    if (entry->name[0] == '\0')
        return text == NULL && file == NULL
                   ? KVL_OK
                   : wrong(entry, msg, "is not for clients without a tenant", "secret");
    if ((text == NULL) == (file == NULL))
        return wrong(entry, msg, "or \"secret_file\" is needed, one of the two", "secret");
    if (file != NULL && !json_is_string(file))
        return wrong(entry, msg, "is no path", "secret_file");
    if (file == NULL)
        return json_is_string(text) &&
                       kvl_secret_take(json_string_value(text), &entry->secret) == KVL_OK
                   ? KVL_OK
                   : wrong(entry, msg, "is no text of 16 to 4096 bytes", "secret");
    kvl_err err = kvl_secret_read(json_string_value(file), &entry->secret, &reason);
    return err == KVL_OK
               ? KVL_OK
               : kvl_fail(msg, err, "%s: tenant '%s': %s", entry->path, entry->name, reason.text);
}

static kvl_err check_members(const struct entry *entry, struct kvl_errmsg *msg) {
    static const char *const known[] = {
        "name", "secret", "secret_file", "device_bytes", "host_bytes", "disk_bytes", "operator"};
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)entry->json, name, value) {
        bool found = false;
        for (unsigned i = 0; i < sizeof known / sizeof known[0]; ++i)
            found = found || strcmp(name, known[i]) == 0;
        if (!found)
            return wrong(entry, msg, "is no member; see --help", name);
    }
    return KVL_OK;
}

static kvl_err take_entry(struct entry *entry, struct kvl_errmsg *msg) {
    const json_t *is_operator = json_object_get(entry->json, "operator");
    kvl_err err = check_members(entry, msg);
    if (err == KVL_OK && is_operator != NULL && !json_is_boolean(is_operator))
        err = wrong(entry, msg, "is neither true nor false", "operator");
    entry->is_operator = json_is_true(is_operator);
    if (err == KVL_OK && entry->name[0] != '\0' && !kvl_tenant_name_is_valid(entry->name))
        err = wrong(entry, msg, "has 1 to 63 letters, digits, '.', '_' or '-'", "name");
    if (err == KVL_OK && entry->name[0] == '\0' && entry->is_operator)
        err = wrong(entry, msg, "needs a name and a secret", "operator");
    if (err == KVL_OK)
        err = take_secret(entry, msg);
    if (err == KVL_OK)
        err = take_quota(entry, "device_bytes", KVL_TIER_DEVICE, msg);
    if (err == KVL_OK)
        err = take_quota(entry, "host_bytes", KVL_TIER_HOST, msg);
    return err == KVL_OK ? take_quota(entry, "disk_bytes", KVL_TIER_DISK, msg) : err;
}

/* ---- the whole ---------------------------------------------------------------------------- */

static kvl_err keep(
    struct kvl_tenants *tenants, const struct entry *entry, struct kvl_errmsg *msg) {
    for (uint32_t i = 0; i < tenants->server_count; ++i)
        /* NOLINTNEXTLINE(clang-analyzer-core.NonNullParamChecker): counted ones have a name. */
        if (strcmp(tenants->server[i].name, entry->name) == 0)
            return wrong(entry, msg, "is there twice", "name");
    char *name = strdup(entry->name);
    void *secret = malloc(entry->secret.bytes + 1u);
    if (name == NULL || secret == NULL) {
        free(name);
        free(secret);
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    }
    memcpy(secret, entry->secret.data, entry->secret.bytes);
    tenants->server[tenants->server_count++] = (struct kvl_server_tenant){
        .name = name, .secret = {secret, entry->secret.bytes}, .sees_all = entry->is_operator};
    if (entry->is_operator)
        return KVL_OK;
    struct kvl_tenant_options *store = &tenants->store[tenants->store_count++];
    store->name = name;
    memcpy(store->quota_bytes, entry->quota_bytes, sizeof store->quota_bytes);
    return kvl_tenant_salt(name, secret, entry->secret.bytes, &store->salt);
}

static kvl_err read_entries(
    const char *path, const json_t *root, struct kvl_tenants *out, struct kvl_errmsg *msg) {
    size_t count = json_array_size(root);
    if (count == 0 || count > ENTRIES_MAX)
        return kvl_fail(
            msg, KVL_ERR_INVALID, "%s: not a JSON list of 1 to %u tenants", path, ENTRIES_MAX);
    out->store = calloc(count, sizeof *out->store);
    out->server = calloc(count, sizeof *out->server);
    if (out->store == NULL || out->server == NULL)
        return kvl_fail(msg, KVL_ERR_NOMEM, "out of memory");
    kvl_err err = KVL_OK;
    for (size_t i = 0; i < count && err == KVL_OK; ++i) {
        struct entry entry = {.path = path, .json = json_array_get(root, i)};
        entry.name = json_string_value(json_object_get(entry.json, "name"));
        if (entry.name == NULL)
            return kvl_fail(msg, KVL_ERR_INVALID, "%s: entry %zu has no \"name\"", path, i + 1);
        err = take_entry(&entry, msg);
        if (err == KVL_OK)
            err = keep(out, &entry, msg);
        explicit_bzero(&entry.secret, sizeof entry.secret);
    }
    return err;
}

static kvl_err check_file(int fd, const char *path, struct kvl_errmsg *msg) {
    struct stat info;
    if (fstat(fd, &info) != 0)
        return kvl_fail(msg, kvl_err_from_errno(errno), "%s: %s", path, strerror(errno));
    if (info.st_uid != geteuid() || (info.st_mode & 077) != 0)
        return kvl_fail(msg, KVL_ERR_PERM,
            "%s: holds secrets; it must be this user's own and closed to others: chmod 600 it",
            path);
    return KVL_OK;
}

kvl_err kvl_tenants_read(const char *path, struct kvl_tenants *out, struct kvl_errmsg *msg) {
    *out = (struct kvl_tenants){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return kvl_fail(msg, kvl_err_from_errno(errno), "%s: %s", path, strerror(errno));
    json_error_t error;
    json_t *root = NULL;
    kvl_err err = check_file(fd, path, msg);
    if (err == KVL_OK) {
        root = json_loadfd(fd, JSON_REJECT_DUPLICATES, &error);
        err = root != NULL
                  ? read_entries(path, root, out, msg)
                  : kvl_fail(msg, KVL_ERR_INVALID, "%s: line %d: %s", path, error.line, error.text);
    }
    json_decref(root);
    close(fd);
    if (err != KVL_OK)
        kvl_tenants_free(out);
    return err;
}

void kvl_tenants_free(struct kvl_tenants *tenants) {
    for (uint32_t i = 0; i < tenants->server_count; ++i) {
        struct kvl_server_tenant *tenant = &tenants->server[i];
        explicit_bzero((void *)(uintptr_t)tenant->secret.data, tenant->secret.bytes);
        free((void *)(uintptr_t)tenant->secret.data);
        free((void *)(uintptr_t)tenant->name);
    }
    if (tenants->store != NULL)
        explicit_bzero(tenants->store, tenants->store_count * sizeof *tenants->store);
    free(tenants->store);
    free(tenants->server);
    *tenants = (struct kvl_tenants){0};
}
