/* cmocka.h - as much of cmocka as the unit tests built for another CPU use, whose libraries are
 * seldom installed: each test runs in turn, and the first failure ends the program. */
#ifndef KVL_CROSS_CMOCKA_H
#define KVL_CROSS_CMOCKA_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct CMUnitTest {
    const char *name;
    void (*run)(void **state);
};

#define cmocka_unit_test(function)                                                                 \
    { #function, function }

#define print_message(...) ((void)printf(__VA_ARGS__))
#define fail_msg(...)                                                                              \
    do {                                                                                           \
        (void)printf("%s:%d: ", __FILE__, __LINE__);                                               \
        (void)printf(__VA_ARGS__);                                                                 \
        (void)printf("\n");                                                                        \
        exit(1);                                                                                   \
    } while (0)

#define assert_true(condition)                                                                     \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fail_msg("not true: %s", #condition);                                                  \
        }                                                                                          \
    } while (0)
#define assert_null(pointer) assert_true((pointer) == NULL)
#define assert_non_null(pointer) assert_true((pointer) != NULL)
#define assert_ptr_equal(a, b) assert_true((const void *)(a) == (const void *)(b))
#define assert_int_equal(a, b) assert_true((uint64_t)(a) == (uint64_t)(b))
#define assert_memory_equal(a, b, bytes) assert_true(memcmp(a, b, bytes) == 0)

#define cmocka_run_group_tests(tests, setup, teardown)                                             \
    run_tests(tests, sizeof(tests) / sizeof((tests)[0]))

static inline int run_tests(const struct CMUnitTest *tests, size_t count) {
    for (size_t i = 0; i < count; i++) {
        void *state = NULL;
        (void)printf("%s\n", tests[i].name);
        (void)fflush(stdout);
        tests[i].run(&state);
    }
    (void)printf("%zu tests passed\n", count);
    return 0;
}

#endif
