/* tenants_file.h - who may come in, how each proves it, and how much each may take.
 *
 *   [ { "name": "acme", "secret_file": "/etc/kvloft/acme", "disk_bytes": "20G" },
 *     { "name": "blue", "secret": "at least sixteen bytes", "device_bytes": "1G" },
 *     { "name": "ops", "secret_file": "/etc/kvloft/ops", "operator": true },
 *     { "name": "" } ]
 *
 * A quota that is not given is as much as there is. An operator sees and clears everything, and has
 * no quota. The entry "" lets in clients that name no tenant, and needs no secret. The file, and
 * each secret file, is the daemon's user's own and closed to others.
 *
 * Owns: everything that is read; kvl_tenants_free wipes the secrets. */
#ifndef KVL_TENANTS_FILE_H
#define KVL_TENANTS_FILE_H

#include "server.h"
#include "store.h"

struct kvl_tenants {
    struct kvl_tenant_options *store; /* all but operators */
    struct kvl_server_tenant *server;
    uint32_t store_count, server_count;
};

/* Errors: NOTFOUND, PERM (others may read it), INVALID, NOMEM; msg names file and entry. */
KVL_MUST_CHECK kvl_err kvl_tenants_read(
    const char *path, struct kvl_tenants *out, struct kvl_errmsg *msg);
void kvl_tenants_free(struct kvl_tenants *tenants); /* zeroed is fine */

#endif
