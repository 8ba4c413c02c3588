/* size.c - see size.h. */
#include "size.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

bool kvl_parse_number(const char *text, uint64_t max, uint64_t *number) {
    if (!isdigit((unsigned char)text[0]))
        return false;
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || *end != 0 || value > max)
        return false;
    *number = value;
    return true;
}

bool kvl_parse_size(const char *text, uint64_t *bytes) {
    static const char suffixes[] = "KMGT";
    if (!isdigit((unsigned char)text[0]) || strncmp(text, "0x", 2) == 0)
        return false;
    char *end = NULL;
    double value = strtod(text, &end);
    uint64_t unit = 1;
    const char *suffix = *end != 0 ? strchr(suffixes, toupper((unsigned char)*end)) : NULL;
    if (suffix != NULL) {
        unit = UINT64_C(1) << (10 * (suffix - suffixes + 1));
        ++end;
        if (strcmp(end, "iB") == 0 || strcmp(end, "B") == 0)
            end += strlen(end);
    }
    if (*end != 0)
        return false;
    if (unit == 1) /* whole bytes, exact beyond what a double holds */
        return kvl_parse_number(text, UINT64_MAX, bytes);
    double product = value * (double)unit;
    if (!isfinite(product) || product >= 0x1p63)
        return false;
    *bytes = (uint64_t)product;
    return true;
}
