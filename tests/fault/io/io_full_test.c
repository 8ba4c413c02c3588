/* io_full_test.c - a small file system that another process fills and empties again, all the time,
 * while the tier starts, works and stops: what was stored stays, what is refused is refused.
 *
 * The seed is printed; KVL_SEED gives it back. */
#include <fcntl.h>
#include <ftw.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "power_loss_disk.h"
#include "power_loss_model.h"
#include "power_loss_work.h"

#define CAPACITY_BYTES (32ull << 20)
#define FILE_SYSTEM "size=14m" /* room for some segments of 4 MiB, not for all */
#define ROUNDS 12u

static uint64_t opened, refused;
static char mount_point[200], root[220], filler[220];

static void take_event(void *arg, uint32_t event, uint64_t a, uint64_t b) {
    const struct power_entry entry = {.kind = POWER_EVENT, .node = event, .offset = a, .bytes = b};
    power_model_take(arg, &entry);
}

/* Takes every free page, lets go of it after a moment, and so on until it is killed. */
static void fill_for_ever(uint64_t random) {
    int fd = open(filler, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    static char page[4096];
    memset(page, 1, sizeof(page));
    while (fd >= 0) {
        while (write(fd, page, sizeof(page)) > 0)
            ;
        usleep(1000 + (useconds_t)(power_random(&random) % 30000));
        if (ftruncate(fd, 0) != 0 || lseek(fd, 0, SEEK_SET) != 0)
            break;
        usleep(1000 + (useconds_t)(power_random(&random) % 10000));
    }
    _exit(1);
}

static pid_t begin_filling(uint64_t random) {
    pid_t child = fork();
    if (child == 0)
        fill_for_ever(random);
    return child;
}

static void end_filling(pid_t child) {
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    unlink(filler);
}

/* Every third start is made while the file system is filled, too. */
static const char *round_under_filler(
    struct power_work *work, struct power_model *model, uint64_t *random, bool early) {
    struct power_model before_open = *model;
    uint64_t seen, counted;
    power_work_expect_faults(work, true);
    pid_t child = early ? begin_filling(*random) : 0;
    const char *wrong = power_work_open(work, CAPACITY_BYTES, KVL_DISK_CODEC_AUTO, &before_open);
    bool open = power_work_is_open(work);
    if (!early)
        child = begin_filling(*random);
    if (open && wrong == NULL) {
        power_work_some(work, 300, random);
        wrong = power_work_verify(work, model, random, 1);
        const char *close_wrong = power_work_close(work, true);
        wrong = wrong != NULL ? wrong : close_wrong;
        power_work_errors(work, &seen, &counted);
        refused += seen;
        opened++;
    } else if (!open && early && strstr(wrong, "cannot be opened: ") == wrong) {
        if (getenv("KVL_POWER_LOG") != NULL)
            printf("%s\n", wrong);
        wrong = NULL;
    }
    end_filling(child);
    return wrong;
}

/* Alone again: everything promised is there, and there is room. */
static const char *round_alone(
    struct power_work *work, struct power_model *model, uint64_t *random) {
    struct power_model before_open = *model;
    power_work_expect_faults(work, false);
    const char *wrong = power_work_open(work, CAPACITY_BYTES, KVL_DISK_CODEC_RAW, &before_open);
    if (wrong != NULL)
        return wrong;
    wrong = power_work_verify(work, model, random, 1);
    power_work_some(work, 50, random);
    const char *close_wrong = power_work_close(work, true);
    return wrong != NULL ? wrong : close_wrong;
}

static int remove_entry(const char *path, const struct stat *file, int type, struct FTW *ftw) {
    (void)file, (void)type, (void)ftw;
    return remove(path);
}

/* Once all segments are there nothing needs room any more: so now and then there are none. */
static void begin_anew(struct power_model *model) {
    nftw(root, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    *model = (struct power_model){.faults = true, .index_lost = true};
}

static int run(uint64_t seed) {
    static struct power_model model;
    struct power_work *work = power_work_create(root);
    const char *wrong = NULL;
    uint32_t round = 0;
    power_event_sink(take_event, &model);
    for (; round < ROUNDS && wrong == NULL; round++) {
        if (round % 2 == 0)
            begin_anew(&model);
        wrong = round_under_filler(work, &model, &seed, round % 3 == 2);
        if (wrong == NULL)
            wrong = round_alone(work, &model, &seed);
    }
    if (wrong != NULL)
        printf("FAILED in round %u: %s\n", round, wrong);
    power_work_destroy(work);
    return wrong != NULL;
}

int main(void) {
    const char *given = getenv("KVL_SEED"), *tmp = getenv("TMPDIR");
    uint64_t seed = given != NULL ? strtoull(given, NULL, 10) : (uint64_t)time(NULL);
    snprintf(mount_point, sizeof(mount_point), "%s/kvloft-full-XXXXXX", tmp ? tmp : "/tmp");
    if (mkdtemp(mount_point) == NULL)
        return 1;
    /* A mount namespace of our own: the mount ends with the process, whatever happens. */
    if (unshare(CLONE_NEWNS) != 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
        mount("tmpfs", mount_point, "tmpfs", 0, FILE_SYSTEM) != 0) {
        rmdir(mount_point);
        printf("skip: mounting a small file system needs root\n");
        return 77;
    }
    snprintf(root, sizeof(root), "%s/disk", mount_point);
    snprintf(filler, sizeof(filler), "%s/filler", mount_point);
    printf("KVL_SEED=%llu\n", (unsigned long long)seed);
    int failed = run(seed);
    printf("rounds=%u opened=%llu ios_refused=%llu\n", ROUNDS, (unsigned long long)opened,
        (unsigned long long)refused);
    umount2(mount_point, MNT_DETACH);
    rmdir(mount_point);
    return failed;
}
