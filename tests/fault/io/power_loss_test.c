/* power_loss_test.c - power losses at every kind of moment, each looked at after the next start.
 *
 * A tier is worked hard while one log takes down every write and sync, LMDB's included, and every
 * promise (power_loss_log.h). From points of that log images are drawn of what a power loss may
 * leave (power_loss_disk.h); each is opened with the real tier, and what it finds, and the bytes of
 * blocks loaded from it, are held against what was promised (power_loss_model.h). In one of 32
 * the start, and the work after it, is interrupted again, twice; in two of 32 the index is lost as
 * well.
 *
 *   power_loss_test [--images N] [--seed N] [--forget-syncs SUFFIX]
 *   power_loss_test --log FILE --image N --seed N       again, what went wrong
 *
 * With --forget-syncs the syncs of files named so are left out: then it must fail. */
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"
#include "power_loss_disk.h"
#include "power_loss_log.h"
#include "power_loss_model.h"
#include "power_loss_work.h"

#define MIB (1ull << 20)
#define IMAGES_PER_ROUND 2500u
#define HANG_MS 60000u
#define AGAIN_STEPS 30u

struct options {
    uint64_t images, seed, image;
    const char *log_path;
    const char *forget_syncs;
    bool one;
};

/* Filled by the process that looks at the images, read by the one that waits for it. */
struct progress {
    volatile uint64_t image; /* under way, from 1 */
    volatile uint64_t images, again, rebuilt, blocks;
    char failure[512];
};

static struct options options = {.images = 500};
static struct progress *progress;
static char folder[200], recorded[220], drawn[220];

/* ---- folders ------------------------------------------------------------------------------ */

static int remove_entry(const char *path, const struct stat *file, int type, struct FTW *ftw) {
    (void)file, (void)type, (void)ftw;
    return remove(path);
}

/* Memory, where there is enough: an image is looked at for a few ms. */
static void make_folder(void) {
    struct statvfs fs;
    const char *at = getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp";
    if (statvfs("/dev/shm", &fs) == 0 && fs.f_bavail * fs.f_frsize >= 256 * MIB)
        at = "/dev/shm";
    snprintf(folder, sizeof(folder), "%s/kvloft-power-XXXXXX", at);
    if (mkdtemp(folder) == NULL) {
        perror(folder);
        exit(1);
    }
    snprintf(recorded, sizeof(recorded), "%s/recorded", folder);
    snprintf(drawn, sizeof(drawn), "%s/drawn", folder);
    (void)mkdir(drawn, 0700);
}

static void remove_folder(const char *path) {
    nftw(path, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

/* ---- recording ---------------------------------------------------------------------------- */

static void must(const char *wrong, const char *where) {
    if (wrong == NULL)
        return;
    printf("FAILED while %s: %s\n", where, wrong);
    remove_folder(folder);
    exit(1);
}

static void session(
    struct power_work *work, uint64_t capacity_bytes, uint32_t steps, uint64_t *random) {
    enum kvl_disk_codec codec = (enum kvl_disk_codec)(power_random(random) % 3);
    must(power_work_open(work, capacity_bytes, codec, NULL), "recording");
    power_work_some(work, steps, random);
    must(power_work_close(work, power_random(random) % 4 != 0), "recording");
}

static void pressed_session(struct power_work *work, uint64_t capacity_bytes, uint64_t *random) {
    must(power_work_open(work, capacity_bytes, KVL_DISK_CODEC_RAW, NULL), "recording");
    power_work_pressure(work, random);
    must(power_work_close(work, true), "recording");
}

/* Every second time with a large capacity in between: then a start evicts and compacts. */
static void record(struct power_log *log, uint64_t seed, bool large) {
    struct power_work *work = power_work_create(recorded);
    remove_folder(recorded);
    (void)mkdir(recorded, 0700);
    power_log_clear(log);
    power_record_begin(log, recorded, NULL, 0, options.forget_syncs);
    session(work, 8 * MIB, 500, &seed);
    session(work, 8 * MIB, 300, &seed);
    if (large)
        pressed_session(work, 64 * MIB, &seed);
    else
        pressed_session(work, 8 * MIB, &seed);
    session(work, 8 * MIB, 300, &seed);
    power_record_end();
    power_work_destroy(work);
}

static bool same_file(const char *left, const char *right) {
    FILE *files[2] = {fopen(left, "rb"), fopen(right, "rb")};
    bool same = files[0] != NULL && files[1] != NULL;
    for (int byte = 0; same && byte != EOF;) {
        byte = getc(files[0]);
        same = byte == getc(files[1]);
    }
    for (int i = 0; i < 2; i++) {
        if (files[i] != NULL)
            fclose(files[i]);
    }
    return same;
}

/* The log tells all that was done to the directory: without a power loss, the very same comes out.
 * The lock's text is written past us, and nobody reads it after a power loss. */
static void check_log_is_complete(const struct power_log *log) {
    const struct power_name *names;
    struct power_disk *disk = power_disk_create(drawn);
    power_disk_advance(disk, log, log->count);
    power_disk_image_of_all(disk, log);
    uint32_t count = power_disk_names(disk, &names);
    for (uint32_t i = 0; i < count; i++) {
        char left[300], right[300];
        struct stat file;
        snprintf(left, sizeof(left), "%s/%s", recorded, names[i].path);
        snprintf(right, sizeof(right), "%s/%s", drawn, names[i].path);
        if (stat(left, &file) != 0 || (S_ISREG(file.st_mode) && !same_file(left, right)))
            must(names[i].path, "comparing the log with what was done");
    }
    power_disk_destroy(disk);
}

/* ---- images ------------------------------------------------------------------------------- */

/* A chain of power losses: the log and the model up to each. */
struct stage {
    struct power_disk *disk;
    struct power_log log; /* of the run on the image */
    struct power_model model;
    struct power_work *work;
};

static void take_events(
    struct power_model *model, const struct power_log *log, uint32_t from, uint32_t until) {
    for (uint32_t i = from; i < until; i++) {
        if (log->entries[i].kind == POWER_EVENT)
            power_model_take(model, &log->entries[i]);
    }
}

/* Starts on the image and looks at everything; more: works on a little. What happens is recorded
 * under the disk's names. */
static const char *start_on(struct stage *stage, const struct power_disk *disk,
    const struct power_model *model, uint64_t *random, bool more) {
    const struct power_name *names;
    uint32_t count = power_disk_names(disk, &names);
    enum kvl_disk_codec codec = (enum kvl_disk_codec)(power_random(random) % 3);
    power_log_clear(&stage->log);
    power_record_begin(&stage->log, drawn, names, count, options.forget_syncs);
    const char *wrong = power_work_open(stage->work, model->capacity_bytes, codec, model);
    if (wrong == NULL) {
        wrong = power_work_verify(stage->work, model, random, more ? 1 : 8);
        if (more)
            power_work_some(stage->work, AGAIN_STEPS, random);
        const char *close_wrong = power_work_close(stage->work, more);
        wrong = wrong != NULL ? wrong : close_wrong;
    }
    power_record_end();
    return wrong;
}

/* The start on an image, and the work after it, end in a power loss too; then again. Two deaths
 * in a row inside LMDB make the tier rebuild its index, although it is sound. */
static const char *interrupt_again(struct stage *stage, uint64_t *random) {
    struct power_model model = stage->model;
    const char *wrong = NULL;
    model.index_lost = true;
    power_work_expect_rebuild(stage->work, true);
    for (uint32_t round = 0; round < 2 && wrong == NULL; round++) {
        struct power_disk *disk = power_disk_snapshot(drawn);
        wrong = start_on(stage, disk, &model, random, true);
        uint32_t cut = 1 + (uint32_t)(power_random(random) % stage->log.count);
        if (wrong == NULL) {
            take_events(&model, &stage->log, 0, cut);
            power_disk_touched(disk, &stage->log);
            power_disk_advance(disk, &stage->log, cut);
            power_disk_image(disk, &stage->log, power_random(random));
            progress->again++;
        }
        power_disk_destroy(disk);
    }
    if (wrong == NULL) {
        struct power_disk *disk = power_disk_snapshot(drawn);
        wrong = start_on(stage, disk, &model, random, false);
        power_disk_destroy(disk);
    }
    power_work_expect_rebuild(stage->work, false);
    power_disk_lost_sight(stage->disk);
    return wrong;
}

static uint64_t seed_of(uint64_t image) {
    uint64_t state = options.seed + image * UINT64_C(0x9e3779b97f4a7c15);
    return power_random(&state);
}

/* Points go forward with the images, so that the disk goes forward too. */
static uint32_t cut_of(const struct power_log *log, uint64_t image, uint64_t images) {
    uint64_t random = seed_of(image) + 1;
    double place = (double)image + (double)(power_random(&random) % 1024) / 1024;
    return 1 + (uint32_t)(place * (double)(log->count - 1) / (double)images);
}

/* The index is lost, too: LMDB's file is cut off, zeroed, or has noise where it begins. */
static void damage_index(uint64_t *random) {
    char path[300];
    uint64_t noise[1024] = {0};
    snprintf(path, sizeof(path), "%s/index/data.mdb", drawn);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    uint64_t how = power_random(random) % 3;
    for (uint32_t i = 0; how == 2 && i < 1024; i++)
        noise[i] = power_random(random);
    if (fd >= 0 && (how == 0 ? ftruncate(fd, 0) != 0 : pwrite(fd, noise, sizeof(noise), 0) < 0))
        abort();
    if (fd >= 0)
        close(fd);
}

/* Everything must hold all the same: it is rebuilt from the segments and the journal. */
static const char *lose_index(struct stage *stage, uint64_t *random) {
    struct power_model model = stage->model;
    model.index_lost = true;
    damage_index(random);
    power_work_expect_rebuild(stage->work, true);
    const char *wrong = start_on(stage, stage->disk, &model, random, false);
    power_work_expect_rebuild(stage->work, false);
    power_disk_lost_sight(stage->disk);
    progress->rebuilt++;
    return wrong;
}

static const char *look_at(struct stage *stage, const struct power_log *log, uint64_t image) {
    uint64_t random = seed_of(image);
    power_disk_image(stage->disk, log, power_random(&random));
    uint64_t how = power_random(&random) % 32;
    if (how == 0)
        return interrupt_again(stage, &random);
    if (how <= 2)
        return lose_index(stage, &random);
    const char *wrong = start_on(stage, stage->disk, &stage->model, &random, false);
    power_disk_touched(stage->disk, &stage->log);
    return wrong;
}

static int look_at_all(const struct power_log *log, uint64_t images) {
    static struct stage stage;
    const char *wrong = NULL;
    uint32_t at = 0;
    stage.disk = power_disk_create(drawn);
    stage.work = power_work_create(drawn);
    for (uint64_t image = 0; image < images && wrong == NULL; image++) {
        uint32_t cut = cut_of(log, image, images);
        take_events(&stage.model, log, at, cut);
        power_disk_advance(stage.disk, log, cut);
        at = cut;
        if (options.one && image != options.image)
            continue;
        progress->image = image + 1;
        wrong = look_at(&stage, log, image);
        progress->images++;
        if (wrong != NULL)
            snprintf(progress->failure, sizeof(progress->failure), "%s (before entry %u of %u)",
                wrong, cut, log->count);
    }
    progress->blocks += power_work_loads(stage.work);
    power_work_destroy(stage.work);
    power_disk_destroy(stage.disk);
    power_log_free(&stage.log);
    return wrong != NULL;
}

/* ---- a process of its own looks at the images, so that a crash or a hang is a finding ------- */

static int wait_for(pid_t child) {
    uint64_t seen = 0;
    uint32_t waited_ms = 0;
    int status;
    while (waitpid(child, &status, WNOHANG) == 0) {
        usleep(5000);
        waited_ms = progress->image == seen ? waited_ms + 5 : 0;
        seen = progress->image;
        if (waited_ms > HANG_MS) {
            kill(child, SIGABRT);
            waitpid(child, &status, 0);
            snprintf(progress->failure, sizeof(progress->failure), "it hangs");
            return 1;
        }
    }
    if (WIFEXITED(status) && WEXITSTATUS(status) <= 1)
        return WEXITSTATUS(status);
    snprintf(progress->failure, sizeof(progress->failure), "it ended with %s %d",
        WIFSIGNALED(status) ? "signal" : "status",
        WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    return 1;
}

static void report(const struct power_log *log) {
    char path[300];
    const char *tmp = getenv("TMPDIR") != NULL ? getenv("TMPDIR") : "/tmp";
    uint64_t image = progress->image - 1;
    printf("FAILED image %" PRIu64 ": %s\n", image, progress->failure);
    if (options.log_path != NULL || options.forget_syncs != NULL)
        return;
    snprintf(path, sizeof(path), "%s/kvloft-power-%" PRIu64 ".log", tmp, options.seed);
    if (power_log_save(log, path))
        printf("again: power_loss_test --log %s --seed %" PRIu64 " --images %" PRIu64
               " --image %" PRIu64 "\n",
            path, options.seed, options.images, image);
}

static int look_in_child(const struct power_log *log, uint64_t images) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0)
        exit(look_at_all(log, images));
    int failed = child < 0 ? 1 : wait_for(child);
    if (failed)
        report(log);
    return failed;
}

static int rounds(void) {
    struct power_log log = {0};
    uint64_t left = options.images, first_seed = options.seed;
    int failed = 0;
    for (uint32_t round = 0; left > 0 && !failed; round++) {
        uint64_t images = left < IMAGES_PER_ROUND ? left : IMAGES_PER_ROUND;
        options.seed = first_seed + round;
        options.images = images;
        record(&log, options.seed, round % 2 == 1);
        if (options.forget_syncs == NULL)
            check_log_is_complete(&log);
        printf("seed=%" PRIu64 " log entries=%u bytes=%" PRIu64 "\n", options.seed, log.count,
            log.used_bytes);
        failed = look_in_child(&log, images);
        left -= images;
    }
    power_log_free(&log);
    return failed;
}

static int again(void) {
    struct power_log log;
    if (!power_log_load(&log, options.log_path)) {
        fprintf(stderr, "%s: cannot be read as a log\n", options.log_path);
        return 2;
    }
    int failed = look_in_child(&log, options.images);
    power_log_free(&log);
    return failed;
}

/* ---- arguments ---------------------------------------------------------------------------- */

static bool take_option(const char *name, const char *value) {
    char *end = NULL;
    uint64_t number = strtoull(value, &end, 10);
    if (strcmp(name, "--log") == 0)
        options.log_path = value;
    else if (strcmp(name, "--forget-syncs") == 0)
        options.forget_syncs = value;
    else if (end == value || *end != '\0')
        return false;
    else if (strcmp(name, "--images") == 0)
        options.images = number;
    else if (strcmp(name, "--seed") == 0)
        options.seed = number;
    else if (strcmp(name, "--image") == 0) {
        options.image = number;
        options.one = true;
    } else
        return false;
    return true;
}

int main(int argc, char **argv) {
    options.seed = (uint64_t)time(NULL);
    for (int i = 1; i < argc; i += 2) {
        if (i + 1 == argc || !take_option(argv[i], argv[i + 1])) {
            fprintf(stderr,
                "usage: %s [--images N] [--seed N] [--log FILE --image N] "
                "[--forget-syncs SUFFIX]\n",
                argv[0]);
            return 2;
        }
    }
    progress =
        mmap(NULL, sizeof(*progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    make_folder();
    uint64_t since_ns = kvl_clock_ns();
    int failed = options.log_path != NULL ? again() : rounds();
    printf("images=%" PRIu64 " interrupted_again=%" PRIu64 " rebuilt=%" PRIu64
           " blocks_loaded=%" PRIu64 " seconds=%.1f\n",
        progress->images, progress->again, progress->rebuilt, progress->blocks,
        (double)(kvl_clock_ns() - since_ns) / 1e9);
    remove_folder(folder);
    return failed;
}
