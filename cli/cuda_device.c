/* cuda_device.c - see cuda_device.h. */
#include "cuda_device.h"

#include <stdio.h>

#include "device_cuda/cuda_tier.h"

kvl_err kvl_cuda_device_create(
    const struct kvl_cuda_device_options *options, struct kvl_tier **out, struct kvl_errmsg *msg) {
    const struct kvl_cuda_tier_options tier = {
        .device = options->number, .capacity_bytes = options->capacity_bytes, .log = options->log};
    return kvl_cuda_tier_create(&tier, out, msg);
}

void kvl_cuda_device_pin(struct kvl_tier *device, struct kvl_tier *host, struct kvl_log *log) {
    uint64_t bytes = host->ops->stats(host).capacity_bytes / KVL_PAGE_BYTES * KVL_PAGE_BYTES;
    kvl_err err = kvl_cuda_tier_pin_host(device, host->ops->address(host, 0), bytes);
    if (err != KVL_OK)
        kvl_log_fallback(log, "host memory is not pinned for the GPU (%s): copies are slower",
            kvl_err_text(err));
}

/* ---- what the driver says ----------------------------------------------------------------- */

static kvl_err free_bytes(
    const struct kvl_cuda_driver *driver, uint32_t number, uint64_t *out, const char **text) {
    void *context = NULL;
    kvl_cuda_status status = driver->context_open(driver, number, &context);
    if (status == KVL_CUDA_OK) {
        status = driver->context_enter(driver, context);
        if (status == KVL_CUDA_OK) {
            status = driver->memory_free_bytes(driver, out);
            driver->context_leave(driver);
        }
        driver->context_close(driver, number);
    }
    *text = driver->text(driver, status);
    return status == KVL_CUDA_OK ? KVL_OK : driver->err_from(status);
}

static void describe(
    const struct kvl_cuda_driver *driver, uint32_t number, struct kvl_cuda_device_view *out) {
    struct kvl_cuda_device_info info = {0};
    uint64_t bytes = 0;
    const char *text = NULL;
    kvl_cuda_status status = driver->device_info(driver, number, &info);
    if (status != KVL_CUDA_OK) {
        snprintf(
            out->text, sizeof out->text, "cuda:%u: %.100s", number, driver->text(driver, status));
        return;
    }
    if (free_bytes(driver, number, &bytes, &text) != KVL_OK) {
        snprintf(out->text, sizeof out->text, "cuda:%u %.60s: %.60s", number, info.name, text);
        return;
    }
    const char *lacks = kvl_cuda_device_lacks(&info);
    out->is_good = lacks == NULL;
    snprintf(out->text, sizeof out->text, "cuda:%u %.50s, %.20s, %.1f GiB free, %s%s", number,
        info.name, driver->name, (double)bytes / (double)(1u << 30),
        lacks ? "lacks " : "can be used", lacks ? lacks : "");
}

bool kvl_cuda_device_look(uint32_t number, struct kvl_cuda_device_view *out) {
    struct kvl_cuda_driver *driver = NULL;
    struct kvl_errmsg msg = {{0}};
    uint32_t count = 0;
    *out = (struct kvl_cuda_device_view){0};
    kvl_err err = kvl_cuda_driver_open(&driver, &msg);
    if (err != KVL_OK) {
        snprintf(out->text, sizeof out->text, "%.150s",
            msg.text[0] != '\0' ? msg.text : kvl_err_text(err));
        return number == 0;
    }
    kvl_cuda_status status = driver->device_count(driver, &count);
    bool is_there = status == KVL_CUDA_OK && number < count;
    if (is_there)
        describe(driver, number, out);
    else if (status != KVL_CUDA_OK)
        snprintf(
            out->text, sizeof out->text, "%s: %.100s", driver->name, driver->text(driver, status));
    else
        snprintf(out->text, sizeof out->text, "%s, no GPU", driver->name);
    kvl_cuda_driver_close(driver);
    return is_there || number == 0;
}
