/* cmd_bench.c - runs a benchmark program, kvl_bench_NAME, that stands beside this one.
 *
 * Benchmarks are programs of their own: nothing of the product links them. */
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"

#define BENCH_PREFIX "kvl_bench_"

static bool own_folder(char *path, size_t path_bytes) {
    ssize_t bytes = readlink("/proc/self/exe", path, path_bytes - 1);
    if (bytes <= 0)
        return false;
    path[bytes] = '\0';
    char *slash = strrchr(path, '/');
    if (!slash)
        return false;
    *slash = '\0';
    return true;
}

static int list_benchmarks(const char *folder) {
    DIR *dir = opendir(folder);
    struct dirent *entry;
    if (!dir)
        return cli_error("cannot read %s: %m", folder);
    uint32_t count = 0;
    while ((entry = readdir(dir)))
        if (strncmp(entry->d_name, BENCH_PREFIX, strlen(BENCH_PREFIX)) == 0)
            fprintf(stderr, "%s%s", count++ == 0 ? "kvloft: bench takes one NAME of: " : " ",
                entry->d_name + strlen(BENCH_PREFIX));
    if (count == 0)
        fprintf(stderr,
            "kvloft: no benchmark stands in %s: they are not installed, run the build's own "
            "kvloft (build/release/bin)",
            folder);
    fputc('\n', stderr);
    closedir(dir);
    return CLI_USAGE;
}

static int run_bench(const struct cli_options *options, int argc, char **argv) {
    char folder[4096], program[4400];
    if (!own_folder(folder, sizeof folder))
        return cli_error("cannot tell where this program stands: %m");
    if (argc < 1 || strchr(argv[0], '/'))
        return list_benchmarks(folder);
    snprintf(program, sizeof program, "%s/" BENCH_PREFIX "%s", folder, argv[0]);
    if (access(program, X_OK) != 0)
        return list_benchmarks(folder);
    char **arguments = calloc((size_t)argc + 3, sizeof *arguments);
    if (!arguments)
        return cli_error("out of memory");
    int count = 0;
    arguments[count++] = program;
    for (int i = 1; i < argc; i++)
        arguments[count++] = argv[i];
    if (options->json)
        arguments[count++] = "--json";
    execv(program, arguments);
    free(arguments);
    return cli_error("cannot run %s: %m", program);
}

const struct cli_command cli_bench = {
    .name = "bench",
    .summary = "measure something against its limit, in one run",
    .usage = "NAME [WORDS...] [--json]\n"
             "NAME: one of those that `kvloft bench` alone lists; WORDS: what that one takes",
    .run = run_bench,
};
