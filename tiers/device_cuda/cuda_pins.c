/* cuda_pins.c - pins host memory, a chunk at a time: a chunk takes the driver a while (it looks up
 * each page), and copies that wait go in between. A copy never spans two chunks, which are two
 * registrations to the driver. */
#include <inttypes.h>
#include <stdlib.h>

#include "clock.h"
#include "cuda_private.h"
#include "resident.h"

#define ASK_EVERY_NS UINT64_C(20000000)

static uint64_t chunk_bytes(const struct cuda_tier *tier, const struct cuda_pin *pin) {
    const uint64_t left = pin->range_bytes - atomic_load(&pin->pinned_bytes);
    return left < tier->pin_bytes ? left : tier->pin_bytes;
}

static bool is_done(const struct cuda_pin *pin) {
    return pin->given_up || atomic_load(&pin->pinned_bytes) == pin->range_bytes;
}

static bool pin_next(struct cuda_tier *tier, struct cuda_pin *pin) {
    const uint64_t done_bytes = atomic_load(&pin->pinned_bytes);
    uint8_t *address = pin->address + done_bytes;
    const uint64_t bytes = chunk_bytes(tier, pin);
    if (!kvl_memory_is_resident(address, bytes))
        return false;
    kvl_cuda_status status = tier->driver->host_register(tier->driver, address, bytes);
    if (status == KVL_CUDA_OK) {
        atomic_store(&pin->pinned_bytes, done_bytes + bytes);
        atomic_fetch_add(&tier->pinned_bytes, bytes);
        return true;
    }
    pin->given_up = true; /* were the device lost, its streams would say so */
    kvl_log_fallback(tier->log,
        "host memory is not pinned for the GPU from byte %" PRIu64
        " on (%s): copies pass a ring, at the speed of one CPU",
        done_bytes, tier->driver->text(tier->driver, status));
    return true;
}

bool kvl_cuda_pins_advance(struct cuda_tier *tier) {
    if (kvl_cuda_pins_due_in_ns(tier) != 0)
        return false;
    for (struct cuda_pin *pin = atomic_load(&tier->pins); pin != NULL; pin = pin->next)
        if (!is_done(pin) && pin_next(tier, pin))
            return true;
    tier->pins_due_ns = kvl_clock_ns() + ASK_EVERY_NS;
    return false;
}

uint64_t kvl_cuda_pins_due_in_ns(const struct cuda_tier *tier) {
    bool left = false;
    for (const struct cuda_pin *pin = atomic_load(&tier->pins); pin != NULL; pin = pin->next)
        left = left || !is_done(pin);
    if (!left || atomic_load(&tier->lost))
        return UINT64_MAX;
    const uint64_t now_ns = kvl_clock_ns();
    return tier->pins_due_ns > now_ns ? tier->pins_due_ns - now_ns : 0;
}

static const struct cuda_pin *pin_of(const struct cuda_tier *tier, const uint8_t *address) {
    for (const struct cuda_pin *pin = atomic_load(&tier->pins); pin != NULL; pin = pin->next) {
        const uint64_t offset = (uint64_t)((uintptr_t)address - (uintptr_t)pin->address);
        if ((uintptr_t)address >= (uintptr_t)pin->address &&
            offset < atomic_load(&pin->pinned_bytes))
            return pin;
    }
    return NULL;
}

uint64_t kvl_cuda_pins_run_bytes(
    const struct cuda_tier *tier, const uint8_t *address, uint64_t bytes) {
    const struct cuda_pin *pin = pin_of(tier, address);
    if (pin == NULL)
        return 0;
    const uint64_t offset = (uint64_t)(address - pin->address);
    uint64_t end = (offset / tier->pin_bytes + 1) * tier->pin_bytes;
    const uint64_t pinned_bytes = atomic_load(&pin->pinned_bytes);
    if (end > pinned_bytes)
        end = pinned_bytes;
    return bytes < end - offset ? bytes : end - offset;
}

bool kvl_cuda_pins_cover(const struct cuda_tier *tier, const uint8_t *address, uint64_t bytes) {
    const struct cuda_pin *pin = pin_of(tier, address);
    return pin != NULL &&
           bytes <= atomic_load(&pin->pinned_bytes) - (uint64_t)(address - pin->address);
}

void kvl_cuda_pins_forget(struct cuda_tier *tier) {
    struct cuda_pin *pin;
    while ((pin = atomic_load(&tier->pins)) != NULL) {
        atomic_store(&tier->pins, pin->next);
        for (uint64_t at = 0; at < atomic_load(&pin->pinned_bytes); at += tier->pin_bytes)
            tier->driver->host_unregister(tier->driver, pin->address + at);
        free(pin);
    }
}
