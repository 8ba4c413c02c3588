/* daemon_options.c - see daemon_options.h. */
#include "daemon_options.h"

#include <assert.h>
#include <getopt.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "address.h"
#include "cuda_device.h"
#include "kvloft.h"
#include "size.h"

static const char usage_text[] =
    "usage: kvloftd [--listen ADDR] [--device cpu|cuda[:N]] [--device-bytes N] [--host-bytes N]\n"
    "               [--disk-path DIR --disk-bytes N] [--persist-ms N] [--stop-seconds N]\n"
    "               [--config FILE]\n"
    "\n"
    "Keeps KV cache blocks in device memory, host memory and on disk, for engines to share.\n"
    "\n"
    "  --listen ADDR      ipc://PATH (default: $XDG_RUNTIME_DIR/kvloft/kvloft.sock), or\n"
    "                     tcp://HOST:PORT with --secret-file\n"
    "  --device DEVICE    where hot blocks are: cpu (default), or cuda[:N], the GPU with that "
    "number\n"
    "  --device-bytes N   capacity of that tier (default 512M)\n"
    "  --host-bytes N     capacity of host memory behind it (default 512M; 0: none; a GPU needs "
    "it)\n"
    "  --disk-path DIR    keeps blocks and sessions there across restarts (default: nowhere)\n"
    "  --disk-bytes N     cap of everything in DIR (default 8G)\n"
    "  --disk-io HOW      auto (default), uring, posix (threads), buffered (page cache)\n"
    "  --persist-ms N     what was sealed is durable within this (default 200)\n"
    "  --stop-seconds N   SIGTERM waits this long for the disk (default 30; 0: for ever)\n"
    "  --secret-file FILE the shared secret of tcp:// clients\n"
    "  --tenants FILE     who may come in, with which secret and quotas: a JSON list of objects\n"
    "                     with name, secret or secret_file, and optionally device_bytes,\n"
    "                     host_bytes, disk_bytes, operator (default: anybody of this user)\n"
    "  --log-level LEVEL  error, warn, info (default), debug, trace\n"
    "  --config FILE      JSON object with these names as keys, without the dashes\n"
    "  --help, --version\n"
    "\n"
    "Sizes take K, M, G and T. SIGTERM and SIGINT flush, then end with status 0; one more of them, "
    "a\n"
    "second or more later, ends at once. SIGHUP reads FILE again: log-level, persist-ms and\n"
    "stop-seconds change while it runs.\n"
    "Exit status: 0 done, 1 failed, 2 wrong usage. Log lines go to stderr.\n";

#define CONFIG_OPTION 'c'
#define STOP_SECONDS_MAX 86400u
static const struct option long_options[] = {
    {"listen", required_argument, NULL, 'l'},
    {"device", required_argument, NULL, 'd'},
    {"device-bytes", required_argument, NULL, 'D'},
    {"host-bytes", required_argument, NULL, 'H'},
    {"disk-path", required_argument, NULL, 'p'},
    {"disk-bytes", required_argument, NULL, 'P'},
    {"disk-io", required_argument, NULL, 'i'},
    {"persist-ms", required_argument, NULL, 'm'},
    {"stop-seconds", required_argument, NULL, 'S'},
    {"secret-file", required_argument, NULL, 's'},
    {"tenants", required_argument, NULL, 't'},
    {"log-level", required_argument, NULL, 'L'},
    {"config", required_argument, NULL, CONFIG_OPTION},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'v'},
    {NULL, 0, NULL, 0},
};

/* Prints and returns false, so that a wrong value is one line. */
__attribute__((format(printf, 1, 2))) static bool wrong(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("kvloftd: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    return false;
}

static bool take_size(const char *name, const char *value, uint64_t *out) {
    return kvl_parse_size(value, out) ||
           wrong("%s %s: not a size such as 4096, 512K, 256M or 2G", name, value);
}

static bool take_number(
    const char *name, const char *value, const char *unit, uint64_t max, uint32_t *out) {
    uint64_t number = 0;
    if (!kvl_parse_number(value, max, &number))
        return wrong(
            "%s %s: not a number of %s, at most %llu", name, value, unit, (unsigned long long)max);
    *out = (uint32_t)number;
    return true;
}

static bool take_disk_io(const char *name, const char *value, const char **out) {
    *out = value;
    return strcmp(value, "auto") == 0 || strcmp(value, "uring") == 0 ||
           strcmp(value, "posix") == 0 || strcmp(value, "buffered") == 0 ||
           wrong("%s %s: it is auto, uring, posix or buffered", name, value);
}

static bool take_log_level(const char *name, const char *value, enum kvl_log_level *out) {
    static const char *const names[] = {"error", "warn", "info", "debug", "trace"};
    for (unsigned i = 0; i < sizeof names / sizeof names[0]; ++i)
        if (strcmp(value, names[i]) == 0) {
            *out = (enum kvl_log_level)i;
            return true;
        }
    return wrong("%s %s: it is error, warn, info, debug or trace", name, value);
}

static bool take(struct daemon_options *options, int id, const char *name, const char *value) {
    struct kvl_service_options *service = &options->service;
    uint32_t device_number;
    assert(value); /* every option but --help takes one */
    switch (id) {
    case 'l':
        service->address = value;
        return true;
    case 'd':
        service->device = value;
        return strcmp(value, "cpu") == 0 || kvl_cuda_device_parse(value, &device_number) ||
               wrong("%s %s: it is cpu or cuda[:N]", name, value);
    case 'D':
        return take_size(name, value, &service->device_bytes);
    case 'H':
        return take_size(name, value, &service->host_bytes);
    case 'p':
        service->disk_path = value;
        return true;
    case 'P':
        options->disk_option = "--disk-bytes";
        return take_size(name, value, &service->disk_bytes);
    case 'm':
        return take_number(name, value, "milliseconds", UINT32_MAX, &service->persist_ms);
    case 'S':
        return take_number(name, value, "seconds", STOP_SECONDS_MAX, &service->stop_seconds);
    case 'i':
        options->disk_option = "--disk-io";
        return take_disk_io(name, value, &service->disk_io);
    case 's':
        service->secret_file = value;
        return true;
    case 't':
        options->tenants_path = value;
        return true;
    case 'L':
        return take_log_level(name, value, &options->log_level);
    default:
        return wrong("unknown option");
    }
}

/* A string or a whole number; the text is kept until deinit. */
static bool take_json(
    struct daemon_options *options, const char *path, const char *name, const json_t *value) {
    const struct option *found = long_options;
    while (found->name != NULL && strcmp(found->name, name) != 0)
        ++found;
    if (found->name == NULL || found->has_arg == no_argument || found->val == CONFIG_OPTION)
        return wrong("%s: \"%s\" is no option; see --help", path, name);
    char number[32];
    const char *text = json_string_value(value);
    if (json_is_integer(value)) {
        snprintf(number, sizeof number, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
        text = number;
    }
    if (text == NULL)
        return wrong("%s: \"%s\" is neither a text nor a whole number", path, name);
    char *copy = strdup(text);
    if (copy == NULL)
        return wrong("out of memory");
    options->texts[options->text_count++] = copy; /* names are distinct: one place for each */
    return take(options, found->val, name, copy);
}

static bool read_config(struct daemon_options *options, const char *path) {
    json_error_t error;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (root == NULL)
        return error.line < 0 ? wrong("--config %s: cannot read it: %m", path)
                              : wrong("--config %s: line %d: %s", path, error.line, error.text);
    bool good = json_is_object(root) || wrong("--config %s: not a JSON object", path);
    const char *name;
    json_t *value;
    /* A root that is no object has no members to visit. */
    json_object_foreach(root, name, value) if (good) good = take_json(options, path, name, value);
    json_decref(root);
    return good;
}

static bool take_word(struct daemon_options *options, int id, const char *name) {
    char dashed[32];
    snprintf(dashed, sizeof dashed, "--%s", name);
    return take(options, id, dashed, optarg);
}

static bool parse_words(
    int argc, char **argv, struct daemon_options *options, const char **config, int *status) {
    bool applies = config == NULL; /* the second pass */
    optind = 1;
    for (int id = 0, index = 0; (id = getopt_long(argc, argv, "", long_options, &index)) != -1;) {
        if (id == 'h' || id == 'v') {
            fputs(id == 'h' ? usage_text : "kvloftd " KVL_VERSION "\n", stdout);
            *status = DAEMON_DONE;
            return false;
        }
        if (id == '?')
            return false;
        if (id == CONFIG_OPTION && !applies)
            *config = optarg;
        else if (id != CONFIG_OPTION && applies &&
                 !take_word(options, id, long_options[index].name))
            return false;
    }
    return optind == argc || wrong("'%s' is no option; see --help", argv[optind]);
}

static bool read_tenants(struct daemon_options *options) {
    struct kvl_errmsg msg = {{0}};
    if (options->tenants_path == NULL)
        return true;
    options->service.tenants = &options->tenants;
    return kvl_tenants_read(options->tenants_path, &options->tenants, &msg) == KVL_OK ||
           wrong("--tenants %s", msg.text);
}

/* What one option alone cannot tell. */
static bool fit_together(const struct daemon_options *options) {
    struct kvl_errmsg msg = {{0}};
    if (options->disk_option != NULL && options->service.disk_path == NULL)
        return wrong(
            "%s goes with --disk-path: without it nothing is kept on disk", options->disk_option);
    return kvl_service_check(&options->service, &msg) == KVL_OK || wrong("%s", msg.text);
}

static bool check_address(const struct daemon_options *options) {
    const struct kvl_service_options *service = &options->service;
    struct kvl_address address;
    struct kvl_errmsg msg = {{0}};
    if (kvl_address_parse(service->address, &address, &msg) != KVL_OK)
        return wrong("--listen: %s", msg.text);
    if (address.transport == KVL_TRANSPORT_TCP && service->secret_file == NULL &&
        options->tenants_path == NULL)
        return wrong("--listen %s needs --secret-file FILE, or --tenants FILE", service->address);
    return true;
}

static bool default_address(struct daemon_options *options) {
    if (options->service.address != NULL)
        return true;
    options->service.address = options->address;
    return kvl_default_address(options->address, sizeof options->address) == KVL_OK ||
           wrong("the default address is too long; give --listen ADDR");
}

bool daemon_options_parse(int argc, char **argv, struct daemon_options *options, int *status) {
    *options = (struct daemon_options){
        .service =
            {
                .device = "cpu",
                .device_bytes = KVL_SERVICE_DEVICE_BYTES_DEFAULT,
                .host_bytes = KVL_SERVICE_HOST_BYTES_DEFAULT,
                .disk_bytes = KVL_SERVICE_DISK_BYTES_DEFAULT,
                .stop_seconds = KVL_SERVICE_STOP_SECONDS_DEFAULT,
                .holder_name = "kvloftd",
            },
        .log_level = KVL_LOG_INFO,
    };
    *status = DAEMON_USAGE;
    if (!parse_words(argc, argv, options, &options->config, status) ||
        (options->config != NULL && !read_config(options, options->config)) ||
        !parse_words(argc, argv, options, NULL, status))
        return false;
    return default_address(options) && check_address(options) && fit_together(options) &&
           read_tenants(options);
}

static bool is_same_text(const char *a, const char *b) {
    return a == NULL || b == NULL ? a == b : strcmp(a, b) == 0;
}

void daemon_options_need_restart(const struct daemon_options *now,
    const struct daemon_options *fresh, char *names, size_t names_bytes) {
    const struct kvl_service_options *a = &now->service, *b = &fresh->service;
    const struct {
        const char *name;
        bool same;
    } fixed[] = {
        {"listen", is_same_text(a->address, b->address)},
        {"device", is_same_text(a->device, b->device)},
        {"device-bytes", a->device_bytes == b->device_bytes},
        {"host-bytes", a->host_bytes == b->host_bytes},
        {"disk-path", is_same_text(a->disk_path, b->disk_path)},
        {"disk-bytes", a->disk_bytes == b->disk_bytes},
        {"disk-io", is_same_text(a->disk_io, b->disk_io)},
        {"secret-file", is_same_text(a->secret_file, b->secret_file)},
        {"tenants", is_same_text(now->tenants_path, fresh->tenants_path)},
    };
    size_t at = 0;
    names[0] = '\0';
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0] && at < names_bytes; ++i)
        if (!fixed[i].same)
            at += (size_t)snprintf(names + at, names_bytes - at, " %s", fixed[i].name);
}

void daemon_options_deinit(struct daemon_options *options) {
    for (unsigned i = 0; i < options->text_count; ++i)
        free(options->texts[i]);
    options->text_count = 0;
    kvl_tenants_free(&options->tenants);
}
