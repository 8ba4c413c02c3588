#!/usr/bin/env bash
# systemd_units_test.sh BUILD KVLOFTD: installs the units below a scratch folder and lets
# systemd-analyze look for mistakes, and for what the sandbox leaves open.
set -euo pipefail
command -v systemd-analyze >/dev/null || { echo "skipped: no systemd-analyze"; exit 77; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cmake -DCMAKE_INSTALL_PREFIX="$folder" -P "$1/packaging/cmake_install.cmake" >/dev/null
cp "$folder/lib/systemd/system/kvloftd@.service" "$folder/kvloftd@alice.service"
cp "$folder/lib/systemd/system/kvloftd.service" "$folder/kvloftd.service"
python3 -m json.tool "$folder/share/kvloft/kvloftd.json" >/dev/null
for unit in kvloftd.service kvloftd@alice.service; do
  # verify wants the program where the unit says it is
  sed -i "s|^ExecStart=[^ ]*|ExecStart=$2|" "$folder/$unit"
  said=$(systemd-analyze verify --man=no "$folder/$unit" 2>&1 | grep -F "$unit" || true)
  [ -z "$said" ] || { echo "$said"; exit 1; }
  # exposure in tenths: 0 is closed, 100 open; here both are below 10
  systemd-analyze security --offline=yes --threshold=15 "$folder/$unit" >"$folder/security" ||
    { cat "$folder/security"; exit 1; }
  tail -1 "$folder/security"
done
