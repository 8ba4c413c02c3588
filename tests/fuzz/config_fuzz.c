/* config_fuzz.c - any bytes as kvloftd's --config file: refused with a message, or options whose
 * texts can be read; and the address among them as every client takes it apart. And the same bytes
 * as its --tenants file. */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "address.h"
#include "daemon_options.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes);

static volatile size_t sink; /* keeps the reads */

static void read_text(const char *text) {
    sink += text != NULL ? strlen(text) : 0;
}

static void use(const struct daemon_options *options) {
    struct kvl_address address;
    struct kvl_errmsg msg = {{0}};
    read_text(options->service.address);
    read_text(options->service.device);
    read_text(options->service.disk_path);
    read_text(options->service.secret_file);
    kvl_err err = kvl_address_parse(options->service.address, &address, &msg);
    if ((err == KVL_OK) != (msg.text[0] == 0))
        abort(); /* an error says what it is */
    if (err == KVL_OK && address.transport == KVL_TRANSPORT_IPC)
        read_text(kvl_address_attach_sockaddr(&address).sun_path);
}

static void read_tenants(const char *path) {
    struct kvl_tenants tenants;
    struct kvl_errmsg msg = {{0}};
    kvl_err err = kvl_tenants_read(path, &tenants, &msg);
    if ((err == KVL_OK) != (msg.text[0] == 0))
        abort();
    for (uint32_t i = 0; i < tenants.server_count; i++)
        read_text(tenants.server[i].name);
    kvl_tenants_free(&tenants);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes) {
    static int fd = -1;
    static char path[32];
    if (fd < 0) {
        fd = memfd_create("config", MFD_CLOEXEC);
        if (fd < 0 || fchmod(fd, 0600) != 0)
            abort();
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    if (ftruncate(fd, 0) != 0 || pwrite(fd, data, data_bytes, 0) != (ssize_t)data_bytes)
        abort();
    char program[] = "kvloftd", option[] = "--config";
    char *arguments[] = {program, option, path, NULL};
    struct daemon_options options;
    int status = -1;
    if (daemon_options_parse(3, arguments, &options, &status))
        use(&options);
    else if (status != DAEMON_USAGE)
        abort();
    daemon_options_deinit(&options);
    read_tenants(path);
    return 0;
}
