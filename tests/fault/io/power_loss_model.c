/* power_loss_model.c - see power_loss_model.h. */
#include "power_loss_model.h"

#include <stdlib.h>
#include <string.h>

#define YOUNG 128u /* events */

static void raise(uint32_t *value, uint64_t to) {
    if (to > *value)
        *value = (uint32_t)to;
}

bool power_slot_removed(uint32_t slot, uint32_t version) {
    return (slot * 7 + version) % 5 == 0;
}

/* A start with a smaller capacity evicts what it likes before it says what there is. */
static void take_opening(struct power_model *model, uint64_t capacity_bytes) {
    for (uint32_t i = 0; i < POWER_KEYS && capacity_bytes < model->capacity_bytes; i++)
        raise(&model->keys[i].may_go, model->keys[i].stored);
    model->capacity_bytes = capacity_bytes;
    memset(model->found, 0, sizeof(model->found));
    memset(model->slots_found, 0, sizeof(model->slots_found));
    memset(model->flushes, 0, sizeof(model->flushes));
}

/* What a start has shown is what there is: it must be there after the next power loss, too. */
static void take_loaded(struct power_model *model) {
    for (uint32_t i = 0; i < POWER_KEYS; i++) {
        struct power_key *key = &model->keys[i];
        key->kept = key->stored = model->found[i];
        key->floor = key->newest;
        key->may_go = key->evicted = key->discarded = 0;
    }
    for (uint32_t i = 0; i < POWER_SLOTS; i++) {
        struct power_slot *slot = &model->slots[i];
        slot->flushed = slot->taken = slot->newest;
        slot->value = model->slots_found[i];
    }
}

static void take_flushing(struct power_model *model, uint64_t number) {
    struct power_flush *flush = model->flushes;
    while (flush->at != 0) {
        if (++flush == model->flushes + POWER_FLUSHES_MAX)
            abort();
    }
    flush->at = model->clock;
    flush->number = (uint32_t)number;
    for (uint32_t i = 0; i < POWER_SLOTS; i++)
        flush->slots[i] = model->slots[i].taken;
}

static struct power_flush *find_flush(struct power_model *model, uint64_t number) {
    for (uint32_t i = 0; i < POWER_FLUSHES_MAX; i++) {
        if (model->flushes[i].at != 0 && model->flushes[i].number == number)
            return &model->flushes[i];
    }
    return NULL; /* of an earlier start */
}

static void take_flushed(struct power_model *model, uint64_t number) {
    struct power_flush *flush = find_flush(model, number);
    if (flush == NULL)
        return;
    for (uint32_t i = 0; i < POWER_KEYS; i++) {
        struct power_key *key = &model->keys[i];
        if (key->discarded_at < flush->at)
            raise(&key->gone, key->discarded);
        if (key->evicted_at < flush->at)
            raise(&key->gone, key->evicted);
    }
    for (uint32_t i = 0; i < POWER_SLOTS; i++) {
        if (flush->slots[i] <= model->slots[i].flushed)
            continue;
        model->slots[i].flushed = flush->slots[i];
        model->slots[i].value = power_slot_removed(i, flush->slots[i]) ? 0 : flush->slots[i];
    }
    flush->at = 0;
}

/* Changes were lost: those of this flush that are not known to be durable are promised no more. */
static void take_flush_failed(struct power_model *model, uint64_t number) {
    struct power_flush *failed = find_flush(model, number);
    if (failed == NULL)
        return;
    for (uint32_t i = 0; i < POWER_KEYS; i++) {
        if (model->keys[i].discarded_at < failed->at)
            model->keys[i].discarded = 0;
    }
    for (uint32_t i = 0; i < POWER_SLOTS; i++) {
        struct power_slot *slot = &model->slots[i];
        uint32_t lost = failed->slots[i];
        for (uint32_t f = 0; f < POWER_FLUSHES_MAX; f++) {
            if (model->flushes[f].slots[i] <= lost)
                model->flushes[f].slots[i] = 0;
        }
        if (slot->taken <= lost)
            slot->taken = slot->flushed;
    }
    failed->at = 0;
}

void power_model_take(struct power_model *model, const struct power_entry *entry) {
    struct power_key *key = &model->keys[entry->offset % POWER_KEYS];
    uint32_t version = (uint32_t)entry->bytes;
    model->clock++;
    switch ((enum power_event)entry->node) {
    case POWER_OPENING:
        take_opening(model, entry->offset);
        break;
    case POWER_FOUND:
        model->found[entry->offset] = version;
        break;
    case POWER_SLOT_FOUND:
        model->slots_found[entry->offset] = version;
        break;
    case POWER_LOADED:
        take_loaded(model);
        break;
    case POWER_STORING:
        raise(&key->newest, version);
        break;
    case POWER_STORED:
        raise(&key->stored, version);
        raise(&key->durable, version);
        key->written_at = model->clock;
        break;
    case POWER_MOVED:
        key->written_at = model->clock;
        break;
    case POWER_FAILED:
        key->failed[version / 64] |= UINT64_C(1) << version % 64;
        break;
    case POWER_DISCARDING:
        raise(&key->may_go, version);
        key->discarded = version;
        key->discarded_at = model->clock;
        break;
    case POWER_EVICTABLE:
        raise(&key->may_go, key->stored);
        break;
    case POWER_LOST:
        raise(&key->may_go, version);
        key->evicted = version;
        key->evicted_at = model->clock;
        break;
    case POWER_PUTTING:
        raise(&model->slots[entry->offset].newest, version);
        break;
    case POWER_PUT:
        raise(&model->slots[entry->offset].taken, version);
        break;
    case POWER_FLUSHING:
        take_flushing(model, entry->offset);
        break;
    case POWER_FLUSHED:
        take_flushed(model, entry->offset);
        break;
    case POWER_FLUSH_FAILED:
        take_flush_failed(model, entry->offset);
        break;
    default:
        abort();
    }
}

const char *power_model_check_key(
    const struct power_model *model, uint32_t number, uint32_t version) {
    const struct power_key *key = &model->keys[number];
    if (version == 0)
        return key->stored > key->may_go ? "was durable and is not there" : NULL;
    if (version > key->newest)
        return "was never stored";
    if ((key->failed[version / 64] >> version % 64 & 1) != 0 && !model->faults)
        return "was said not to be stored, and is there";
    if (version <= key->gone)
        return "was cleared and is back";
    if (version <= key->evicted && !model->index_lost)
        return "was evicted and is back";
    if (version < key->stored)
        return "was replaced and is back";
    if (version <= key->floor && version != key->kept)
        return "was not there at the last start and is back";
    return NULL;
}

const char *power_model_check_slot(
    const struct power_model *model, uint32_t number, uint32_t version) {
    const struct power_slot *slot = &model->slots[number];
    if (version > slot->newest)
        return "was never put";
    if (version == slot->value)
        return NULL;
    for (uint32_t at = slot->flushed + 1; at <= slot->newest; at++) {
        bool removed = power_slot_removed(number, at);
        if (removed ? version == 0 : version == at)
            return NULL;
    }
    return version == 0 ? "was durable and is not there" : "is not the version that was durable";
}

bool power_model_is_young(const struct power_model *model, uint32_t number, uint32_t version) {
    const struct power_key *key = &model->keys[number];
    return version != key->stored || model->clock - key->written_at < YOUNG;
}
