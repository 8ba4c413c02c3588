/* decode_chat.h - the interactive chat: line editing, streaming answers, Ctrl-C. */
#ifndef KVL_DECODE_CHAT_H
#define KVL_DECODE_CHAT_H

#include "decode_engine.h"
#include "decode_output.h"

/* Set by the handler; the first signal ends the answer under way. */
extern volatile sig_atomic_t decode_interrupted;
void decode_catch_interrupts(void);

/* Computes the tokens in the sequence and generates an answer to `shown` (NULL: nowhere). text and
 * report are the caller's to deinit. DECODE_FAILED after an error message. */
int decode_answer(struct decode_engine *engine, struct decode_progress *progress, uint64_t began_ns,
    FILE *shown, struct decode_text *text, struct kvl_turn_report *report);

/* Until Ctrl-D, or Ctrl-C at the prompt. Returns the exit status. */
int decode_chat_run(struct decode_engine *engine, struct decode_progress *progress);

#endif
