/* far_fixture.h - a store over a device that the CPU cannot address, and how to make it fail. */
#ifndef KVL_FAR_FIXTURE_H
#define KVL_FAR_FIXTURE_H

#include "decorators/fault.h"
#include "store_fixture.h"

#define ALL_IOS (KVL_FAULT_HASH | KVL_FAULT_STORE | KVL_FAULT_LOAD)

/* For cmocka: a folder for the disk tier of each test. */
extern char far_folder[64];
int far_make_folder(void **state);
int far_remove_folder(void **state);

void far_open(struct fixture *f, struct fixture_options options);
struct kvl_completion *far_word_of(struct fixture *f, struct kvl_ticket ticket);
/* Every transfer of these kinds to or from the device ends with the error, until far_mend. */
void far_fail(struct fixture *f, uint32_t ops, kvl_err error);
void far_mend(struct fixture *f);

#endif
