/* decode_prompts.h - kvloft-decode --prompts: many prompts at once, a line of JSON for each. */
#ifndef KVL_DECODE_PROMPTS_H
#define KVL_DECODE_PROMPTS_H

#include "decode_engine.h"

/* Whether the file can be opened, before a model is loaded for it. DECODE_FAILED after an error
 * message. */
int decode_prompts_check(const char *path);
/* Answers all lines of options->prompts; results are printed as they end, each with its line's
 * number and id, and broken lines as an error. Returns the exit status: DECODE_FAILED too when a
 * line failed or not all were answered. */
int decode_prompts_run(struct decode_engine *engine, const struct decode_engine_hooks *hooks);

#endif
