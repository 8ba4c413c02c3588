/* raw.h - a peer that sends what it likes: nanomsg messages and attach packets byte by byte. */
#ifndef KVL_TEST_RAW_H
#define KVL_TEST_RAW_H

#include "harness.h"
#include "wire.h"

/* Connected attach socket, nothing sent yet. */
int raw_attach(const struct test_daemon *daemon);
/* A proper hello, so that token and number are known; the fd stays open, descriptors are closed. */
int raw_hello(const struct test_daemon *daemon, struct kvl_attach_reply *reply);
/* Says goodbye and closes it. */
void raw_goodbye(int fd);
/* Raw REQ socket, connected. */
int raw_socket(const struct test_daemon *daemon);
void raw_send(int socket, const void *data, size_t bytes);
/* Returns the length, or -1 after timeout_ms. */
int raw_receive(int socket, void *data, size_t data_bytes, int timeout_ms);
/* True when the peer closed the connection within a minute. */
bool raw_was_closed(int fd);

#endif
