#!/usr/bin/env bash
# Makes the Debian package of a static binary: `packaging/deb.sh BINARY amd64|arm64 FOLDER` writes FOLDER/doorstep_….deb and
# prints its path. Needs dpkg-deb. What is in it is the same whoever makes it from the same commit.
set -euo pipefail
[ $# = 3 ] || { echo "usage: packaging/deb.sh BINARY amd64|arm64 FOLDER" >&2; exit 2; }
binary=$(realpath "$1")
architecture=$2
folder=$(realpath -m "$3")
here=$(cd "$(dirname "$0")" && pwd)
top=$here/..
version=$(sed -n '/^version = /{s/.*"\(.*\)"/\1-1/p;q}' "$top/Cargo.toml")
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$top" log -1 --format=%ct 2> /dev/null || stat -c %Y "$top/CHANGELOG.md")}

tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
chmod 0755 "$tree"
umask 022
documents=$tree/usr/share/doc/doorstep

install -D -m 0755 "$binary" "$tree/usr/bin/doorstep"
install -D -m 0644 "$here/doorstep.service" "$tree/usr/lib/systemd/system/doorstep.service"
install -D -m 0644 "$here/doorstep.toml" "$tree/etc/doorstep/doorstep.toml"
install -D -m 0644 "$top/README.md" "$documents/README.md"
install -m 0644 "$here/debian/copyright" "$documents/copyright"
gzip -9n < "$top/CHANGELOG.md" > "$documents/changelog.gz"
# Debian's own form, which its tools read.
gzip -9n > "$documents/changelog.Debian.gz" << END
doorstep ($version) stable; urgency=medium

  * What is new is in changelog.gz.

 -- $(sed -n 's/^Maintainer: //p' "$here/debian/control")  $(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")
END

mkdir "$tree/DEBIAN"
size=$(du -k -s --apparent-size "$tree" | cut -f 1)
sed "s/@VERSION@/$version/; s/@ARCHITECTURE@/$architecture/; s/@SIZE@/$size/" "$here/debian/control" > "$tree/DEBIAN/control"
echo /etc/doorstep/doorstep.toml > "$tree/DEBIAN/conffiles"
(cd "$tree" && find usr -type f -print0 | sort -z | xargs -0 md5sum) > "$tree/DEBIAN/md5sums"
for script in postinst prerm postrm; do
    install -m 0755 "$here/debian/$script" "$tree/DEBIAN/$script"
done

mkdir -p "$folder"
package=$folder/doorstep_${version}_$architecture.deb
dpkg-deb --root-owner-group -Zxz --build "$tree" "$package" > /dev/null
echo "$package"
