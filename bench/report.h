/* report.h - what every benchmark prints: values beside their limits, both from the same run.
 *
 * As a table, or with --json one object: results: [{name, value, unit, limit, ratio}]. */
#ifndef KVL_BENCH_REPORT_H
#define KVL_BENCH_REPORT_H

#include <stdbool.h>
#include <stddef.h>

struct bench_report {
    struct bench_result {
        char name[64];
        double value;
        const char *unit; /* static storage */
        double limit;     /* 0: there is none */
    } results[128];
    size_t count;
};

/* ratio is value / limit. Results past the 128th are dropped with a line on stderr. */
void bench_report_add(
    struct bench_report *report, const char *name, double value, const char *unit, double limit);
/* Returns the exit status: 1 when stdout could not be written. */
int bench_report_print(const struct bench_report *report, bool json);
/* True when --json is among the words. */
bool bench_wants_json(int argc, char **argv);
/* The number behind --blocks, otherwise without; 0: another word is there, or no number. */
long bench_blocks(int argc, char **argv, long without);
/* Sorts values in place. count >= 1; share 0.5 is the median, 0.99 the 99th percentile. */
double bench_percentile(double *values, size_t count, double share);

#endif
