/* far_backend.h - the CPU backend, with block memory that only its own operations reach.
 *
 * Addresses it hands out are moved by a constant into a range that no process may touch, so whoever
 * follows one crashes. Copies are as late as backend.h allows: queued until the next forward call
 * or finish, and never from inside a forward call, so that a seal of bytes still on their way
 * stores wrong ones. It maps a daemon's arena by itself, as a GPU's backend does. Its arithmetic is
 * the CPU's to the last bit.
 *
 * A use against the contract (an address that is not far, memory given back under queued copies,
 * an arena left mapped) ends the program with a message. */
#ifndef KVL_TESTS_FAR_BACKEND_H
#define KVL_TESTS_FAR_BACKEND_H

#include "backend.h"

extern const struct kvl_backend_ops far_backend;

#endif
