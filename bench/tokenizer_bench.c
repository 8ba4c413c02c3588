/* tokenizer_bench.c - how fast a model file's tokenizer is, in MB of text a second of CPU time.
 *
 *   kvl_bench_tokenizer MODEL [TEXT]... [--json]
 *
 * MODEL may be a vocabulary alone. Without a text it is the license on every Debian machine,
 * repeated to 8 MB: English, whose words come again. Each text is tokenized once to warm up and
 * then five times; the median counts. The limit is one plain pass over the same bytes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "report.h"
#include "tokenizer.h"

enum { ROUNDS = 5 };
#define DEFAULT_TEXT "/usr/share/common-licenses/GPL-3"
#define DEFAULT_BYTES (UINT64_C(8) << 20)

struct text {
    char *data;
    uint64_t bytes;
};

static double cpu_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static bool read_text(const char *path, struct text *text) {
    FILE *file = fopen(path, "rb");
    *text = (struct text){0};
    if (file == NULL)
        return false;
    for (uint64_t capacity = 0; !feof(file) && !ferror(file);) {
        if (text->bytes == capacity) {
            capacity = 2 * capacity + (1 << 20);
            char *larger = realloc(text->data, capacity);
            if (larger == NULL)
                break;
            text->data = larger;
        }
        text->bytes += fread(text->data + text->bytes, 1, capacity - text->bytes, file);
    }
    bool is_read = feof(file) && text->bytes > 0;
    fclose(file);
    return is_read;
}

/* As often as it takes to be long. */
static bool repeat_to(struct text *text, uint64_t bytes) {
    uint64_t times = bytes / text->bytes + 1, once = text->bytes;
    char *larger = realloc(text->data, times * once);
    if (larger == NULL)
        return false;
    for (uint64_t i = 1; i < times; i++)
        memcpy(larger + i * once, larger, once);
    *text = (struct text){larger, times * once};
    return true;
}

static volatile uint64_t sink;

static double scan_seconds(const struct text *text) {
    double began = cpu_seconds();
    uint64_t words = 0;
    for (uint64_t i = 0; i < text->bytes; i++)
        words += text->data[i] == ' ';
    sink = words;
    return cpu_seconds() - began;
}

static bool measure(struct kvl_tokenizer *tokenizer, const struct text *text, const char *name,
    struct bench_report *report) {
    double seconds[ROUNDS], scans[ROUNDS];
    struct kvl_token_list list = {0};
    kvl_err err = kvl_tokenize(tokenizer, text->data, text->bytes, 0, &list);
    for (int i = 0; i < ROUNDS && !err; i++) {
        list.count = 0;
        double began = cpu_seconds();
        err = kvl_tokenize(tokenizer, text->data, text->bytes, 0, &list);
        seconds[i] = cpu_seconds() - began;
        scans[i] = scan_seconds(text);
    }
    kvl_token_list_free(&list);
    if (err) {
        fprintf(stderr, "kvl_bench_tokenizer: %s: %s\n", name, kvl_err_text(err));
        return false;
    }
    double megabytes = (double)text->bytes * 1e-6;
    bench_report_add(report, name, megabytes / bench_percentile(seconds, ROUNDS, 0.5), "MB/s",
        megabytes / bench_percentile(scans, ROUNDS, 0.5));
    return true;
}

static bool measure_file(struct kvl_tokenizer *tokenizer, const char *path, uint64_t least_bytes,
    struct bench_report *report) {
    struct text text;
    const char *slash = strrchr(path, '/');
    bool is_read = read_text(path, &text) && repeat_to(&text, least_bytes);
    if (!is_read)
        fprintf(stderr, "kvl_bench_tokenizer: cannot read %s\n", path);
    bool is_measured =
        is_read && measure(tokenizer, &text, slash != NULL ? slash + 1 : path, report);
    free(text.data);
    return is_measured;
}

int main(int argc, char **argv) {
    struct kvl_gguf *gguf = NULL;
    struct kvl_tokenizer *tokenizer = NULL;
    struct bench_report report = {0};
    struct kvl_errmsg msg = {{0}};
    bool json = bench_wants_json(argc, argv), is_measured = true, has_text = false;
    if (argc < 2 || argv[1][0] == '-') {
        fprintf(stderr, "usage: kvl_bench_tokenizer MODEL [TEXT]... [--json]\n");
        return 2;
    }
    kvl_err err = kvl_gguf_open(argv[1], &gguf, &msg);
    if (err == KVL_OK)
        err = kvl_tokenizer_create(gguf, &tokenizer, &msg);
    if (err != KVL_OK)
        fprintf(stderr, "kvl_bench_tokenizer: %s\n", msg.text);
    for (int i = 2; i < argc && err == KVL_OK && is_measured; i++) {
        if (argv[i][0] == '-')
            continue;
        has_text = true;
        is_measured = measure_file(tokenizer, argv[i], 1, &report);
    }
    if (err == KVL_OK && !has_text)
        is_measured = measure_file(tokenizer, DEFAULT_TEXT, DEFAULT_BYTES, &report);
    kvl_tokenizer_destroy(tokenizer);
    kvl_gguf_close(gguf);
    return err == KVL_OK && is_measured ? bench_report_print(&report, json) : 1;
}
