/* power_loss_disk.h - what a power loss may leave of a directory.
 *
 * The model, which is what ext4 (data=ordered) and xfs promise, and no more:
 * - A write that had returned before a sync of its file began, which itself has returned, is there.
 *   A write through an O_DSYNC descriptor is there once it has returned; it syncs nothing else.
 * - Every other write that was begun is there, is not, or is there in part, by sectors of 512
 *   bytes; each by itself, in no order. What was never written reads as zeros.
 * - A file does not grow over bytes that never arrived: of a write behind its end, whole pages from
 *   the front are there.
 * - Names, sizes and reservations are journaled in one order; what is there is a beginning of the
 *   journal. A sync of a file makes sure of the file's own creation, sizes and reservations, a sync
 *   of a folder of what happened to its names; and so of all that is earlier in the journal.
 * - Small files changed through memory may hold any of the values seen.
 *
 * Moving forward in a log costs what the log says; an image costs what differs from the last. */
#ifndef KVL_POWER_LOSS_DISK_H
#define KVL_POWER_LOSS_DISK_H

#include "power_loss_log.h"

struct power_disk;

/* Empty. */
struct power_disk *power_disk_create(const char *root);
/* As the files below root are now: all of it durable. */
struct power_disk *power_disk_snapshot(const char *root);
void power_disk_destroy(struct power_disk *disk);

/* Goes on in the log, to the point before entry number `until`. */
void power_disk_advance(struct power_disk *disk, const struct power_log *log, uint32_t until);
/* Makes root what a power loss may have left now. The same seed gives the same image. */
void power_disk_image(struct power_disk *disk, const struct power_log *log, uint64_t seed);
/* Makes root what it is without a power loss: everything is there. */
void power_disk_image_of_all(struct power_disk *disk, const struct power_log *log);
/* What the log of a run on an image changed there. */
void power_disk_touched(struct power_disk *disk, const struct power_log *log);
/* Root was used for something else. */
void power_disk_lost_sight(struct power_disk *disk);

/* The names of the last image; returns how many. */
uint32_t power_disk_names(const struct power_disk *disk, const struct power_name **names);

/* splitmix64 */
uint64_t power_random(uint64_t *state);

#endif
