/* twin_device.h - the CUDA device tier over the twin of a driver, for tests of what stands above.
 *
 * The test finds the device's memory as an engine would: by mapping what the tier shares. */
#ifndef KVL_TWIN_DEVICE_H
#define KVL_TWIN_DEVICE_H

#include <stdint.h>

#include "tier.h"

struct twin_device {
    struct cuda_twin *twin; /* NULL: not open */
    struct kvl_tier *tier;
    uint8_t *memory;
    uint64_t memory_bytes;
};

/* capacity_bytes is a multiple of the twin's granule. Fails the test where that cannot be. */
void twin_device_open(struct twin_device *device, uint64_t capacity_bytes);
/* All of a host tier's arena, which outlives the device. Waits until it is pinned. */
void twin_device_pin(struct twin_device *device, struct kvl_tier *host);
/* After the tier's deinit: fails the test where the driver was misused, or something was left. */
void twin_device_close(struct twin_device *device);

#endif
