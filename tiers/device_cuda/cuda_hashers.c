/* cuda_hashers.c - the threads that hash what has come to the host.
 *
 *   lane's thread: open(piece) -> its word in lane->open -> a hash thread takes a part, another the
 *   next, ... -> who finishes the last sets the piece's bit in lane->hashed -> lane's thread: poll
 *
 * At a link's speed a piece comes every 100 us, and several threads share it. So what they take is
 * one atomic word a piece, with no lock and no queue, and a thread that has found nothing looks on
 * for longer than that before it sleeps: to wake one costs the waker 5 us and the woken 5 to 50 in
 * a virtual machine.
 *
 * A piece's word: its number (of those opened; the oldest is served first) | next part | parts. A
 * thread that is late with an old word fails to exchange it, since numbers do not come again. */
#include <sched.h>
#include <signal.h>
#include <string.h>

#include "clock.h"
#include "cuda_private.h"
#include "thread.h"

#define SPIN_NS UINT64_C(200000)
#define THREADS_DEFAULT_MAX 12u
#define WORTH_BYTES (UINT64_C(1) << 20) /* of a piece, for each thread that is woken for it */

_Static_assert(KVL_CUDA_PIECE_COPIES <= 0xff, "parts are counted in 8 bits of a word");

static uint32_t word_next(uint64_t word) {
    return word >> 8 & 0xff;
}

static uint32_t word_count(uint64_t word) {
    return word & 0xff;
}

/* Of pieces with parts that nobody has taken, the oldest; -1: none. */
static int oldest_open(const struct cuda_lane *lane, uint64_t *word) {
    int oldest = -1;
    for (int i = 0; i < (int)KVL_CUDA_LANE_PIECES; i++) {
        const uint64_t open = atomic_load(&lane->open[i]);
        if (word_next(open) < word_count(open) && (oldest < 0 || open >> 16 < *word >> 16)) {
            oldest = i;
            *word = open;
        }
    }
    return oldest;
}

static bool has_work(const struct cuda_lane *lane) {
    uint64_t word = 0;
    return oldest_open(lane, &word) >= 0;
}

/* ---- on the hash threads -------------------------------------------------------------------- */

/* False: there was none. */
static bool take_part(struct cuda_lane *lane) {
    uint64_t word = 0;
    const int at = oldest_open(lane, &word);
    if (at < 0)
        return false;
    if (!atomic_compare_exchange_strong(&lane->open[at], &word, word + (1u << 8)))
        return true; /* another took it; there may be more */
    struct cuda_piece *piece = &lane->pieces[at];
    kvl_cuda_part_finish(piece, &piece->parts[word_next(word)]);
    if (atomic_fetch_sub(&piece->unhashed, 1) == 1)
        atomic_fetch_or(&lane->hashed, 1u << at);
    return true;
}

/* Who sleeps is counted before it looks once more; who opens a piece looks at the count after. */
static void sleep_until_work(struct cuda_hashers *hashers, const struct cuda_lane *lane) {
    pthread_mutex_lock(&hashers->mutex);
    atomic_fetch_add(&hashers->sleeping, 1);
    while (!atomic_load(&hashers->stopping) && !has_work(lane))
        pthread_cond_wait(&hashers->work, &hashers->mutex);
    atomic_fetch_sub(&hashers->sleeping, 1);
    pthread_mutex_unlock(&hashers->mutex);
}

static void wait_for_work(struct cuda_hashers *hashers, const struct cuda_lane *lane) {
    const uint64_t since_ns = kvl_clock_ns();
    while (kvl_clock_ns() - since_ns < hashers->spin_ns) {
        for (int i = 0; i < 16; i++)
            kvl_cuda_relax();
        if (has_work(lane) || atomic_load(&hashers->stopping))
            return;
    }
    sleep_until_work(hashers, lane);
}

static void *hasher_main(void *arg) {
    struct cuda_lane *lane = arg;
    struct cuda_hashers *hashers = &lane->hashers;
    kvl_thread_begin("kvl-hash", KVL_THREAD_COMPUTE);
    while (!atomic_load(&hashers->stopping))
        if (!take_part(lane))
            wait_for_work(hashers, lane);
    return NULL;
}

/* ---- on the lane's thread ------------------------------------------------------------------- */

static void wake(struct cuda_hashers *hashers, uint32_t threads) {
    if (atomic_load(&hashers->sleeping) == 0)
        return;
    pthread_mutex_lock(&hashers->mutex);
    for (uint32_t i = 0; i < threads; i++)
        pthread_cond_signal(&hashers->work);
    pthread_mutex_unlock(&hashers->mutex);
}

static uint32_t threads_worth(const struct cuda_piece *piece) {
    const uint64_t worth = 1 + (piece->piece_bytes - 1) / WORTH_BYTES;
    return piece->part_count < worth ? piece->part_count : (uint32_t)worth;
}

void kvl_cuda_hashers_open(struct cuda_piece *piece) {
    struct cuda_lane *lane = piece->lane;
    atomic_store(&piece->unhashed, piece->part_count);
    lane->hashing_count++;
    atomic_store(&lane->open[piece - lane->pieces], ++lane->opened << 16 | piece->part_count);
    wake(&lane->hashers, threads_worth(piece));
}

bool kvl_cuda_hashers_poll(struct cuda_lane *lane) {
    if (lane->hashing_count == 0)
        return false;
    const uint32_t hashed = atomic_exchange(&lane->hashed, 0);
    for (uint32_t i = 0; i < KVL_CUDA_LANE_PIECES; i++) {
        if ((hashed >> i & 1) == 0)
            continue;
        lane->hashing_count--;
        kvl_cuda_piece_retire(&lane->pieces[i], KVL_OK);
    }
    return hashed != 0;
}

bool kvl_cuda_hashers_have_news(const struct cuda_lane *lane) {
    return atomic_load(&lane->hashed) != 0;
}

/* ---- life ----------------------------------------------------------------------------------- */

/* A link of 55 GB/s keeps 8 CPUs busy that hash 7 GB/s each, as one does from memory; a quarter is
 * for the threads that drive the copies, and for whoever asked for them. */
static uint32_t default_threads(uint32_t cpus) {
    const uint32_t share = cpus > 2 ? cpus * 3 / 4 : 1;
    return share < THREADS_DEFAULT_MAX ? share : THREADS_DEFAULT_MAX;
}

/* A container often has few of the machine's: threads for the others would take turns at looking
 * on, and keep the CPU from whom they wait for. */
static uint32_t usable_cpus(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? (uint32_t)CPU_COUNT(&set) : 1;
}

/* Signals are the process's main thread's business. */
static int start_threads(struct cuda_lane *lane, uint32_t threads) {
    struct cuda_hashers *hashers = &lane->hashers;
    sigset_t all, before;
    int error = 0;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (hashers->count < threads && error == 0) {
        error = pthread_create(&hashers->threads[hashers->count], NULL, hasher_main, lane);
        hashers->count += error == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

kvl_err kvl_cuda_hashers_start(struct cuda_lane *lane, uint32_t threads) {
    const uint32_t cpus = usable_cpus();
    if (threads == 0)
        threads = default_threads(cpus);
    if (threads > KVL_CUDA_HASH_THREADS_MAX)
        threads = KVL_CUDA_HASH_THREADS_MAX;
    lane->hashers.spin_ns = cpus > 1 ? SPIN_NS : 0;
    return start_threads(lane, threads) == 0 ? KVL_OK : KVL_ERR_LIMIT;
}

void kvl_cuda_hashers_stop(struct cuda_lane *lane) {
    struct cuda_hashers *hashers = &lane->hashers;
    pthread_mutex_lock(&hashers->mutex);
    atomic_store(&hashers->stopping, true);
    pthread_cond_broadcast(&hashers->work);
    pthread_mutex_unlock(&hashers->mutex);
    for (uint32_t i = 0; i < hashers->count; i++)
        pthread_join(hashers->threads[i], NULL);
    hashers->count = 0;
}

void kvl_cuda_hashers_init(struct cuda_lane *lane) {
    pthread_mutex_init(&lane->hashers.mutex, NULL);
    pthread_cond_init(&lane->hashers.work, NULL);
}

void kvl_cuda_hashers_deinit(struct cuda_lane *lane) {
    pthread_cond_destroy(&lane->hashers.work);
    pthread_mutex_destroy(&lane->hashers.mutex);
}
