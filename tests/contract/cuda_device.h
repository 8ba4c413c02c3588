/* cuda_device.h - an arena of GPU memory seen as an engine sees it: imported by its descriptor and
 * mapped; read and written through a driver table, the real one or a twin. Every call waits. */
#ifndef KVL_CUDA_DEVICE_H
#define KVL_CUDA_DEVICE_H

#include "device_cuda/cuda_driver.h"

struct cuda_device {
    const struct kvl_cuda_driver *driver;
    uint32_t ordinal;
    void *context, *stream;
    uint64_t memory, address, arena_bytes;
    uint8_t *pinned; /* CUDA_DEVICE_PIECE_BYTES */
};
#define CUDA_DEVICE_PIECE_BYTES (1u << 20)

/* Prints what failed, and returns a status other than OK. */
kvl_err cuda_device_open(const struct kvl_cuda_driver *driver, uint32_t ordinal, int fd,
    uint64_t arena_bytes, struct cuda_device *out);
void cuda_device_close(struct cuda_device *device);
kvl_err cuda_device_read(
    const struct cuda_device *device, uint64_t offset_bytes, void *to, uint64_t bytes);
kvl_err cuda_device_write(
    const struct cuda_device *device, uint64_t offset_bytes, const void *from, uint64_t bytes);
/* Bytes that are free on the device; 0: the driver does not say. */
uint64_t cuda_device_free_bytes(const struct kvl_cuda_driver *driver, uint32_t ordinal);

#endif
