#!/usr/bin/env bash
# systemd_units_test.sh BUILD KVLOFTD: installs the units below a scratch folder, looks that they name
# what is installed there, and lets systemd-analyze look for mistakes, and for what the sandbox leaves
# open.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# install PREFIX: what is installed stands below $folder/root then.
install() {
  rm -rf "$folder/root"
  DESTDIR="$folder/root" cmake -DCMAKE_INSTALL_PREFIX="$1" -P "$BUILD/packaging/cmake_install.cmake" \
    >/dev/null
}

# names PREFIX ETC: both units start PREFIX's program with the configuration in ETC.
names() {
  local unit
  install "$1"
  for unit in "kvloftd.service kvloftd" "kvloftd@.service %i"; do
    set -- "$1" "$2" $unit
    grep -qF "ExecStart=$1/bin/kvloftd --config $2/kvloft/$4.json " \
      "$folder/root$1/lib/systemd/system/$3" ||
      { echo "$3 does not fit the prefix $1:"; grep -H ExecStart "$folder/root$1/lib/systemd/system/$3"
        exit 1; }
  done
}

BUILD=$1
names /usr /etc
names /usr/local /usr/local/etc
names /opt/kvloft /etc/opt/kvloft
names "$folder/own" "$folder/own/etc"

python3 -m json.tool "$folder/root$folder/own/share/kvloft/kvloftd.json" >/dev/null
command -v systemd-analyze >/dev/null || { echo "skipped the rest: no systemd-analyze"; exit 77; }
units="$folder/root$folder/own/lib/systemd/system"
cp "$units/kvloftd@.service" "$folder/kvloftd@alice.service"
cp "$units/kvloftd.service" "$folder/kvloftd.service"
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
