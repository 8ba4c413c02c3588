/* log.c - formats one line on the caller's stack and hands it to the sink under one mutex. */
#include "log.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_BYTES 1024
#define FALLBACK_BYTES 256
#define FALLBACKS_MAX 32

struct kvl_log {
    atomic_int level; /* enum kvl_log_level */
    void (*sink)(void *arg, enum kvl_log_level level, const char *line);
    void *arg;
    pthread_mutex_t mutex; /* the sink and the fallbacks */
    size_t fallback_count;
    char fallbacks[FALLBACKS_MAX][FALLBACK_BYTES];
};

void kvl_log_set_level(struct kvl_log *log, enum kvl_log_level level) {
    if (log)
        atomic_store_explicit(&log->level, (int)level, memory_order_relaxed);
}

static bool is_wanted(struct kvl_log *log, enum kvl_log_level level) {
    return log->sink && (int)level <= atomic_load_explicit(&log->level, memory_order_relaxed);
}

struct kvl_log *kvl_log_create(enum kvl_log_level level,
    void (*sink)(void *arg, enum kvl_log_level level, const char *line), void *arg) {
    struct kvl_log *log = calloc(1, sizeof *log);
    if (!log)
        return NULL;
    kvl_log_set_level(log, level);
    log->sink = sink;
    log->arg = arg;
    if (pthread_mutex_init(&log->mutex, NULL) != 0) {
        free(log);
        return NULL;
    }
    return log;
}

void kvl_log_destroy(struct kvl_log *log) {
    if (!log)
        return;
    pthread_mutex_destroy(&log->mutex);
    free(log);
}

void kvl_log_write(struct kvl_log *log, enum kvl_log_level level, const char *format, ...) {
    if (!log || !is_wanted(log, level))
        return;
    char line[LINE_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    pthread_mutex_lock(&log->mutex);
    log->sink(log->arg, level, line);
    pthread_mutex_unlock(&log->mutex);
}

/* Under the mutex. False when the text is kept already; what finds no room is told all the same. */
static bool keep_fallback(struct kvl_log *log, const char *text) {
    for (size_t i = 0; i < log->fallback_count; i++) {
        if (strcmp(log->fallbacks[i], text) == 0)
            return false;
    }
    if (log->fallback_count == FALLBACKS_MAX)
        return true;
    memcpy(log->fallbacks[log->fallback_count++], text, strlen(text) + 1);
    return true;
}

void kvl_log_fallback(struct kvl_log *log, const char *format, ...) {
    if (!log)
        return;
    char text[FALLBACK_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    pthread_mutex_lock(&log->mutex);
    if (keep_fallback(log, text) && is_wanted(log, KVL_LOG_WARN))
        log->sink(log->arg, KVL_LOG_WARN, text);
    pthread_mutex_unlock(&log->mutex);
}

int kvl_log_fallback_at(struct kvl_log *log, size_t index, char *text, size_t text_bytes) {
    if (!log)
        return 0;
    pthread_mutex_lock(&log->mutex);
    int found = index < log->fallback_count;
    if (found)
        snprintf(text, text_bytes, "%s", log->fallbacks[index]);
    pthread_mutex_unlock(&log->mutex);
    return found;
}
