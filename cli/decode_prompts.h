/* decode_prompts.h - kvloft-decode --prompts: many prompts at once, a line of JSON for each. */
#ifndef KVL_DECODE_PROMPTS_H
#define KVL_DECODE_PROMPTS_H

#include "decode_engine.h"
#include "decode_lines.h"

/* Before a model is loaded for it, and once only: a named pipe gives its lines to who opened it
 * first. The caller closes the lines in any case. DECODE_FAILED after an error message. */
int decode_prompts_open(const char *path, struct decode_lines *lines);
/* Answers all lines; results are printed as they end, each with its line's number and id, and
 * broken lines as an error. A result that cannot be written sets *hooks->stop. Returns the exit
 * status: DECODE_FAILED too when a line failed or not all were answered. */
int decode_prompts_run(struct decode_engine *engine, const struct decode_engine_hooks *hooks,
    struct decode_lines *lines);

#endif
