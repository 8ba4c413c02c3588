/* gpu_main.c - what a GPU does for kvloft beside what it could do at most, in one report.
 *
 *   kvl_bench_gpu [--json] [--shape SHAPE] [copy] [lease] [attention] [engine]      (all)
 *       [--staging-mib N] [--copy-streams N] [--hash-threads N] [--driver-threads 1|2]
 *       [--spin-us N]
 *
 * About half a minute. Weights are random; llama-8b is the shape unless another is named. The
 * lower lines are for finding what serves copies best on a GPU; otherwise the tier chooses. */
#include <cuda_runtime_api.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_bench.h"
#include "gpu_copy.h"
#include "gpu_lease.h"

enum part { COPY = 1, ATTENTION = 2, ENGINE = 4, LEASE = 8, ALL = 15 };

struct options {
    bool json;
    const char *shape;
    unsigned parts; /* 0: wrong usage */
    struct bench_gpu_copy_options copy;
};

/* One of those for copies; a word that is no number is 0, the tier's choice. */
static void take_copy_option(struct bench_gpu_copy_options *copy, int option, const char *word) {
    const uint32_t number = (uint32_t)strtoul(word, NULL, 10);
    if (option == 'm')
        copy->staging_bytes = (uint64_t)number << 20;
    else if (option == 'c')
        copy->copy_streams = number;
    else if (option == 't')
        copy->driver_threads = number;
    else if (option == 'u')
        copy->spin_us = number;
    else
        copy->hash_threads = number;
}

static unsigned part_of(const char *word) {
    if (strcmp(word, "copy") == 0)
        return COPY;
    if (strcmp(word, "attention") == 0)
        return ATTENTION;
    if (strcmp(word, "lease") == 0)
        return LEASE;
    return strcmp(word, "engine") == 0 ? ENGINE : 0;
}

static struct options parse(int argc, char **argv) {
    static const struct option words[] = {{"json", no_argument, NULL, 'j'},
        {"shape", required_argument, NULL, 's'}, {"staging-mib", required_argument, NULL, 'm'},
        {"copy-streams", required_argument, NULL, 'c'},
        {"hash-threads", required_argument, NULL, 'h'},
        {"driver-threads", required_argument, NULL, 't'}, {"spin-us", required_argument, NULL, 'u'},
        {NULL, 0, NULL, 0}};
    struct options options = {.shape = "llama-8b"};
    int option;
    while ((option = getopt_long(argc, argv, "", words, NULL)) != -1) {
        if (option == '?')
            return options;
        options.json |= option == 'j';
        if (option == 's')
            options.shape = optarg;
        else if (option != 'j')
            take_copy_option(&options.copy, option, optarg);
    }
    for (int i = optind; i < argc; i++) {
        if (part_of(argv[i]) == 0)
            return (struct options){0};
        options.parts |= part_of(argv[i]);
    }
    if (optind == argc)
        options.parts = ALL;
    return options;
}

static kvl_err copy_part(
    struct bench_gpu_copy_options copy, struct bench_report *report, struct kvl_errmsg *msg) {
    struct kvl_cuda_driver *driver = NULL;
    kvl_err err = kvl_cuda_driver_open(&driver, msg);
    copy.driver = driver;
    if (err == KVL_OK)
        err = bench_gpu_copy(&copy, report, msg);
    kvl_cuda_driver_close(driver);
    return err;
}

/* The link, as copies have just measured it; 0: they were not asked for. */
static double link_gb_per_s(const struct bench_report *report) {
    double link = 0;
    for (size_t i = 0; i < report->count; i++)
        if (strncmp(report->results[i].name, "gpu.store", strlen("gpu.store")) == 0 &&
            report->results[i].limit > link)
            link = report->results[i].limit;
    return link;
}

static bool has_gpu(void) {
    int gpus = 0;
    const cudaError_t error = cudaGetDeviceCount(&gpus);
    if (error == cudaSuccess && gpus > 0)
        return true;
    fprintf(stderr, "kvl_bench_gpu: no GPU: %s\n",
        error == cudaSuccess ? "none found" : cudaGetErrorString(error));
    return false;
}

int main(int argc, char **argv) {
    static struct bench_report report;
    struct kvl_errmsg msg = {""};
    const struct options options = parse(argc, argv);
    if (options.parts == 0) {
        fprintf(stderr,
            "usage: kvl_bench_gpu [--json] [--shape SHAPE] [copy] [lease] [attention] [engine]\n");
        return 2;
    }
    if (!has_gpu())
        return 1;
    if ((options.parts & COPY) != 0 && copy_part(options.copy, &report, &msg) != KVL_OK) {
        fprintf(stderr, "kvl_bench_gpu: copy: %s\n", msg.text);
        return 1;
    }
    if ((options.parts & LEASE) != 0)
        bench_gpu_lease(&(struct bench_gpu_lease_options){.device = "cuda",
                            .link_gb_per_s = link_gb_per_s(&report)},
            &report);
    if ((options.parts & ATTENTION) != 0)
        bench_gpu_attention(&report);
    if ((options.parts & ENGINE) != 0)
        bench_gpu_engine(options.shape, &report);
    return bench_report_print(&report, options.json);
}
