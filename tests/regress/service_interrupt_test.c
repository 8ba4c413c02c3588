/* A signal's handler interrupted a service through a pointer that was valid only while it served:
 * one that came before was lost but for a look at flags, one that came at the end wrote where the
 * service had been. An interrupt is good from create to destroy: one from before is heard when the
 * service serves, one from after the end does nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka needs the four above first */
#include <cmocka.h>
#include <errno.h>

#include "service.h"

static uint32_t asked, ready_count;

static bool goes_on(void *arg, struct kvl_service *service) {
    assert_ptr_equal(arg, &asked);
    assert_int_equal(ready_count, 1);
    kvl_service_interrupt(service);
    return ++asked < 3;
}

static void on_ready(void *arg, struct kvl_service *service) {
    (void)arg, (void)service;
    ready_count++;
}

static void interrupts_are_heard_from_create_to_destroy(void **state) {
    const struct kvl_service_options options = {
        .device = "cpu", .device_bytes = 1u << 20, .goes_on = goes_on};
    struct kvl_service *service;
    struct kvl_errmsg msg = {""};
    (void)state;
    assert_int_equal(kvl_service_create(&options, NULL, &service, &msg), KVL_OK);
    errno = 77;
    kvl_service_interrupt(service);
    kvl_service_interrupt(service);
    assert_int_equal(errno, 77);
    assert_int_equal(kvl_service_run(service, on_ready, &asked, &msg), KVL_OK);
    assert_int_equal(asked, 3); /* two together are one, and those from goes_on one each */
    errno = 78;
    kvl_service_interrupt(service);
    assert_int_equal(errno, 78);
    kvl_service_destroy(service);
}

/* One that could not open its parts can be interrupted all the same. */
static void a_service_that_failed_can_be_interrupted(void **state) {
    const struct kvl_service_options options = {
        .device = "cpu", .device_bytes = 1u << 20, .address = "nowhere"};
    struct kvl_service *service;
    struct kvl_errmsg msg = {""};
    (void)state;
    assert_int_equal(kvl_service_create(&options, NULL, &service, &msg), KVL_OK);
    assert_int_not_equal(kvl_service_run(service, on_ready, NULL, &msg), KVL_OK);
    kvl_service_interrupt(service);
    kvl_service_destroy(service);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(interrupts_are_heard_from_create_to_destroy),
        cmocka_unit_test(a_service_that_failed_can_be_interrupted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
