/* size.h - numbers as people write them on a command line. Any thread. */
#ifndef KVL_SIZE_H
#define KVL_SIZE_H

#include <stdbool.h>
#include <stdint.h>

/* "4096", "512K", "1.5G": powers of 1024, suffix K, M, G or T, also with an "iB" or "B" behind it.
 * False for anything else, also for what does not fit. */
bool kvl_parse_size(const char *text, uint64_t *bytes);
/* Decimal digits only, at most `max`. */
bool kvl_parse_number(const char *text, uint64_t max, uint64_t *number);

#endif
