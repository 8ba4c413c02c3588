/* replay.c - runs a libFuzzer entry without libFuzzer: each file of a corpus folder as it is, then
 * changed in seeded ways (bits, bytes, little-endian integers set to extremes, cuts).
 *
 *   NAME CORPUS_FOLDER CHANGES_PER_FILE [SEED]
 *
 * Prints its seed; the file and change that fail are on the last line before a crash. */
#include <dirent.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t data_bytes);

struct input {
    uint8_t *bytes;
    size_t count_bytes;
};

static uint64_t random_state;

static uint64_t next_random(void) { /* splitmix64 */
    uint64_t z = random_state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return z ^ (z >> 31);
}

static struct input read_input(const char *path) {
    struct input input = {0};
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END) != 0) {
        perror(path);
        exit(1);
    }
    input.count_bytes = (size_t)ftell(file);
    rewind(file);
    input.bytes = malloc(input.count_bytes + 1);
    if (!input.bytes || fread(input.bytes, 1, input.count_bytes, file) != input.count_bytes) {
        perror(path);
        exit(1);
    }
    fclose(file);
    return input;
}

static void set_integer(struct input *input) {
    static const uint64_t extremes[] = {0, 1, 7, 255, 65535, UINT32_MAX, INT64_MAX, UINT64_MAX,
        UINT64_MAX - 31, UINT64_C(1) << 31, UINT64_C(1) << 44, UINT64_C(1) << 60};
    uint64_t value = extremes[next_random() % (sizeof extremes / sizeof *extremes)];
    size_t bytes = next_random() % 2 ? 4 : 8;
    if (input->count_bytes >= bytes) {
        memcpy(input->bytes + next_random() % (input->count_bytes - bytes + 1), &value, bytes);
    }
}

static void change(struct input *input) {
    uint64_t times = 1 + next_random() % 4;
    for (uint64_t i = 0; i < times && input->count_bytes > 0; i++) {
        size_t at = next_random() % input->count_bytes;
        switch (next_random() % 8) {
        case 0:
            input->count_bytes = at;
            break;
        case 1:
        case 2:
            set_integer(input);
            break;
        case 3:
            input->bytes[at] = (uint8_t)next_random();
            break;
        default:
            input->bytes[at] ^= (uint8_t)(1u << next_random() % 8);
        }
    }
}

/* Calls with a block exactly as long, so that a sanitizer sees one byte too far. */
static void call(const struct input *input) {
    uint8_t *exact = malloc(input->count_bytes > 0 ? input->count_bytes : 1);
    if (!exact) {
        exit(1);
    }
    memcpy(exact, input->bytes, input->count_bytes);
    LLVMFuzzerTestOneInput(exact, input->count_bytes);
    free(exact);
}

static void replay(const char *path, unsigned long changes) {
    struct input original = read_input(path);
    struct input changed = read_input(path);
    call(&original);
    for (unsigned long i = 0; i < changes; i++) {
        printf("\r%s change %lu", path, i);
        fflush(stdout);
        changed.count_bytes = original.count_bytes;
        memcpy(changed.bytes, original.bytes, original.count_bytes);
        change(&changed);
        call(&changed);
    }
    printf("\n");
    free(original.bytes);
    free(changed.bytes);
}

int main(int argc, char **argv) {
    struct dirent **entries;
    if (argc < 3) {
        fprintf(stderr, "usage: %s CORPUS_FOLDER CHANGES_PER_FILE [SEED]\n", argv[0]);
        return 2;
    }
    int count = scandir(argv[1], &entries, NULL, alphasort);
    int replayed = 0;
    random_state = argc > 3 ? strtoull(argv[3], NULL, 0) : 1;
    printf("seed %" PRIu64 "\n", random_state);
    for (int i = 0; i < count; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", argv[1], entries[i]->d_name);
        if (entries[i]->d_name[0] != '.') {
            replay(path, strtoul(argv[2], NULL, 0));
            replayed++;
        }
        free(entries[i]);
    }
    if (count >= 0) {
        free(entries);
    }
    if (replayed == 0) {
        fprintf(stderr, "%s: no corpus\n", argv[1]);
        return 1;
    }
    return 0;
}
