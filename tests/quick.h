/* quick.h - `--quick`, the argument of test programs that take long under ThreadSanitizer: fewer
 * tokens and fewer cases, each of which still has its threads meet. */
#ifndef KVL_TESTS_QUICK_H
#define KVL_TESTS_QUICK_H

#include <stdbool.h>
#include <string.h>

static inline bool kvl_is_quick(int argc, char **argv) {
    return argc > 1 && strcmp(argv[argc - 1], "--quick") == 0;
}

#endif
