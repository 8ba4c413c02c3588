/* decode_options.c - see decode_options.h. */
#include "decode_options.h"

#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "address.h"
#include "cuda_device.h"
#include "generate.h"
#include "size.h"

static const char usage_text[] =
    "usage: kvloft-decode --model FILE (--prompt TEXT | --prompt-file FILE) [options]\n"
    "       kvloft-decode --model FILE [--session NAME] [options]      an interactive chat\n"
    "       kvloft-decode --model FILE --prompts FILE.jsonl [--parallel N] [options]   many at "
    "once\n"
    "       kvloft-decode --model FILE --prompt-file FILE --tokenize [--special] [--json]\n"
    "       kvloft-decode --model FILE --prompt-file FILE --perplexity [--json]\n"
    "       kvloft-decode --random-model SHAPE --prompt-tokens N [options]     for figures and "
    "tests\n"
    "\n"
    "Generates text with a GGUF model; its KV cache can outlive the run in a kvloft daemon.\n"
    "\n"
    "what to read and write\n"
    "  --model FILE         the model, GGUF version 3\n"
    "  --random-model SHAPE llama-8b, llama-1b, qwen2-7b or a JSON file of a shape: weights are\n"
    "                       random numbers of --seed, tokens are ids; needs --prompt-tokens\n"
    "  --prompt TEXT        the prompt; bytes that are not UTF-8 become the tokens of these bytes\n"
    "  --prompt-file FILE   the same from a file\n"
    "  --prompts FILE       many prompts, a JSON object a line (FILE -: stdin), e.g.\n"
    "                       {\"id\": 1, \"prompt\": \"The moon\", \"max_tokens\": 20, \"seed\": "
    "3}; prints "
    "a\n"
    "                       line of JSON for each as it ends. Other fields: system, stop, and the\n"
    "                       options of how tokens are chosen, as top_k; what a line leaves out is "
    "as\n"
    "                       given here. With --json, a line with the totals comes last\n"
    "    --parallel N       so many of them at once, 1 to 64 (default 8)\n"
    "  --prompt-tokens N    keep only the prompt's first N tokens; with a random model: make N\n"
    "  --max-tokens N       generate at most N tokens (default 256; in a chat 1024)\n"
    "  --stop TEXT          end before this text; may be given up to 32 times\n"
    "  --chat               wrap the prompt as the model's chat template does\n"
    "  --chat-template NAME wrap as this one does, whatever the file has: chatml, llama-3, "
    "mistral,\n"
    "                       gemma, phi-3, ...; an unknown name lists all\n"
    "  --system TEXT        the chat's system message instead of the template's own\n"
    "  --session NAME       go on where this conversation stopped; needs a daemon or --embedded\n"
    "  --json               one JSON object on stdout\n"
    "  --hash-logits        also SHA-256 of the logits of every generated position\n"
    "  --tokenize           print the prompt's token ids; --special: parse special tokens\n"
    "  --perplexity         how well the model predicts the prompt\n"
    "\n"
    "how tokens are chosen\n"
    "  --temperature T      0 takes the likeliest token (default 0)\n"
    "  --seed N             of the random numbers of a temperature above 0 (default 0)\n"
    "  --top-k N            with a temperature: of the N likeliest (default 0: all)\n"
    "  --top-p P            of the likeliest that have together P (default 1)\n"
    "  --min-p P            of those with P times the likeliest's probability (default 0)\n"
    "  --typical P          of the most typical that have together P (default 1)\n"
    "  --repeat-penalty R   divide (below 0: multiply) logits of recent tokens by R (default 1)\n"
    "  --presence-penalty A, --frequency-penalty A\n"
    "                       take A off them, once or as often as they came (default 0)\n"
    "  --repeat-last-n N    so many tokens are recent (default 64)\n"
    "  --logit-bias ID=X    add X to this token's logit, -inf forbids it; up to 256 times\n"
    "\n"
    "how to compute\n"
    "  --ctx N              tokens in context (default: the model's, at most 8192)\n"
    "  --kv-dtype TYPE      of the cache: f16 (default), bf16, f32\n"
    "  --device DEVICE      cpu (default), cuda or cuda:N: a GPU, where this build has CUDA\n"
    "  --threads N          default: as many as the process may run on\n"
    "  $KVLOFT_CPU_KERNELS  of the CPU: avx512, avx2, neon or portable; all give the same bits\n"
    "                       (default: the fastest that it runs)\n"
    "\n"
    "where the cache lives (default: the daemon at the default address if one answers, else as\n"
    "with --no-offload; with --session a daemon has to answer; with --prompts, else in memory "
    "that\n"
    "they share, of which --device-bytes N are used at most)\n"
    "  --connect ADDR       in the daemon at ADDR, e.g. ipc:///run/user/1000/kvloft/kvloft.sock\n"
    "    --tenant NAME, --secret-file FILE  as whom, where that daemon has tenants (default:\n"
    "                                       $KVLOFT_TENANT, $KVLOFT_SECRET_FILE)\n"
    "  --embedded DIR       in this process and in DIR, without a daemon; takes\n"
    "    --device-bytes N, --host-bytes N   memory (default 512M each)\n"
    "    --disk-bytes N                     cap of DIR (default 8G)\n"
    "    --persist-ms N                     sealed blocks are durable within this (default 200)\n"
    "  --no-offload         in this process only; gone at its end; --prompts share nothing\n"
    "  --no-cache           nowhere: compute everything again for every token\n"
    "\n"
    "  --help, --version\n"
    "\n"
    "Ctrl-C ends the answer, a second one the program. Exit status: 0 done, 1 failed, 2 wrong\n"
    "usage.\n";

enum option_id {
    OPTION_MODEL = 256,
    OPTION_RANDOM_MODEL,
    OPTION_PROMPT,
    OPTION_PROMPT_FILE,
    OPTION_PROMPTS,
    OPTION_PARALLEL,
    OPTION_PROMPT_TOKENS,
    OPTION_MAX_TOKENS,
    OPTION_SAMPLING, /* all of decode_sampling.h, told apart by name */
    OPTION_CTX,
    OPTION_KV_DTYPE,
    OPTION_DEVICE,
    OPTION_THREADS,
    OPTION_CONNECT,
    OPTION_TENANT,
    OPTION_SECRET_FILE,
    OPTION_EMBEDDED,
    OPTION_NO_OFFLOAD,
    OPTION_NO_CACHE,
    OPTION_DEVICE_BYTES,
    OPTION_HOST_BYTES,
    OPTION_DISK_BYTES,
    OPTION_PERSIST_MS,
    OPTION_SESSION,
    OPTION_CHAT,
    OPTION_SYSTEM,
    OPTION_CHAT_TEMPLATE,
    OPTION_HASH_LOGITS,
    OPTION_JSON,
    OPTION_TOKENIZE,
    OPTION_SPECIAL,
    OPTION_PERPLEXITY,
    OPTION_HELP,
    OPTION_VERSION,
};

static const struct option long_options[] = {
    {"model", required_argument, NULL, OPTION_MODEL},
    {"random-model", required_argument, NULL, OPTION_RANDOM_MODEL},
    {"prompt", required_argument, NULL, OPTION_PROMPT},
    {"prompt-file", required_argument, NULL, OPTION_PROMPT_FILE},
    {"prompts", required_argument, NULL, OPTION_PROMPTS},
    {"parallel", required_argument, NULL, OPTION_PARALLEL},
    {"prompt-tokens", required_argument, NULL, OPTION_PROMPT_TOKENS},
    {"max-tokens", required_argument, NULL, OPTION_MAX_TOKENS},
    {"temperature", required_argument, NULL, OPTION_SAMPLING},
    {"seed", required_argument, NULL, OPTION_SAMPLING},
    {"top-k", required_argument, NULL, OPTION_SAMPLING},
    {"top-p", required_argument, NULL, OPTION_SAMPLING},
    {"min-p", required_argument, NULL, OPTION_SAMPLING},
    {"typical", required_argument, NULL, OPTION_SAMPLING},
    {"repeat-penalty", required_argument, NULL, OPTION_SAMPLING},
    {"presence-penalty", required_argument, NULL, OPTION_SAMPLING},
    {"frequency-penalty", required_argument, NULL, OPTION_SAMPLING},
    {"repeat-last-n", required_argument, NULL, OPTION_SAMPLING},
    {"logit-bias", required_argument, NULL, OPTION_SAMPLING},
    {"stop", required_argument, NULL, OPTION_SAMPLING},
    {"ctx", required_argument, NULL, OPTION_CTX},
    {"kv-dtype", required_argument, NULL, OPTION_KV_DTYPE},
    {"device", required_argument, NULL, OPTION_DEVICE},
    {"threads", required_argument, NULL, OPTION_THREADS},
    {"connect", required_argument, NULL, OPTION_CONNECT},
    {"tenant", required_argument, NULL, OPTION_TENANT},
    {"secret-file", required_argument, NULL, OPTION_SECRET_FILE},
    {"embedded", required_argument, NULL, OPTION_EMBEDDED},
    {"no-offload", no_argument, NULL, OPTION_NO_OFFLOAD},
    {"no-cache", no_argument, NULL, OPTION_NO_CACHE},
    {"device-bytes", required_argument, NULL, OPTION_DEVICE_BYTES},
    {"host-bytes", required_argument, NULL, OPTION_HOST_BYTES},
    {"disk-bytes", required_argument, NULL, OPTION_DISK_BYTES},
    {"persist-ms", required_argument, NULL, OPTION_PERSIST_MS},
    {"session", required_argument, NULL, OPTION_SESSION},
    {"chat", no_argument, NULL, OPTION_CHAT},
    {"system", required_argument, NULL, OPTION_SYSTEM},
    {"chat-template", required_argument, NULL, OPTION_CHAT_TEMPLATE},
    {"hash-logits", no_argument, NULL, OPTION_HASH_LOGITS},
    {"json", no_argument, NULL, OPTION_JSON},
    {"tokenize", no_argument, NULL, OPTION_TOKENIZE},
    {"special", no_argument, NULL, OPTION_SPECIAL},
    {"perplexity", no_argument, NULL, OPTION_PERPLEXITY},
    {"help", no_argument, NULL, OPTION_HELP},
    {"version", no_argument, NULL, OPTION_VERSION},
    {NULL, 0, NULL, 0},
};

#define DEFAULT_MAX_TOKENS 256u
#define DEFAULT_CHAT_MAX_TOKENS 1024u
#define DEFAULT_PARALLEL 8u

/* What parsing carries beside the result. */
struct parse {
    struct decode_options *options;
    uint32_t modes;       /* how many mode options were given */
    bool has_size_option; /* one that only --embedded takes, but for --device-bytes */
    bool has_max_tokens;
    int status;
};

static void print_message(const char *format, va_list arguments) {
    fputs("kvloft-decode: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
}

int decode_error(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print_message(format, arguments);
    va_end(arguments);
    return DECODE_FAILED;
}

/* Always false, so that a wrong value is one line. */
__attribute__((format(printf, 2, 3))) static bool wrong(
    struct parse *parse, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    print_message(format, arguments);
    va_end(arguments);
    parse->status = DECODE_USAGE;
    return false;
}

static bool parse_u32(struct parse *parse, const char *name, const char *text, uint32_t *out) {
    uint64_t value = 0;
    if (!kvl_parse_number(text, INT32_MAX, &value))
        return wrong(parse, "--%s %s: not a number from 0 to %d", name, text, INT32_MAX);
    *out = (uint32_t)value;
    return true;
}

static bool parse_size(struct parse *parse, const char *name, const char *text, uint64_t *out) {
    if (!kvl_parse_size(text, out))
        return wrong(parse, "--%s %s: not a size such as 4096, 512K, 256M or 2G", name, text);
    return true;
}

static bool take_sampling(struct parse *parse, const char *name, const char *value) {
    char error[64];
    const char *wrong_with_it =
        decode_sampling_take(&parse->options->sampling, name, value, error, sizeof error);
    return wrong_with_it == NULL || wrong(parse, "--%s %s: %s", name, value, wrong_with_it);
}

static bool parse_kv_dtype(struct parse *parse, const char *text) {
    static const struct {
        const char *name;
        enum kvl_kv_dtype dtype;
    } types[] = {{"f16", KVL_KV_F16}, {"bf16", KVL_KV_BF16}, {"f32", KVL_KV_F32}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; ++i)
        if (strcmp(text, types[i].name) == 0) {
            parse->options->kv_dtype = types[i].dtype;
            return true;
        }
    return wrong(parse, "--kv-dtype %s: it is f16, bf16 or f32", text);
}

/* An embedded service's device tier is where the engine computes. */
static bool parse_device(struct parse *parse, const char *text) {
    struct decode_options *options = parse->options;
    uint32_t number = 0;
    if (strcmp(text, "cpu") != 0 && !kvl_cuda_device_parse(text, &number))
        return wrong(parse, "--device %s: it is cpu or cuda[:N]", text);
    options->device = options->embedded.device = text;
    options->device_number = number;
    return true;
}

static void set_mode(struct parse *parse, enum decode_mode mode) {
    ++parse->modes;
    parse->options->mode = mode;
}

/* Options with a value of their own kind. */
static bool take_value(struct parse *parse, int id, const char *name, const char *value) {
    struct decode_options *options = parse->options;
    switch (id) {
    case OPTION_PROMPT_TOKENS:
        if (!kvl_parse_number(value, UINT32_MAX, &options->prompt_tokens) ||
            options->prompt_tokens == 0)
            return wrong(parse, "--prompt-tokens %s: not a number above 0", value);
        return true;
    case OPTION_MAX_TOKENS:
        parse->has_max_tokens = true;
        return parse_u32(parse, name, value, &options->max_tokens);
    case OPTION_SAMPLING:
        return take_sampling(parse, name, value);
    case OPTION_CTX:
        return parse_u32(parse, name, value, &options->ctx);
    case OPTION_KV_DTYPE:
        return parse_kv_dtype(parse, value);
    case OPTION_THREADS:
        return parse_u32(parse, name, value, &options->threads);
    case OPTION_PARALLEL:
        return parse_u32(parse, name, value, &options->parallel) &&
               ((options->parallel >= 1 && options->parallel <= KVL_TURNS_MAX) ||
                   wrong(parse, "--parallel %s: it is 1 to %u", value, KVL_TURNS_MAX));
    case OPTION_DEVICE_BYTES:
        options->has_device_bytes = true;
        return parse_size(parse, name, value, &options->embedded.device_bytes);
    case OPTION_HOST_BYTES:
        parse->has_size_option = true;
        return parse_size(parse, name, value, &options->embedded.host_bytes);
    case OPTION_DISK_BYTES:
        parse->has_size_option = true;
        return parse_size(parse, name, value, &options->embedded.disk_bytes);
    case OPTION_PERSIST_MS:
        parse->has_size_option = true;
        return parse_u32(parse, name, value, &options->embedded.persist_ms);
    default:
        return wrong(parse, "unknown option");
    }
}

static bool take(struct parse *parse, int id, const char *name, const char *value) {
    struct decode_options *options = parse->options;
    switch (id) {
    case OPTION_MODEL:
        options->model = value;
        return true;
    case OPTION_RANDOM_MODEL:
        options->random_model = value;
        return true;
    case OPTION_PROMPT:
        options->prompt = value;
        return true;
    case OPTION_PROMPT_FILE:
        options->prompt_file = value;
        return true;
    case OPTION_PROMPTS:
        options->prompts = value;
        return true;
    case OPTION_DEVICE:
        return parse_device(parse, value);
    case OPTION_TENANT:
        options->tenant = value;
        return true;
    case OPTION_SECRET_FILE:
        options->secret_file = value;
        return true;
    case OPTION_CONNECT:
        options->address = value;
        set_mode(parse, DECODE_CONNECT);
        return true;
    case OPTION_EMBEDDED:
        options->embedded.disk_path = value;
        set_mode(parse, DECODE_EMBEDDED);
        return true;
    case OPTION_NO_OFFLOAD:
        set_mode(parse, DECODE_NO_OFFLOAD);
        return true;
    case OPTION_NO_CACHE:
        set_mode(parse, DECODE_NO_CACHE);
        return true;
    case OPTION_SESSION:
        options->session = value;
        return true;
    case OPTION_CHAT:
        options->chat = true;
        return true;
    case OPTION_SYSTEM:
        options->system = value;
        return true;
    case OPTION_CHAT_TEMPLATE:
        options->chat_template = value;
        return true;
    case OPTION_HASH_LOGITS:
        options->hash_logits = true;
        return true;
    case OPTION_JSON:
        options->json = true;
        return true;
    case OPTION_TOKENIZE:
        options->tokenize = true;
        return true;
    case OPTION_SPECIAL:
        options->special = true;
        return true;
    case OPTION_PERPLEXITY:
        options->perplexity = true;
        return true;
    default:
        return take_value(parse, id, name, value);
    }
}

static bool check_random(struct parse *parse) {
    const struct decode_options *options = parse->options;
    if (options->model != NULL)
        return wrong(parse, "give --model or --random-model, not both");
    if (options->prompt_tokens == 0 && options->prompts == NULL)
        return wrong(parse, "--random-model needs --prompt-tokens N: so many random tokens");
    if (options->prompt != NULL || options->prompt_file != NULL || options->chat ||
        options->system != NULL || options->tokenize || options->perplexity)
        return wrong(parse,
            "a random model knows no text: --prompt, --prompt-file, --chat, --system, --tokenize "
            "and --perplexity need --model");
    return true;
}

static bool check_prompt(struct parse *parse) {
    struct decode_options *options = parse->options;
    bool has_prompt =
        options->prompt != NULL || options->prompt_file != NULL || options->prompts != NULL;
    if (options->random_model != NULL)
        return check_random(parse);
    if (options->model == NULL)
        return wrong(parse, "--model FILE is missing; see --help");
    if (options->prompt != NULL && options->prompt_file != NULL)
        return wrong(parse, "give --prompt or --prompt-file, not both");
    if (!has_prompt && (options->tokenize || options->perplexity || options->json))
        return wrong(parse, "--prompt TEXT or --prompt-file FILE is missing; see --help");
    if (!has_prompt && !isatty(STDIN_FILENO))
        return wrong(parse,
            "no --prompt or --prompt-file, and stdin is not a terminal to chat on; see --help");
    if (!has_prompt)
        options->chat = true;
    return true;
}

static bool check_embedded(struct parse *parse) {
    const struct decode_options *options = parse->options;
    struct kvl_errmsg msg = {{0}};
    if (options->mode != DECODE_EMBEDDED)
        return !parse->has_size_option || wrong(parse, "--device-bytes, --host-bytes, --disk-bytes "
                                                       "and --persist-ms go with --embedded");
    return kvl_service_check(&options->embedded, &msg) == KVL_OK || wrong(parse, "%s", msg.text);
}

static bool check_names(struct parse *parse) {
    const struct decode_options *options = parse->options;
    struct kvl_address address;
    struct kvl_errmsg msg = {{0}};
    if (options->session != NULL && options->session[0] == '\0')
        return wrong(parse, "--session: a conversation's name has at least one letter");
    if ((options->tenant != NULL || options->secret_file != NULL) &&
        options->mode != DECODE_CONNECT && options->mode != DECODE_AUTO)
        return wrong(parse, "--tenant and --secret-file are for a daemon: --connect");
    return options->address == NULL ||
           kvl_address_parse(options->address, &address, &msg) == KVL_OK ||
           wrong(parse, "--connect: %s", msg.text);
}

static bool check_prompts(struct parse *parse) {
    struct decode_options *options = parse->options;
    if (options->prompts == NULL)
        return options->parallel == 0 || wrong(parse, "--parallel goes with --prompts");
    if (options->prompt != NULL || options->prompt_file != NULL)
        return wrong(parse, "give --prompts, --prompt or --prompt-file, not two of them");
    if (options->session != NULL)
        return wrong(parse,
            "--prompts has no sessions: every line is a conversation of its own; leave out "
            "--session");
    if (options->tokenize || options->perplexity)
        return wrong(parse, "--tokenize and --perplexity take one prompt, not --prompts");
    if (options->mode == DECODE_NO_CACHE)
        return wrong(parse, "--no-cache is for one prompt; --prompts goes with --no-offload");
    if (options->parallel == 0)
        options->parallel = DEFAULT_PARALLEL;
    return true;
}

static bool check(struct parse *parse) {
    struct decode_options *options = parse->options;
    if (!check_prompts(parse) || !check_prompt(parse))
        return false;
    if (options->has_device_bytes && options->mode != DECODE_EMBEDDED &&
        (options->prompts == NULL || options->mode != DECODE_AUTO))
        parse->has_size_option = true;
    if (parse->modes > 1)
        return wrong(
            parse, "--connect, --embedded, --no-offload and --no-cache exclude each other");
    if (!check_embedded(parse) || !check_names(parse))
        return false;
    if (options->session != NULL &&
        (options->mode == DECODE_NO_OFFLOAD || options->mode == DECODE_NO_CACHE))
        return wrong(parse, "--session needs a daemon (--connect) or --embedded");
    if (options->tokenize && options->perplexity)
        return wrong(parse, "give --tokenize or --perplexity, not both");
    if (options->special && !options->tokenize)
        return wrong(parse, "--special goes with --tokenize");
    if ((options->system != NULL || options->chat_template != NULL) && !options->chat)
        return wrong(parse, "--system and --chat-template go with --chat");
    if (!parse->has_max_tokens)
        options->max_tokens = options->chat ? DEFAULT_CHAT_MAX_TOKENS : DEFAULT_MAX_TOKENS;
    return true;
}

bool decode_options_parse(int argc, char **argv, struct decode_options *options, int *status) {
    *options = (struct decode_options){
        .kv_dtype = KVL_KV_F16,
        .device = "cpu",
        .embedded =
            {
                .device = "cpu",
                .device_bytes = KVL_SERVICE_DEVICE_BYTES_DEFAULT,
                .host_bytes = KVL_SERVICE_HOST_BYTES_DEFAULT,
                .disk_bytes = KVL_SERVICE_DISK_BYTES_DEFAULT,
                .holder_name = "kvloft-decode",
            },
    };
    decode_sampling_init(&options->sampling);
    struct parse parse = {.options = options};
    *status = DECODE_USAGE;
    for (int id = 0, index = 0; (id = getopt_long(argc, argv, "", long_options, &index)) != -1;) {
        if (id == OPTION_HELP || id == OPTION_VERSION) {
            fputs(id == OPTION_HELP ? usage_text : "kvloft-decode " KVL_VERSION "\n", stdout);
            *status = DECODE_DONE;
            return false;
        }
        if (id == '?' || !take(&parse, id, long_options[index].name, optarg))
            return false;
    }
    if (optind < argc) {
        (void)wrong(&parse, "'%s' is no option; see --help", argv[optind]);
        return false;
    }
    if (!check(&parse))
        return false;
    *status = DECODE_DONE;
    return true;
}
