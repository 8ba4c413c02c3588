/* log.h - one sink per instance, lines of key=value; libraries never print or exit.
 *
 * Levels by how often a thing happens: lifetime INFO, request DEBUG, block TRACE. Every fallback
 * logs WARN once (kvl_log_fallback) and is kept, so that status can show it.
 * Threads: any (one mutex around the sink). */
#ifndef KVL_LOG_H
#define KVL_LOG_H

#include <stddef.h>

enum kvl_log_level { KVL_LOG_ERROR, KVL_LOG_WARN, KVL_LOG_INFO, KVL_LOG_DEBUG, KVL_LOG_TRACE };

struct kvl_log;

/* sink gets one line without newline; NULL drops everything. Returns NULL when out of memory;
 * every function accepts a NULL log. */
struct kvl_log *kvl_log_create(enum kvl_log_level level,
    void (*sink)(void *arg, enum kvl_log_level level, const char *line), void *arg);
void kvl_log_destroy(struct kvl_log *log);
void kvl_log_set_level(struct kvl_log *log, enum kvl_log_level level);

__attribute__((format(printf, 3, 4))) void kvl_log_write(
    struct kvl_log *log, enum kvl_log_level level, const char *format, ...);

/* Logs WARN and keeps the text, once per distinct text (at most 32 are kept). */
__attribute__((format(printf, 2, 3))) void kvl_log_fallback(
    struct kvl_log *log, const char *format, ...);
/* Copies kept fallback number `index` into text; returns 0 when there is none of that index. */
int kvl_log_fallback_at(struct kvl_log *log, size_t index, char *text, size_t text_bytes);

#define KVL_ERROR(log, ...) kvl_log_write((log), KVL_LOG_ERROR, __VA_ARGS__)
#define KVL_WARN(log, ...) kvl_log_write((log), KVL_LOG_WARN, __VA_ARGS__)
#define KVL_INFO(log, ...) kvl_log_write((log), KVL_LOG_INFO, __VA_ARGS__)
#define KVL_DEBUG(log, ...) kvl_log_write((log), KVL_LOG_DEBUG, __VA_ARGS__)
#define KVL_TRACE(log, ...) kvl_log_write((log), KVL_LOG_TRACE, __VA_ARGS__)

#endif
