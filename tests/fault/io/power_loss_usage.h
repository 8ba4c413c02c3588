/* power_loss_usage.h - what a disk tier's directory takes, and whether there is a stray file. */
#ifndef KVL_POWER_LOSS_USAGE_H
#define KVL_POWER_LOSS_USAGE_H

#include <stdint.h>

/* Bytes as du counts them, of what is below root/folder ("": all). stray gets the name of a file
 * that docs/disk.md does not know, if there is one. */
uint64_t power_usage(const char *root, const char *folder, char stray[64]);

#endif
