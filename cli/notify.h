/* notify.h - tells systemd how far a daemon is: one datagram to $NOTIFY_SOCKET, as sd_notify(3)
 * describes. Without that variable, or when nobody listens, nothing happens. */
#ifndef KVL_NOTIFY_H
#define KVL_NOTIFY_H

void kvl_notify(const char *state); /* "READY=1", "STOPPING=1" */

#endif
