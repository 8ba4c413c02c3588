/* power_loss_work.h - the owner of a disk tier: opens it, works it, and writes every promise down.
 *
 * Everything runs on one thread. What no power loss excuses comes back as a line that says what is
 * wrong; it is valid until the next open. A tier that hangs ends the process. */
#ifndef KVL_POWER_LOSS_WORK_H
#define KVL_POWER_LOSS_WORK_H

#include "disk/disk_tier.h"
#include "power_loss_model.h"

struct power_work;

struct power_work *power_work_create(const char *root);
void power_work_destroy(struct power_work *work);

/* From now on I/O may fail: errors and complaints are excused, wrong bytes are not. */
void power_work_expect_faults(struct power_work *work, bool expect);
/* So many blocks may be missing at the next start although nothing was said of them: given up for a
 * read that went wrong, and the run ended before it could be told. */
void power_work_excuse_missing(struct power_work *work, uint32_t blocks);

/* The index was damaged: excused are complaints that it is rebuilt, and damaged records of stores
 * that were under way. */
void power_work_expect_rebuild(struct power_work *work, bool expect);

/* Opens and waits until loaded. The model, if given, says what may be found.
 * NULL: fine. Else what is wrong; the tier is closed then. */
const char *power_work_open(struct power_work *work, uint64_t capacity_bytes,
    enum kvl_disk_codec codec, const struct power_model *model);
/* Loads blocks and compares their bytes: those that were under way not long ago, and one in `rest`
 * of the others. NULL or what is wrong. */
const char *power_work_verify(
    struct power_work *work, const struct power_model *model, uint64_t *random, uint32_t rest);
/* Some hundred random stores, loads, discards, flushes and catalog changes. */
void power_work_some(struct power_work *work, uint32_t steps, uint64_t *random);
/* Fills the catalog until the index has no room, and empties it again. */
void power_work_pressure(struct power_work *work, uint64_t *random);
/* Asks for a flush, and waits for everything that is under way. */
void power_work_flush(struct power_work *work);
/* clean: drained, as a stop does. Otherwise what is under way ends, and nothing more is written. */
const char *power_work_close(struct power_work *work, bool clean);
bool power_work_is_open(const struct power_work *work);
/* Errors that ios have ended with, and those that the tier has counted in all, since the open. */
void power_work_errors(const struct power_work *work, uint64_t *seen, uint64_t *counted);
/* How many verify has loaded. */
uint64_t power_work_loads(const struct power_work *work);

#endif
