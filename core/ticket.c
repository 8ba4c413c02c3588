/* ticket.c - the memfd of completion words and its free list.
 *
 * Free words stand in a ring and are taken in the order they came back, so that a word rests as
 * long as possible before its next use. What is free, and each word's generation, is kept in
 * private memory; the shared words are only written. */
#include "ticket.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "clock.h"

#define POOL_BYTES (KVL_TICKET_WORDS * sizeof(struct kvl_completion))

struct kvl_ticket_pool {
    int fd;
    struct kvl_completion *words; /* MAP_FAILED until mapped */
    uint32_t free_head, free_count;
    uint16_t free_ring[KVL_TICKET_WORDS];
    uint32_t generations[KVL_TICKET_WORDS];
    bool taken[KVL_TICKET_WORDS];
};
_Static_assert(KVL_TICKET_WORDS <= UINT16_MAX + 1u, "numbers fit the ring");

/* Shared, not FUTEX_PRIVATE: the waiter is another process. */
static long futex(const _Atomic uint32_t *word, int op, uint32_t value, const struct timespec *t) {
    return syscall(SYS_futex, word, op, value, t, NULL, FUTEX_BITSET_MATCH_ANY);
}

static void publish(struct kvl_completion *word) {
    atomic_fetch_add_explicit(&word->sequence, 1, memory_order_release);
    futex(&word->sequence, FUTEX_WAKE, INT_MAX, NULL);
}

static kvl_err pool_map(struct kvl_ticket_pool *pool) {
    pool->fd = memfd_create("kvloft-tickets", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (pool->fd < 0)
        return kvl_err_from_errno(errno);
    if (ftruncate(pool->fd, (off_t)POOL_BYTES) != 0)
        return kvl_err_from_errno(errno);
    pool->words = mmap(NULL, POOL_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, pool->fd, 0);
    if (pool->words == MAP_FAILED)
        return kvl_err_from_errno(errno);
    const int seals = F_SEAL_FUTURE_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
    if (fcntl(pool->fd, F_ADD_SEALS, seals) != 0)
        return kvl_err_from_errno(errno);
    return KVL_OK;
}

kvl_err kvl_ticket_pool_create(struct kvl_ticket_pool **out) {
    *out = NULL;
    struct kvl_ticket_pool *pool = calloc(1, sizeof *pool);
    if (!pool)
        return KVL_ERR_NOMEM;
    pool->fd = -1;
    pool->words = MAP_FAILED;
    kvl_err err = pool_map(pool);
    if (err != KVL_OK) {
        kvl_ticket_pool_destroy(pool);
        return err;
    }
    /* Begins anywhere, so that a ticket of an earlier daemon does not fit a word of this one. */
    uint32_t first = 0;
    if (getrandom(&first, sizeof first, 0) != (ssize_t)sizeof first || first == 0)
        first = 1;
    for (uint32_t i = 0; i < KVL_TICKET_WORDS; i++) {
        pool->free_ring[i] = (uint16_t)i;
        pool->generations[i] = first;
        atomic_store(&pool->words[i].generation, first);
    }
    pool->free_count = KVL_TICKET_WORDS;
    *out = pool;
    return KVL_OK;
}

void kvl_ticket_pool_destroy(struct kvl_ticket_pool *pool) {
    if (!pool)
        return;
    if (pool->words != MAP_FAILED)
        munmap(pool->words, POOL_BYTES);
    if (pool->fd >= 0)
        close(pool->fd);
    free(pool);
}

int kvl_ticket_pool_fd(const struct kvl_ticket_pool *pool) {
    return pool->fd;
}

kvl_err kvl_ticket_take(struct kvl_ticket_pool *pool, struct kvl_ticket *out) {
    *out = (struct kvl_ticket){0};
    if (pool->free_count == 0)
        return KVL_ERR_LIMIT;
    uint32_t number = pool->free_ring[pool->free_head];
    pool->free_head = (pool->free_head + 1) % KVL_TICKET_WORDS;
    pool->free_count--;
    pool->taken[number] = true;
    struct kvl_completion *word = &pool->words[number];
    atomic_store_explicit(&word->layers_ready, 0, memory_order_relaxed);
    atomic_store_explicit(&word->blocks_ready, 0, memory_order_relaxed);
    for (uint32_t i = 0; i < 5; i++)
        atomic_store_explicit(&word->values[i], 0, memory_order_relaxed);
    atomic_store_explicit(&word->status, KVL_ERR_PENDING, memory_order_release);
    *out = (struct kvl_ticket){.number = number, .generation = pool->generations[number]};
    return KVL_OK;
}

static bool ticket_is_valid(const struct kvl_ticket_pool *pool, struct kvl_ticket ticket) {
    return ticket.number < KVL_TICKET_WORDS && pool->taken[ticket.number] &&
           pool->generations[ticket.number] == ticket.generation;
}

struct kvl_completion *kvl_ticket_word(struct kvl_ticket_pool *pool, struct kvl_ticket ticket) {
    return ticket_is_valid(pool, ticket) ? &pool->words[ticket.number] : NULL;
}

void kvl_ticket_progress(
    struct kvl_completion *word, uint32_t blocks_ready, uint32_t layers_ready) {
    atomic_store_explicit(&word->blocks_ready, blocks_ready, memory_order_release);
    atomic_store_explicit(&word->layers_ready, layers_ready, memory_order_release);
    publish(word);
}

void kvl_ticket_finish(struct kvl_completion *word, kvl_err status) {
    atomic_store_explicit(&word->status, (uint32_t)status, memory_order_release);
    publish(word);
}

void kvl_ticket_give_back(struct kvl_ticket_pool *pool, struct kvl_ticket ticket) {
    if (!ticket_is_valid(pool, ticket))
        return;
    uint32_t generation = ticket.generation + 1;
    if (generation == 0)
        generation = 1;
    pool->generations[ticket.number] = generation;
    pool->taken[ticket.number] = false;
    pool->free_ring[(pool->free_head + pool->free_count) % KVL_TICKET_WORDS] =
        (uint16_t)ticket.number;
    pool->free_count++;
    struct kvl_completion *word = &pool->words[ticket.number];
    atomic_store_explicit(&word->generation, generation, memory_order_release);
    publish(word); /* whoever still waits on it finds the generation changed */
}

kvl_err kvl_completion_wait(const struct kvl_completion *word, uint32_t seen, uint32_t timeout_ms) {
    const uint64_t deadline_ns = kvl_clock_ns() + (uint64_t)timeout_ms * 1000000u;
    const struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / 1000000000u),
        .tv_nsec = (long)(deadline_ns % 1000000000u)};
    while (atomic_load_explicit(&word->sequence, memory_order_acquire) == seen) {
        /* The bitset form takes an absolute time, so a signal does not prolong the wait. */
        if (futex(&word->sequence, FUTEX_WAIT_BITSET, seen, &deadline) == 0)
            continue;
        if (errno == ETIMEDOUT)
            return KVL_ERR_TIMEOUT;
        if (errno != EAGAIN && errno != EINTR)
            return kvl_err_from_errno(errno);
    }
    return KVL_OK;
}
