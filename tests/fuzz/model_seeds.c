/* model_seeds.c - writes the corpus of model_fuzz: a small model of each architecture.
 *
 *   model_seeds FOLDER */
#include <stdio.h>
#include <sys/stat.h>

#include "tiny_model.h"

static int write_seed(const char *folder, const char *architecture) {
    struct tiny_shape shape = tiny_shape_default();
    struct gguf_writer writer;
    char path[4096], key[64];
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
    snprintf(path, sizeof path, "%s/%s.gguf", folder, architecture);
    const bool saved = gguf_writer_save(&writer, path);
    gguf_writer_deinit(&writer);
    if (!saved) {
        perror(path);
    }
    return saved ? 0 : 1;
}

int main(int argc, char **argv) {
    static const char *const architectures[] = {"llama", "qwen2", "qwen3", "gemma2", "gemma3"};
    if (argc != 2) {
        fprintf(stderr, "usage: model_seeds FOLDER\n");
        return 2;
    }
    (void)mkdir(argv[1], 0755);
    for (size_t i = 0; i < sizeof architectures / sizeof architectures[0]; i++) {
        if (write_seed(argv[1], architectures[i]) != 0) {
            return 1;
        }
    }
    return 0;
}
