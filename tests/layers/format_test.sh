#!/usr/bin/env bash
# Every C file is as clang-format 14 leaves it.
cd "$1" || exit 1
tool=$(command -v clang-format-14 || command -v clang-format) || { echo "skipped: no clang-format"; exit 77; }
"$tool" --version | grep -q 'version 14\.' || { echo "skipped: clang-format is not version 14"; exit 77; }
git ls-files '*.c' '*.h' '*.cu' | xargs -r "$tool" --dry-run --Werror
