#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "clock.h"
#include "log.h"

struct sink_record {
    int lines;
    enum kvl_log_level level;
    char last[2048];
};

static void record_line(void *arg, enum kvl_log_level level, const char *line) {
    struct sink_record *record = arg;
    record->lines++;
    record->level = level;
    snprintf(record->last, sizeof record->last, "%s", line);
}

static void lines_above_the_level_are_dropped(void **state) {
    (void)state;
    struct sink_record record = {0};
    struct kvl_log *log = kvl_log_create(KVL_LOG_INFO, record_line, &record);
    assert_non_null(log);
    KVL_DEBUG(log, "event=%s", "quiet");
    assert_int_equal(record.lines, 0);
    KVL_WARN(log, "event=loud n=%d", 7);
    assert_int_equal(record.lines, 1);
    assert_int_equal(record.level, KVL_LOG_WARN);
    assert_string_equal(record.last, "event=loud n=7");
    kvl_log_destroy(log);
}

static void a_fallback_is_said_once_and_kept(void **state) {
    (void)state;
    struct sink_record record = {0};
    struct kvl_log *log = kvl_log_create(KVL_LOG_INFO, record_line, &record);
    for (int i = 0; i < 3; i++)
        kvl_log_fallback(log, "no huge pages for %s", "host");
    kvl_log_fallback(log, "io_uring unavailable");
    assert_int_equal(record.lines, 2);
    char text[64];
    assert_int_equal(kvl_log_fallback_at(log, 0, text, sizeof text), 1);
    assert_string_equal(text, "no huge pages for host");
    assert_int_equal(kvl_log_fallback_at(log, 1, text, 8), 1);
    assert_string_equal(text, "io_urin");
    assert_int_equal(kvl_log_fallback_at(log, 2, text, sizeof text), 0);
    kvl_log_destroy(log);
}

static void at_most_32_fallbacks_are_kept(void **state) {
    (void)state;
    struct kvl_log *log = kvl_log_create(KVL_LOG_INFO, NULL, NULL);
    for (int i = 0; i < 100; i++)
        kvl_log_fallback(log, "reason %d", i);
    char text[64];
    assert_int_equal(kvl_log_fallback_at(log, 31, text, sizeof text), 1);
    assert_string_equal(text, "reason 31");
    assert_int_equal(kvl_log_fallback_at(log, 32, text, sizeof text), 0);
    kvl_log_destroy(log);
}

static void long_lines_are_cut_and_no_log_is_fine(void **state) {
    (void)state;
    struct sink_record record = {0};
    struct kvl_log *log = kvl_log_create(KVL_LOG_INFO, record_line, &record);
    char text[1800];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    KVL_INFO(log, "%s", text);
    assert_int_equal(strlen(record.last), 1023);
    kvl_log_destroy(log);
    KVL_ERROR(NULL, "dropped");
    kvl_log_fallback(NULL, "dropped");
    assert_int_equal(kvl_log_fallback_at(NULL, 0, text, sizeof text), 0);
    kvl_log_destroy(NULL);
}

static void clocks_go_forward_in_nanoseconds(void **state) {
    (void)state;
    uint64_t before = kvl_clock_ns();
    assert_true(kvl_clock_ns() >= before);
    /* Past the year 2020 and before 2200, so neither in seconds nor microseconds. */
    assert_true(kvl_clock_wall_ns() > UINT64_C(1577836800000000000));
    assert_true(kvl_clock_wall_ns() < UINT64_C(7258118400000000000));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_above_the_level_are_dropped),
        cmocka_unit_test(a_fallback_is_said_once_and_kept),
        cmocka_unit_test(at_most_32_fallbacks_are_kept),
        cmocka_unit_test(long_lines_are_cut_and_no_log_is_fine),
        cmocka_unit_test(clocks_go_forward_in_nanoseconds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
