#include "report.h"

#include <getopt.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void bench_report_add(
    struct bench_report *report, const char *name, double value, const char *unit, double limit) {
    if (report->count == sizeof report->results / sizeof report->results[0]) {
        fprintf(stderr, "bench: no room for result %s\n", name);
        return;
    }
    struct bench_result *result = &report->results[report->count++];
    snprintf(result->name, sizeof result->name, "%s", name);
    result->value = value;
    result->unit = unit;
    result->limit = limit;
}

static double ratio_of(const struct bench_result *result) {
    return result->limit != 0.0 ? result->value / result->limit : 0.0;
}

static int print_json(const struct bench_report *report) {
    json_t *list = json_array();
    for (size_t i = 0; i < report->count; i++) {
        const struct bench_result *r = &report->results[i];
        json_array_append_new(
            list, json_pack("{s:s,s:f,s:s,s:f,s:f}", "name", r->name, "value", r->value, "unit",
                      r->unit, "limit", r->limit, "ratio", ratio_of(r)));
    }
    json_t *object = json_pack("{s:o}", "results", list);
    int status = object ? json_dumpf(object, stdout, JSON_COMPACT) : -1;
    json_decref(object);
    return status != 0 || putchar('\n') == EOF;
}

int bench_report_print(const struct bench_report *report, bool json) {
    if (json)
        return print_json(report) || fflush(stdout) != 0;
    printf("%-44s %12s %-8s %12s %7s\n", "", "value", "", "limit", "ratio");
    for (size_t i = 0; i < report->count; i++) {
        const struct bench_result *r = &report->results[i];
        printf("%-44s %12.3f %-8s", r->name, r->value, r->unit);
        if (r->limit != 0.0)
            printf(" %12.3f %7.2f", r->limit, ratio_of(r));
        putchar('\n');
    }
    return fflush(stdout) != 0;
}

bool bench_wants_json(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--json") == 0)
            return true;
    return false;
}

long bench_blocks(int argc, char **argv, long without) {
    static const struct option options[] = {{"blocks", required_argument, NULL, 'b'},
        {"json", no_argument, NULL, 'j'}, {NULL, 0, NULL, 0}};
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'b')
            without = strtol(optarg, NULL, 10);
        else if (option != 'j')
            return 0;
    }
    return without;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_percentile(double *values, size_t count, double share) {
    qsort(values, count, sizeof *values, compare_doubles);
    size_t index = (size_t)(share * (double)(count - 1) + 0.5);
    return values[index];
}
