/* decode_chat.c - see decode_chat.h.
 *
 * libedit edits the line; characters are read here, so that Ctrl-C at the prompt ends the chat
 * instead of being read over. */
#include "decode_chat.h"

#include <errno.h>
#include <histedit.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wchar.h>

volatile sig_atomic_t decode_interrupted;

static void on_interrupt(int signal_number) {
    if (decode_interrupted) { /* the answer did not end yet: end the program */
        signal(signal_number, SIG_DFL);
        raise(signal_number);
    }
    decode_interrupted = 1;
}

void decode_catch_interrupts(void) {
    struct sigaction action = {.sa_handler = on_interrupt}; /* no SA_RESTART: read() ends */
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

int decode_answer(struct decode_engine *engine, struct decode_progress *progress, uint64_t began_ns,
    FILE *shown, struct decode_text *text, struct kvl_turn_report *report) {
    kvl_stop_strings_restart(&engine->stops);
    *text = (struct decode_text){.tokenizer = engine->tokenizer,
        .shown = shown,
        .progress = progress,
        .stops = engine->stops.count > 0 ? &engine->stops : NULL};
    struct kvl_generate_options options = {
        .sequence = &engine->sequence,
        .session = engine->session.connection != NULL ? &engine->session : NULL,
        .tokenizer = engine->tokenizer,
        .sampler = &engine->sampler,
        .max_tokens = engine->options->max_tokens,
        .hash_logits = engine->options->hash_logits,
        .began_ns = began_ns,
        .on_token = decode_text_token,
        .on_token_arg = text,
    };
    decode_progress_end(progress);
    kvl_err err = kvl_generate(&options, report);
    decode_progress_end(progress);
    decode_text_finish(text);
    if (err == KVL_OK && text->out_of_memory)
        err = KVL_ERR_NOMEM;
    return err == KVL_OK ? DECODE_DONE : decode_error("generating failed: %s", kvl_err_text(err));
}

static wchar_t *prompt_of(EditLine *edit) {
    static wchar_t prompt[] = L"> ";
    (void)edit;
    return prompt;
}

/* One character of the terminal; 0 ends the line editing: end of input, or Ctrl-C. */
static int read_character(EditLine *edit, wchar_t *out) {
    (void)edit;
    mbstate_t state;
    memset(&state, 0, sizeof state);
    for (;;) {
        char byte = 0;
        ssize_t got = read(STDIN_FILENO, &byte, 1);
        if (got < 0 && errno == EINTR && !decode_interrupted)
            continue;
        if (got <= 0)
            return 0;
        size_t used = mbrtowc(out, &byte, 1, &state);
        if (used == (size_t)-1) /* not this locale's text: the byte is left out */
            memset(&state, 0, sizeof state);
        else if (used != (size_t)-2)
            return 1;
    }
}

static EditLine *open_editor(History **list) {
    if (setlocale(LC_CTYPE, "") == NULL || MB_CUR_MAX == 1) /* the model's text is UTF-8 */
        (void)setlocale(LC_CTYPE, "C.UTF-8");
    EditLine *edit = el_init("kvloft-decode", stdin, stderr, stderr);
    *list = history_init();
    if (edit == NULL || *list == NULL)
        return edit;
    HistEvent event;
    history(*list, &event, H_SETSIZE, 1000);
    el_wset(edit, EL_PROMPT, prompt_of);
    el_wset(edit, EL_GETCFN, read_character);
    el_set(edit, EL_EDITOR, "emacs");
    el_set(edit, EL_HIST, history, *list);
    return edit;
}

/* One turn. DECODE_FAILED only when going on makes no sense. */
static int take_turn(struct decode_engine *engine, struct decode_progress *progress,
    const char *line, uint64_t line_bytes) {
    uint64_t began_ns = decode_now_ns();
    struct kvl_token_list tokens = {0};
    struct kvl_errmsg msg = {{0}};
    kvl_err err = decode_engine_tokens_of(engine, line, line_bytes, &tokens, &msg);
    if (err == KVL_OK)
        err = decode_engine_append(engine, &tokens, &msg);
    kvl_token_list_free(&tokens);
    if (err != KVL_OK) {
        (void)decode_error("%s", msg.text);
        return err == KVL_ERR_LIMIT ? DECODE_DONE : DECODE_FAILED;
    }
    struct decode_text text;
    struct kvl_turn_report report;
    decode_interrupted = 0;
    decode_engine_streaming(engine, true);
    int status = decode_answer(engine, progress, began_ns, stdout, &text, &report);
    decode_interrupted = 0;
    putchar('\n');
    fflush(stdout);
    decode_engine_streaming(engine, false);
    if (status == DECODE_DONE)
        decode_print_summary(engine, &report);
    decode_text_deinit(&text);
    kvl_turn_report_deinit(&report);
    return status;
}

int decode_chat_run(struct decode_engine *engine, struct decode_progress *progress) {
    History *history_list = NULL;
    EditLine *edit = open_editor(&history_list);
    if (edit == NULL)
        return decode_error("cannot set up line editing on this terminal");
    if (engine->sequence.count > 0)
        fprintf(stderr, "going on with session '%s', %u tokens\n", engine->options->session,
            engine->sequence.count);
    int status = DECODE_DONE;
    while (status == DECODE_DONE && !decode_interrupted) {
        int count = 0;
        const char *line = el_gets(edit, &count);
        if (line == NULL || count <= 0)
            break;
        size_t bytes = strcspn(line, "\r\n");
        if (bytes == 0)
            continue;
        HistEvent event;
        if (history_list != NULL)
            history(history_list, &event, H_ENTER, line);
        status = take_turn(engine, progress, line, bytes);
    }
    fputc('\n', stderr);
    el_end(edit);
    if (history_list != NULL)
        history_end(history_list);
    return status;
}
