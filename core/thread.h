/* thread.h - what a thread tells the system about itself when it begins. */
#ifndef KVL_THREAD_H
#define KVL_THREAD_H

enum kvl_thread_kind {
    KVL_THREAD_COMPUTE, /* hashes, encodes, touches memory: for milliseconds at a stretch */
    KVL_THREAD_PROMPT   /* works in short turns, and others wait for it */
};

/* Of the calling thread. name: at most 15 characters, NULL keeps the one it has. A PROMPT one runs
 * as soon as it is woken, although computing threads keep every core busy: it asks for turns of 0.1
 * ms, which changes nothing of its share and needs no privilege (sched_setattr(2), sched_runtime of
 * SCHED_OTHER; Linux 6.12 and later; before, and where a sandbox refuses, this does nothing). */
void kvl_thread_begin(const char *name, enum kvl_thread_kind kind);

#endif
