/* mailbox.h - a queue of nodes between two threads, with an eventfd.
 *
 * Nodes are embedded in what they carry; the receiver knows the type by kind. The eventfd is
 * readable while nodes wait. Threads: any thread posts, one takes. Never blocks, never allocates.
 */
#ifndef KVL_DISK_MAILBOX_H
#define KVL_DISK_MAILBOX_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct kvl_node {
    struct kvl_node *next;
    uint8_t kind;
    bool posted; /* the mailbox's: between post and next */
};

struct kvl_mailbox {
    pthread_mutex_t mutex;
    struct kvl_node *head, **tail;
    struct kvl_node *taken; /* the receiver's */
    int fd;
};

bool kvl_mailbox_init(struct kvl_mailbox *mailbox);
void kvl_mailbox_deinit(struct kvl_mailbox *mailbox);
/* A node that waits already is left where it is. */
void kvl_mailbox_post(struct kvl_mailbox *mailbox, struct kvl_node *node);
/* Takes all that wait now, for next; false: none. What comes later waits for another take. */
bool kvl_mailbox_take(struct kvl_mailbox *mailbox);
/* The oldest one taken, or NULL. From here on it may be posted again. */
struct kvl_node *kvl_mailbox_next(struct kvl_mailbox *mailbox);

#endif
