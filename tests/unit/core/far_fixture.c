/* far_fixture.c - see far_fixture.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "far_fixture.h"

char far_folder[64];

int far_make_folder(void **state) {
    (void)state;
    strcpy(far_folder, "/tmp/kvl-far-XXXXXX");
    return mkdtemp(far_folder) == NULL;
}

int far_remove_folder(void **state) {
    (void)state;
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", far_folder);
    return system(command);
}

void far_open(struct fixture *f, struct fixture_options options) {
    options.far_device = true;
    fixture_open(f, &options);
}

struct kvl_completion *far_word_of(struct fixture *f, struct kvl_ticket ticket) {
    return kvl_ticket_word(kvl_store_tickets(f->store), ticket);
}

void far_fail(struct fixture *f, uint32_t ops, kvl_err error) {
    const struct kvl_fault_rule rule = {
        .kind = KVL_FAULT_ERROR, .ops = ops, .error = error, .per_million = 1000000};
    assert_int_equal(kvl_fault_tier_set_rules(f->device, &rule, 1), KVL_OK);
}

void far_mend(struct fixture *f) {
    assert_int_equal(kvl_fault_tier_set_rules(f->device, NULL, 0), KVL_OK);
}
