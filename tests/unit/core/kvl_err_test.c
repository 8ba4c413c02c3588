#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <errno.h>

#include "kvl_err.h"

static void names_and_texts_cover_every_value(void **state) {
    (void)state;
    assert_string_equal(kvl_err_name(KVL_ERR_NOSPC), "NOSPC");
    assert_string_equal(kvl_err_text(KVL_ERR_PENDING), "being filled by another engine");
    assert_string_equal(kvl_err_name((kvl_err)999), "UNKNOWN");
}

static void fail_writes_the_message_and_returns_the_error(void **state) {
    (void)state;
    struct kvl_errmsg msg;
    assert_int_equal(kvl_fail(&msg, KVL_ERR_IO, "disk %d is gone", 3), KVL_ERR_IO);
    assert_string_equal(msg.text, "disk 3 is gone");
    assert_int_equal(kvl_fail(NULL, KVL_ERR_BUSY, "ignored"), KVL_ERR_BUSY);
}

static void errno_maps_to_distinct_errors(void **state) {
    (void)state;
    assert_int_equal(kvl_err_from_errno(ENOSPC), KVL_ERR_NOSPC);
    assert_int_equal(kvl_err_from_errno(EROFS), KVL_ERR_PERM);
    assert_int_equal(kvl_err_from_errno(EIO), KVL_ERR_IO);
    assert_int_equal(kvl_err_from_errno(0), KVL_OK);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_and_texts_cover_every_value),
        cmocka_unit_test(fail_writes_the_message_and_returns_the_error),
        cmocka_unit_test(errno_maps_to_distinct_errors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
