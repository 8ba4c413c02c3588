/* samples.h - one well-formed request and reply of every verb, for round trips and as the seeds of
 * the fuzzer. */
#ifndef KVL_TEST_SAMPLES_H
#define KVL_TEST_SAMPLES_H

#include "wire.h"

/* Encodes a sample into buffer (kvl_wire_buffer_free it). False when the verb does not exist. */
bool sample_request(uint32_t verb, struct kvl_wire_buffer *buffer);
bool sample_reply(uint32_t verb, struct kvl_wire_buffer *buffer);

#endif
