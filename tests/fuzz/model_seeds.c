/* model_seeds.c - writes the corpus of model_fuzz, a small model of each architecture, and to that
 * of gguf_fuzz a vocabulary with each pre-tokenizer.
 *
 *   model_seeds MODEL_FOLDER GGUF_FOLDER */
#include <stdio.h>
#include <sys/stat.h>

#include "tiny_model.h"
#include "tokenizer_vocab.h"

static int save(struct gguf_writer *writer, const char *folder, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.gguf", folder, name);
    const bool saved = gguf_writer_save(writer, path);
    gguf_writer_deinit(writer);
    if (!saved) {
        perror(path);
    }
    return saved ? 0 : 1;
}

static int write_model(const char *folder, const char *architecture) {
    struct tiny_shape shape = tiny_shape_default();
    struct gguf_writer writer;
    char key[64];
    shape.architecture = architecture;
    shape.width = shape.ffn_width = 32;
    shape.heads = 2;
    shape.kv_heads = 1;
    shape.vocab = 12;
    shape.type = 8; /* Q8_0 */
    tiny_model_write(&writer, &shape);
    snprintf(key, sizeof key, "%s.rope.scaling.type", architecture);
    gguf_add_string(&writer, key, architecture[0] == 'g' ? "linear" : "yarn");
    snprintf(key, sizeof key, "%s.rope.scaling.factor", architecture);
    gguf_add_f32(&writer, key, 4);
    return save(&writer, folder, architecture);
}

static int write_vocabulary(const char *folder, const char *pre) {
    struct gguf_writer writer;
    char name[64];
    snprintf(name, sizeof name, "bpe_%s", pre);
    gguf_writer_init(&writer);
    vocab_add_bpe_with(&writer, pre, NULL);
    return save(&writer, folder, name);
}

int main(int argc, char **argv) {
    static const char *const architectures[] = {
        "llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3"};
    static const char *const pre_tokenizers[] = {
        "smollm", "gpt-2", "llama-bpe", "qwen2", "tekken", "deepseek-llm", "default"};
    int failed = 0;
    if (argc != 3) {
        fprintf(stderr, "usage: model_seeds MODEL_FOLDER GGUF_FOLDER\n");
        return 2;
    }
    (void)mkdir(argv[1], 0755);
    (void)mkdir(argv[2], 0755);
    for (size_t i = 0; i < sizeof architectures / sizeof architectures[0]; i++) {
        failed |= write_model(argv[1], architectures[i]);
    }
    for (size_t i = 0; i < sizeof pre_tokenizers / sizeof pre_tokenizers[0]; i++) {
        failed |= write_vocabulary(argv[2], pre_tokenizers[i]);
    }
    return failed;
}
