/* mailbox.c - one mutex, one list, one eventfd written when the list stops being empty. */
#include "mailbox.h"

#include <stddef.h>
#include <sys/eventfd.h>
#include <unistd.h>

bool kvl_mailbox_init(struct kvl_mailbox *mailbox) {
    mailbox->head = mailbox->taken = NULL;
    mailbox->tail = &mailbox->head;
    mailbox->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    pthread_mutex_init(&mailbox->mutex, NULL);
    return mailbox->fd >= 0;
}

void kvl_mailbox_deinit(struct kvl_mailbox *mailbox) {
    if (mailbox->fd >= 0)
        close(mailbox->fd);
    mailbox->fd = -1;
    pthread_mutex_destroy(&mailbox->mutex);
}

void kvl_mailbox_post(struct kvl_mailbox *mailbox, struct kvl_node *node) {
    pthread_mutex_lock(&mailbox->mutex);
    if (!node->posted) {
        bool was_empty = mailbox->head == NULL;
        node->posted = true;
        node->next = NULL;
        *mailbox->tail = node;
        mailbox->tail = &node->next;
        if (was_empty)
            (void)eventfd_write(mailbox->fd, 1);
    }
    pthread_mutex_unlock(&mailbox->mutex);
}

bool kvl_mailbox_take(struct kvl_mailbox *mailbox) {
    eventfd_t count;
    if (mailbox->taken != NULL)
        return true;
    pthread_mutex_lock(&mailbox->mutex);
    if (mailbox->head != NULL)
        (void)eventfd_read(mailbox->fd, &count);
    mailbox->taken = mailbox->head;
    mailbox->head = NULL;
    mailbox->tail = &mailbox->head;
    pthread_mutex_unlock(&mailbox->mutex);
    return mailbox->taken != NULL;
}

struct kvl_node *kvl_mailbox_next(struct kvl_mailbox *mailbox) {
    struct kvl_node *node = mailbox->taken;
    if (node == NULL)
        return NULL;
    mailbox->taken = node->next;
    pthread_mutex_lock(&mailbox->mutex);
    node->posted = false;
    pthread_mutex_unlock(&mailbox->mutex);
    return node;
}
