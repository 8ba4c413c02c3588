/* policy_test.c - least recently used, and that skipped parents do not make eviction quadratic. */
#include "policy.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static bool any(void *arg, uint32_t block) {
    (void)arg;
    (void)block;
    return true;
}

static bool none(void *arg, uint32_t block) {
    (void)arg;
    (void)block;
    return false;
}

static void the_least_recently_used_goes_first(void **state) {
    (void)state;
    struct kvl_policy *policy = NULL;
    assert_int_equal(kvl_policy_find("lru")->create(&policy), KVL_OK);
    for (uint32_t block = 0; block < 5; block++)
        assert_int_equal(policy->ops->inserted(policy, 0, block * 5000), KVL_OK);
    policy->ops->used(policy, 0, 0);
    policy->ops->used(policy, 0, 123456); /* not there: no harm */
    policy->ops->removed(policy, 0, 10000);
    const uint32_t order[] = {5000, 15000, 20000, 0};
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(policy->ops->victim(policy, 0, none, NULL), KVL_BLOCK_NONE);
        assert_int_equal(policy->ops->victim(policy, 0, any, NULL), order[i]);
        policy->ops->removed(policy, 0, order[i]);
    }
    assert_int_equal(policy->ops->victim(policy, 0, any, NULL), KVL_BLOCK_NONE);
    policy->ops->destroy(policy);
    assert_null(kvl_policy_find("no such policy"));
    assert_null(kvl_policy_find(NULL));
}

struct chain {
    uint32_t leaf; /* only this one may go */
    uint64_t asked;
};

static bool is_leaf(void *arg, uint32_t block) {
    struct chain *chain = arg;
    chain->asked++;
    return block == chain->leaf;
}

static void a_chain_leaves_leaf_first_in_linear_time(void **state) {
    (void)state;
    struct kvl_policy *policy = NULL;
    struct chain chain = {0};
    assert_int_equal(kvl_policy_lru.create(&policy), KVL_OK);
    for (uint32_t block = 0; block < 2000; block++)
        assert_int_equal(policy->ops->inserted(policy, 0, block), KVL_OK);
    for (uint32_t left = 2000; left > 0; left--) {
        chain.leaf = left - 1;
        assert_int_equal(policy->ops->victim(policy, 0, is_leaf, &chain), left - 1);
        policy->ops->removed(policy, 0, left - 1);
    }
    assert_true(chain.asked < 3 * 2000);
    policy->ops->destroy(policy);
}

static void groups_do_not_touch_each_other(void **state) {
    (void)state;
    struct kvl_policy *policy = NULL;
    assert_int_equal(kvl_policy_lru.create(&policy), KVL_OK);
    for (uint32_t block = 0; block < 6; block++)
        assert_int_equal(policy->ops->inserted(policy, block % 2 * 7, block), KVL_OK);
    assert_int_equal(policy->ops->victim(policy, 3, any, NULL), KVL_BLOCK_NONE);
    assert_int_equal(policy->ops->victim(policy, 9, any, NULL), KVL_BLOCK_NONE);
    policy->ops->used(policy, 7, 1);
    policy->ops->removed(policy, 0, 2);
    const uint32_t order[] = {0, 4}, other[] = {3, 5, 1};
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(policy->ops->victim(policy, 0, any, NULL), order[i]);
        policy->ops->removed(policy, 0, order[i]);
    }
    for (unsigned i = 0; i < 3; i++) {
        assert_int_equal(policy->ops->victim(policy, 7, any, NULL), other[i]);
        policy->ops->removed(policy, 7, other[i]);
    }
    policy->ops->destroy(policy);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_least_recently_used_goes_first),
        cmocka_unit_test(groups_do_not_touch_each_other),
        cmocka_unit_test(a_chain_leaves_leaf_first_in_linear_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
