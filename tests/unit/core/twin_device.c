/* twin_device.c - see twin_device.h. */
#include "twin_device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <time.h>

#include <cmocka.h>

#include "cuda_twin.h"
#include "device_cuda/cuda_tier.h"

#define STAGING_BYTES (3u << 20) /* pieces of a frame */
#define PIN_WAITS 30000          /* of a millisecond */

void twin_device_open(struct twin_device *device, uint64_t capacity_bytes) {
    struct kvl_errmsg msg = {{0}};
    device->twin = cuda_twin_create(capacity_bytes);
    assert_non_null(device->twin);
    const struct kvl_cuda_tier_options options = {.capacity_bytes = capacity_bytes,
        .staging_bytes = STAGING_BYTES,
        .driver = cuda_twin_driver(device->twin)};
    if (kvl_cuda_tier_create(&options, &device->tier, &msg) != KVL_OK)
        fail_msg("%s", msg.text);
    device->memory_bytes = capacity_bytes;
    device->memory = mmap(NULL, capacity_bytes, PROT_READ | PROT_WRITE, MAP_SHARED,
        device->tier->ops->share_fd(device->tier), 0);
    assert_true(device->memory != MAP_FAILED);
}

void twin_device_pin(struct twin_device *device, struct kvl_tier *host) {
    const uint64_t bytes = host->ops->stats(host).capacity_bytes;
    assert_int_equal(
        kvl_cuda_tier_pin_host(device->tier, host->ops->address(host, 0), bytes), KVL_OK);
    for (int i = 0; i < PIN_WAITS && kvl_cuda_tier_pinned_bytes(device->tier) < bytes; i++)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    assert_int_equal(kvl_cuda_tier_pinned_bytes(device->tier), bytes);
}

void twin_device_close(struct twin_device *device) {
    const char *violation = cuda_twin_violation(device->twin);
    if (violation != NULL)
        fail_msg("the driver was misused: %s", violation);
    assert_int_equal(cuda_twin_leaks(device->twin), 0);
    munmap(device->memory, device->memory_bytes);
    cuda_twin_destroy(device->twin);
    *device = (struct twin_device){0};
}
