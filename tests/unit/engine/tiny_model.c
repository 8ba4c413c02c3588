/* tiny_model.c - see tiny_model.h. */
#include "tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "quant.h"

enum { F32 = KVL_GGML_F32, MAX_FILES = 64 };
static const double EPSILON = 1e-5, ROPE_BASE = 10000;

static void *allocate(uint64_t bytes) {
    void *memory = calloc(1, bytes);
    if (memory == NULL) {
        abort();
    }
    return memory;
}

/* splitmix64 */
static uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

float tiny_random(uint64_t *state) {
    return (float)(next_random(state) >> 40) * 0x1p-23f - 1.0f;
}

/* ---- encoded weights ---- */

/* An f16 near the value, cut towards zero. */
static void put_half(uint8_t *bytes, double value) {
    int exponent;
    const double mantissa = frexp(fabs(value), &exponent); /* [0.5, 1) */
    unsigned half = (unsigned)(fabs(value) * 0x1p24);      /* in units of the smallest */
    if (exponent > -14) {
        half = (unsigned)(exponent + 14) << 10 | ((unsigned)(mantissa * 2048) & 1023);
    }
    half |= value < 0 ? 0x8000u : 0;
    bytes[0] = (uint8_t)half;
    bytes[1] = (uint8_t)(half >> 8);
}

/* Where a type's f16 scales stand in a block; factors from the magnitude of the weights to them,
 * for random codes and scales. */
struct encoding {
    uint32_t type;
    int d_at, m_at; /* -1: none */
    double d, m;
};

static const struct encoding encodings[] = {
    {KVL_GGML_Q4_0, 0, -1, 1.0 / 8, 0},
    {KVL_GGML_Q4_1, 0, 2, 1 / 7.5, -0.97},
    {KVL_GGML_Q5_0, 0, -1, 1.0 / 16, 0},
    {KVL_GGML_Q5_1, 0, 2, 1 / 15.5, -0.97},
    {KVL_GGML_Q8_0, 0, -1, 1.0 / 127, 0},
    {KVL_GGML_Q2_K, 80, 82, 2.0 / 45, 3.0 / 45},
    {KVL_GGML_Q3_K, 108, -1, 1.0 / 64, 0},
    {KVL_GGML_Q4_K, 0, 2, 2.0 / 945, 15.0 / 945},
    {KVL_GGML_Q5_K, 0, 2, 2.0 / 1953, 31.0 / 1953},
    {KVL_GGML_Q6_K, 208, -1, 1.0 / 2048, 0},
    {KVL_GGML_IQ4_NL, 0, -1, 1.0 / 127, 0},
    {KVL_GGML_IQ4_XS, 0, -1, 1.0 / 2032, 0},
};

static const struct encoding *encoding_of(uint32_t type) {
    for (size_t i = 0; i < sizeof encodings / sizeof encodings[0]; i++) {
        if (encodings[i].type == type) {
            return &encodings[i];
        }
    }
    abort();
}

static void fill_block(const struct encoding *encoding, uint32_t bytes, double magnitude,
    uint64_t *seed, uint8_t *block) {
    const double scale = magnitude * (1.5 + tiny_random(seed)) / 2;
    for (uint32_t b = 0; b < bytes; b++) {
        block[b] = (uint8_t)next_random(seed);
    }
    put_half(block + encoding->d_at, scale * encoding->d);
    if (encoding->m_at >= 0) {
        put_half(block + encoding->m_at, scale * encoding->m);
    }
}

static void fill_plain(uint32_t type, float value, uint8_t *out) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (type == KVL_GGML_F32) {
        memcpy(out, &value, 4);
    } else if (type == KVL_GGML_BF16) {
        out[0] = (uint8_t)(bits >> 16);
        out[1] = (uint8_t)(bits >> 24);
    } else {
        put_half(out, value);
    }
}

uint8_t *tiny_weights(
    uint32_t type, uint64_t count, double magnitude, uint64_t *seed, uint64_t *bytes) {
    const struct kvl_ggml_layout *layout = kvl_ggml_layout(type);
    *bytes = count / layout->block_elements * layout->block_bytes;
    uint8_t *data = allocate(*bytes);
    for (uint64_t i = 0; i < count / layout->block_elements; i++) {
        uint8_t *block = data + i * layout->block_bytes;
        if (layout->block_elements == 1) {
            fill_plain(type, (float)magnitude * tiny_random(seed), block);
        } else {
            fill_block(encoding_of(type), layout->block_bytes, magnitude, seed, block);
        }
    }
    return data;
}

/* ---- the model ---- */

struct tiny_shape tiny_shape_default(void) {
    return (struct tiny_shape){.architecture = "llama",
        .layers = 2,
        .width = 96,
        .ffn_width = 160,
        .heads = 6,
        .kv_heads = 2,
        .k_dim = 16,
        .v_dim = 16,
        .rope_dims = 16,
        .vocab = 70,
        .type = F32,
        .embedding_type = F32,
        .tied = true,
        .seed = 1};
}

struct matrix {
    char name[48];
    uint32_t type;
    uint32_t rows, columns;
    uint8_t *data;
    uint64_t bytes;
    double *values; /* what data means */
};

enum { PER_LAYER = 16 };
enum { ATTN_NORM, Q, K, V, ATTN_OUT, FFN_NORM, GATE, UP, DOWN };
/* Only some architectures: */
enum { Q_BIAS = DOWN + 1, K_BIAS, V_BIAS, Q_NORM, K_NORM, ATTN_POST_NORM, FFN_POST_NORM };
enum { WINDOW = 70 };
static const double WINDOWED_ROPE_BASE = 300, ATTENTION_CAP = 6, LOGIT_CAP = 4;

struct tiny {
    struct matrix embedding, output_norm, output;
    struct matrix layers[8][PER_LAYER];
};

static void find_values(struct matrix *m) {
    const uint64_t count = (uint64_t)m->rows * m->columns;
    float *floats = allocate(count * sizeof *floats);
    m->values = allocate(count * sizeof *m->values);
    kvl_dequantize_row(m->type, m->data, count, floats);
    for (uint64_t i = 0; i < count; i++) {
        m->values[i] = floats[i];
    }
    free(floats);
}

static void fill(struct matrix *m, const char *name, uint32_t type, uint32_t rows, uint32_t columns,
    uint64_t *seed) {
    snprintf(m->name, sizeof m->name, "%s", name);
    m->type = type;
    m->rows = rows;
    m->columns = columns;
    m->data = tiny_weights(
        type, (uint64_t)rows * columns, rows == 1 ? 1.5 : 2.5 / sqrt(columns), seed, &m->bytes);
    find_values(m);
}

static bool is(const struct tiny_shape *s, const char *architecture) {
    return strcmp(s->architecture, architecture) == 0;
}

/* Windows, and norms behind attention and FFN; the first gemma has neither. */
static bool is_windowed(const struct tiny_shape *s) {
    return is(s, "gemma2") || is(s, "gemma3");
}

static bool is_gemma(const struct tiny_shape *s) {
    return is(s, "gemma") || is_windowed(s);
}

static bool has_tensor(const struct tiny_shape *s, int index) {
    return index <= DOWN || (index <= V_BIAS      ? is(s, "qwen2")
                                : index <= K_NORM ? is(s, "qwen3") || is(s, "gemma3")
                                                  : is_windowed(s));
}

static struct tiny *tiny_create(const struct tiny_shape *s) {
    static const char *const names[PER_LAYER] = {"attn_norm.weight", "attn_q.weight",
        "attn_k.weight", "attn_v.weight", "attn_output.weight", "ffn_norm.weight",
        "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight", "attn_q.bias", "attn_k.bias",
        "attn_v.bias", "attn_q_norm.weight", "attn_k_norm.weight", "post_attention_norm.weight",
        "post_ffw_norm.weight"};
    const uint32_t rows[PER_LAYER] = {1, s->heads * s->k_dim, s->kv_heads * s->k_dim,
        s->kv_heads * s->v_dim, s->width, 1, s->ffn_width, s->ffn_width, s->width, 1, 1, 1, 1, 1, 1,
        1};
    const uint32_t columns[PER_LAYER] = {s->width, s->width, s->width, s->width,
        s->heads * s->v_dim, s->width, s->width, s->width, s->ffn_width, s->heads * s->k_dim,
        s->kv_heads * s->k_dim, s->kv_heads * s->v_dim, s->k_dim, s->k_dim, s->width, s->width};
    struct tiny *tiny = allocate(sizeof *tiny);
    uint64_t seed = s->seed;
    fill(&tiny->embedding, "token_embd.weight", s->embedding_type, s->vocab, s->width, &seed);
    for (uint32_t l = 0; l < s->layers; l++) {
        for (int i = 0; i < PER_LAYER; i++) {
            char name[40];
            snprintf(name, sizeof name, "blk.%u.%s", l, names[i]);
            if (!has_tensor(s, i)) {
                continue;
            }
            fill(&tiny->layers[l][i], name, rows[i] == 1 ? F32 : s->type, rows[i], columns[i],
                &seed);
        }
    }
    fill(&tiny->output_norm, "output_norm.weight", F32, 1, s->width, &seed);
    if (!s->tied) {
        fill(&tiny->output, "output.weight", s->type, s->vocab, s->width, &seed);
    }
    return tiny;
}

static void matrix_free(struct matrix *m) {
    free(m->data);
    free(m->values);
}

static void tiny_free(struct tiny *tiny) {
    matrix_free(&tiny->embedding);
    matrix_free(&tiny->output_norm);
    matrix_free(&tiny->output);
    for (int l = 0; l < 8; l++) {
        for (int i = 0; i < PER_LAYER; i++) {
            matrix_free(&tiny->layers[l][i]);
        }
    }
    free(tiny);
}

static void add_matrix(struct gguf_writer *writer, const struct matrix *m) {
    const uint64_t dims[2] = {m->columns, m->rows};
    if (m->data != NULL) {
        gguf_add_tensor(writer, m->name, m->type, m->rows == 1 ? 1 : 2, dims, m->data, m->bytes);
    }
}

static void add_number(
    struct gguf_writer *writer, const struct tiny_shape *s, const char *name, uint32_t value) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", s->architecture, name);
    gguf_add_u32(writer, key, value);
}

static void add_real(
    struct gguf_writer *writer, const struct tiny_shape *s, const char *name, double value) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", s->architecture, name);
    gguf_add_f32(writer, key, (float)value);
}

void tiny_model_write(struct gguf_writer *writer, const struct tiny_shape *s) {
    gguf_writer_init(writer);
    gguf_add_string(writer, "general.architecture", s->architecture);
    add_number(writer, s, "block_count", s->layers);
    add_number(writer, s, "context_length", 4096);
    add_number(writer, s, "embedding_length", s->width);
    add_number(writer, s, "feed_forward_length", s->ffn_width);
    add_number(writer, s, "attention.head_count", s->heads);
    add_number(writer, s, "attention.head_count_kv", s->kv_heads);
    add_number(writer, s, "attention.key_length", s->k_dim);
    add_number(writer, s, "attention.value_length", s->v_dim);
    add_number(writer, s, "rope.dimension_count", s->rope_dims);
    add_real(writer, s, "rope.freq_base", ROPE_BASE);
    add_real(writer, s, "attention.layer_norm_rms_epsilon", EPSILON);
    if (is_windowed(s)) {
        add_number(writer, s, "attention.sliding_window", WINDOW);
        add_number(writer, s, "attention.sliding_window_pattern", 2);
    }
    if (is(s, "gemma3")) {
        add_real(writer, s, "rope.freq_base_swa", WINDOWED_ROPE_BASE);
    }
    if (is(s, "gemma2")) {
        add_real(writer, s, "attn_logit_softcapping", ATTENTION_CAP);
        add_real(writer, s, "final_logit_softcapping", LOGIT_CAP);
    }
    struct tiny *tiny = tiny_create(s);
    add_matrix(writer, &tiny->embedding);
    add_matrix(writer, &tiny->output_norm);
    add_matrix(writer, &tiny->output);
    for (uint32_t l = 0; l < s->layers; l++) {
        for (int i = 0; i < PER_LAYER; i++) {
            add_matrix(writer, &tiny->layers[l][i]);
        }
    }
    tiny_free(tiny);
}

/* ---- files, removed at exit ---- */

static char *files[MAX_FILES];
static int file_count;
static char folder[64];

static void remove_files(void) {
    for (int i = 0; i < file_count; i++) {
        (void)unlink(files[i]);
        free(files[i]);
    }
    (void)rmdir(folder);
}

char *tiny_save(struct gguf_writer *writer) {
    if (folder[0] == '\0') {
        snprintf(folder, sizeof folder, "/tmp/kvl-tiny-XXXXXX");
        if (mkdtemp(folder) == NULL || atexit(remove_files) != 0) {
            abort();
        }
    }
    char path[128];
    snprintf(path, sizeof path, "%s/%d.gguf", folder, file_count);
    if (file_count == MAX_FILES || !gguf_writer_save(writer, path)) {
        abort();
    }
    gguf_writer_deinit(writer);
    files[file_count++] = strdup(path);
    return strdup(path);
}

char *tiny_model_file(const struct tiny_shape *shape) {
    struct gguf_writer writer;
    tiny_model_write(&writer, shape);
    return tiny_save(&writer);
}

/* ---- the forward pass, one token at a time, all in double ---- */

static void multiply(const struct matrix *m, const double *x, double *y) {
    for (uint32_t row = 0; row < m->rows; row++) {
        double sum = 0;
        for (uint32_t k = 0; k < m->columns; k++) {
            sum += m->values[(uint64_t)row * m->columns + k] * x[k];
        }
        y[row] = sum;
    }
}

static void norm(const struct matrix *m, const double *x, double *y) {
    double squares = 0;
    for (uint32_t i = 0; i < m->columns; i++) {
        squares += x[i] * x[i];
    }
    for (uint32_t i = 0; i < m->columns; i++) {
        y[i] = x[i] / sqrt(squares / m->columns + (float)EPSILON) * m->values[i];
    }
}

static void turn(double *head, const struct tiny_shape *s, uint32_t layer, uint32_t position) {
    const double base = is(s, "gemma3") && layer % 2 == 0 ? WINDOWED_ROPE_BASE : ROPE_BASE;
    const uint32_t pairs = s->rope_dims / 2;
    for (uint32_t i = 0; i < pairs; i++) {
        const double theta = position * pow(base, -(double)i / pairs);
        double *first = head + (is(s, "llama") ? 2 * i : i);
        double *second = is(s, "llama") ? first + 1 : first + pairs;
        const double a = *first, b = *second;
        *first = a * cos(theta) - b * sin(theta);
        *second = a * sin(theta) + b * cos(theta);
    }
}

/* heads of q or k after their product; bias and gain: those of the architecture */
static void finish(const struct tiny_shape *s, double *x, uint32_t heads, const struct matrix *bias,
    const struct matrix *gain, uint32_t layer, uint32_t position) {
    for (uint32_t i = 0; i < heads * s->k_dim && bias->values != NULL; i++) {
        x[i] += bias->values[i];
    }
    for (uint32_t h = 0; h < heads; h++, x += s->k_dim) {
        if (gain->values != NULL) {
            norm(gain, x, x);
        }
        turn(x, s, layer, position);
    }
}

/* keys and values: [position][kv_heads][dim] of one layer; positions below `first` are not seen */
static void attend(const struct tiny_shape *s, const double *q, const double *keys,
    const double *values, uint32_t first, uint32_t positions, double *out) {
    double *p = allocate(positions * sizeof *p);
    for (uint32_t head = 0; head < s->heads; head++) {
        const uint32_t kv = head / (s->heads / s->kv_heads);
        double max = -INFINITY, sum = 0;
        for (uint32_t t = 0; t < positions; t++) {
            p[t] = 0;
            for (uint32_t c = 0; c < s->k_dim; c++) {
                p[t] += q[head * s->k_dim + c] * keys[(t * s->kv_heads + kv) * s->k_dim + c];
            }
            p[t] /= sqrt(s->k_dim);
            p[t] = is(s, "gemma2") ? ATTENTION_CAP * tanh(p[t] / ATTENTION_CAP) : p[t];
            p[t] = t < first ? -INFINITY : p[t];
            max = fmax(max, p[t]);
        }
        for (uint32_t t = 0; t < positions; t++) {
            p[t] = exp(p[t] - max);
            sum += p[t];
        }
        for (uint32_t c = 0; c < s->v_dim; c++) {
            double *o = &out[head * s->v_dim + c];
            *o = 0;
            for (uint32_t t = 0; t < positions; t++) {
                *o += p[t] / sum * values[(t * s->kv_heads + kv) * s->v_dim + c];
            }
        }
    }
    free(p);
}

static double activate(const struct tiny_shape *s, double x) {
    return is_gemma(s) ? 0.5 * x * (1 + tanh(sqrt(2 / acos(-1)) * (x + 0.044715 * x * x * x)))
                       : x / (1 + exp(-x));
}

/* x += y, after its norm where the model has one */
static void join(const struct tiny_shape *s, const struct matrix *gain, double *y, double *x) {
    if (gain->values != NULL) {
        norm(gain, y, y);
    }
    for (uint32_t i = 0; i < s->width; i++) {
        x[i] += y[i];
    }
}

void tiny_model_reference(
    const struct tiny_shape *s, const uint32_t *tokens, uint32_t count, double *logits) {
    struct tiny *tiny = tiny_create(s);
    const uint32_t k_floats = s->kv_heads * s->k_dim, v_floats = s->kv_heads * s->v_dim;
    double *keys = allocate(sizeof(double) * s->layers * count * k_floats);
    double *values = allocate(sizeof(double) * s->layers * count * v_floats);
    double *x = allocate(sizeof(double) * s->width), *n = allocate(sizeof(double) * s->width);
    double *q = allocate(sizeof(double) * s->heads * s->k_dim);
    double *attended = allocate(sizeof(double) * s->heads * s->v_dim);
    double *y = allocate(sizeof(double) * s->width);
    double *gate = allocate(sizeof(double) * s->ffn_width);
    double *up = allocate(sizeof(double) * s->ffn_width);
    for (uint32_t t = 0; t < count; t++) {
        for (uint32_t i = 0; i < s->width; i++) {
            x[i] = tiny->embedding.values[(uint64_t)tokens[t] * s->width + i] *
                   (is_gemma(s) ? sqrt(s->width) : 1);
        }
        for (uint32_t l = 0; l < s->layers; l++) {
            const struct matrix *m = tiny->layers[l];
            double *k = keys + ((size_t)l * count + t) * k_floats;
            norm(&m[ATTN_NORM], x, n);
            multiply(&m[Q], n, q);
            multiply(&m[K], n, k);
            double *v = values + ((size_t)l * count + t) * v_floats;
            multiply(&m[V], n, v);
            for (uint32_t i = 0; i < v_floats && m[V_BIAS].values != NULL; i++) {
                v[i] += m[V_BIAS].values[i];
            }
            finish(s, q, s->heads, &m[Q_BIAS], &m[Q_NORM], l, t);
            finish(s, k, s->kv_heads, &m[K_BIAS], &m[K_NORM], l, t);
            attend(s, q, keys + (size_t)l * count * k_floats, values + (size_t)l * count * v_floats,
                is_windowed(s) && l % 2 == 0 && t >= WINDOW ? t + 1 - WINDOW : 0, t + 1, attended);
            multiply(&m[ATTN_OUT], attended, y);
            join(s, &m[ATTN_POST_NORM], y, x);
            norm(&m[FFN_NORM], x, n);
            multiply(&m[GATE], n, gate);
            multiply(&m[UP], n, up);
            for (uint32_t i = 0; i < s->ffn_width; i++) {
                gate[i] = activate(s, gate[i]) * up[i];
            }
            multiply(&m[DOWN], gate, y);
            join(s, &m[FFN_POST_NORM], y, x);
        }
        norm(&tiny->output_norm, x, n);
        double *row = logits + (size_t)t * s->vocab;
        multiply(s->tied ? &tiny->embedding : &tiny->output, n, row);
        for (uint32_t i = 0; i < s->vocab && is(s, "gemma2"); i++) {
            row[i] = LOGIT_CAP * tanh(row[i] / LOGIT_CAP);
        }
    }
    double *const all[] = {keys, values, x, n, q, attended, y, gate, up};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        free(all[i]);
    }
    tiny_free(tiny);
}
