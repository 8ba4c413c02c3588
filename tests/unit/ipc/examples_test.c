/* The example programs run against a real daemon: as the build has them, twice (the second run
 * finds the first one's blocks), and compiled against an installed tree with pkg-config alone. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "harness.h"

static struct test_daemon daemon_a;

static int setup(void **state) {
    (void)state;
    daemon_init(&daemon_a);
    return daemon_start(&daemon_a) ? 0 : -1;
}

static int teardown(void **state) {
    (void)state;
    daemon_remove(&daemon_a);
    return 0;
}

static void run(const char *program) {
    char command[1024];
    snprintf(command, sizeof command, "%s %s", program, daemon_a.address);
    int status = system(command);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
        fail_msg("%s: status %d", command, status);
}

static void test_examples_run(void **state) {
    (void)state;
    for (int i = 0; i < 2; i++) {
        run(KVL_TEST_EXAMPLES "/example_offload");
        run(KVL_TEST_EXAMPLES "/example_resident");
    }
}

static void test_examples_build_against_an_installed_tree(void **state) {
    (void)state;
    char command[4096], program[128];
    static const char *const names[] = {"offload", "resident"};
    if (strlen(KVL_TEST_SANITIZE) != 0)
        skip(); /* the library would need the program to be instrumented as well */
    snprintf(command, sizeof command, "'%s' --install '%s/ipc' --prefix '%s/tree' > /dev/null",
        KVL_TEST_CMAKE, KVL_TEST_BUILD, daemon_a.directory);
    assert_int_equal(system(command), 0);
    for (int i = 0; i < 2; i++) {
        snprintf(program, sizeof program, "%s/%s", daemon_a.directory, names[i]);
        snprintf(command, sizeof command,
            "export PKG_CONFIG_PATH=$(dirname $(find %s/tree -name kvloft.pc)); '%s' -Wall -Werror "
            "'%s/%s.c' $(pkg-config --define-prefix --cflags --libs kvloft) "
            "-Wl,-rpath,$(pkg-config --define-prefix --variable=libdir kvloft) -o %s",
            daemon_a.directory, KVL_TEST_CC, KVL_TEST_SOURCES, names[i], program);
        assert_int_equal(system(command), 0);
        run(program);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_examples_run),
        cmocka_unit_test(test_examples_build_against_an_installed_tree),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
