/* planted.h - bugs put in on purpose, to show that the tests would see them.
 *
 * Only a build with -DKVL_PLANTED_BUGS=ON has them, and then each only where the environment
 * variable KVL_PLANTED names it. tests/planted lists them with the proof that must catch each. In
 * every other build KVL_PLANTED(...) is the constant false. */
#ifndef KVL_PLANTED_H
#define KVL_PLANTED_H

#include <stdbool.h>

#ifdef KVL_PLANTED_BUGS
#include <stdlib.h>
#include <string.h>

static inline bool kvl_planted(const char *name) {
    const char *on = getenv("KVL_PLANTED");
    return on != NULL && strcmp(on, name) == 0;
}
#define KVL_PLANTED(name) kvl_planted(name)
#else
#define KVL_PLANTED(name) false
#endif

#endif
