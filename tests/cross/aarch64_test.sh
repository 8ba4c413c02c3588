#!/usr/bin/env bash
# aarch64_test.sh SOURCE_DIR BUILD_DIR: on another machine than a 64-bit ARM, core and engine compile
# for one without a warning, and their kernels and threads pass their unit tests under QEMU. Skipped
# (77) where the cross compiler or QEMU is not installed; scripts/test installs them.
set -euo pipefail
source_dir=$1
build_dir=$2
compiler=aarch64-linux-gnu-gcc
skip() { echo "skipped: $*"; exit 77; }
[ "$(uname -m)" != aarch64 ] || skip "this is a 64-bit ARM: the unit tests themselves run here"
command -v $compiler >/dev/null || skip "no $compiler (Debian: gcc-aarch64-linux-gnu)"
echo 'int main(void) { return 0; }' | $compiler -static -x c -o /dev/null - 2>/dev/null ||
  skip "no C library for $compiler (Debian: libc6-dev-arm64-cross)"
command -v qemu-aarch64 >/dev/null || skip "no qemu-aarch64 (Debian: qemu-user)"

mkdir -p "$build_dir"
cd "$source_dir"
flags=(-std=c17 -D_GNU_SOURCE -DKVL_VERSION='"cross"' -Wall -Wextra -Wshadow -Wstrict-prototypes
  -Wmissing-prototypes -Wpointer-arith -Wvla -Wundef -Werror -Icore -Iengine -Iipc/client)

# Headers of libraries: the same for all CPUs, but for what OpenSSL notes of a 64-bit one.
headers=$build_dir/headers
mkdir -p "$headers/of_cpu"
for name in pcre2.h jansson.h jansson_config.h xxhash.h xxh3.h openssl; do
  ln -sfn "/usr/include/$name" "$headers/$name"
done
ln -sfn "/usr/include/$(uname -m)-linux-gnu/openssl" "$headers/of_cpu/openssl"
printf '%s\n' core/*.c engine/*.c engine/cpu/*.c |
  xargs -P2 -n8 $compiler "${flags[@]}" -idirafter "$headers" -idirafter "$headers/of_cpu" \
    -fsyntax-only
echo "core and engine compile for aarch64"

sources=(core/kvl_err.c engine/backend.c engine/ggml_type.c engine/huge_memory.c engine/quant.c
  engine/cpu/kernels.c engine/cpu/kernels_neon.c engine/cpu/kernels_portable.c engine/cpu/pack.c
  engine/cpu/pool.c tests/unit/engine/gguf_writer.c tests/unit/engine/tiny_model.c
  tests/unit/engine/kernels_test.c tests/unit/engine/pool_test.c)
ccache=$(command -v ccache || true)
compile() {
  $ccache $compiler "${flags[@]}" -Itests/cross -Itests/unit/engine -O1 -ffp-contract=off \
    -c "$1" -o "$build_dir/$(basename "$1" .c).o"
}
for source in "${sources[@]}"; do
  compile "$source"
done
cd "$build_dir"
library=(kvl_err.o backend.o ggml_type.o huge_memory.o quant.o kernels.o kernels_neon.o kernels_portable.o
  pack.o pool.o gguf_writer.o tiny_model.o)
for test in kernels_test pool_test; do
  $compiler -static "$test.o" "${library[@]}" -pthread -lm -o "$test"
  qemu-aarch64 "./$test"
done
