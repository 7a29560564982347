#!/usr/bin/env bash
# Proves the packages that packaging/ makes of a static binary, its argument: the service of systemd, the Debian package, the
# image. They are installed and started, in a root of their own over this machine's and a network of their own: nothing here
# changes, but that tools which are missing are installed. Needs root on Debian. One for aarch64 is started under qemu.
set -euo pipefail
[ $# = 1 ] && [ -x "$1" ] || { echo "usage: tests/packaging/run.sh BINARY" >&2; exit 2; }
binary=$(realpath "$1")
here=$(cd "$(dirname "$0")" && pwd)
packaging=$(realpath "$here/../../packaging")
check=$here/check.py
step() { printf -- '-- %s\n' "$*"; }

# The machine that it is for, from the head of the ELF file.
case $(od -An -t x1 -j 18 -N 2 "$binary" | tr -d ' ') in
3e00) architecture=amd64 machine=x86_64 ;;
b700) architecture=arm64 machine=aarch64 ;;
*) echo "$binary is for another machine" >&2; exit 2 ;;
esac
emulator=
[ "$(uname -m)" = "$machine" ] || emulator=/usr/bin/qemu-$machine-static

if [ -z "${DOORSTEP_PACKAGING_ROOT:-}" ]; then
    missing=
    for tool in "lintian lintian" "skopeo skopeo" "strace strace" "systemd-analyze systemd" "ip iproute2" "readelf binutils" \
        "adduser adduser" ${emulator:+"${emulator##*/} qemu-user-static"}; do
        command -v "${tool% *}" > /dev/null || missing="$missing ${tool#* }"
    done
    if [ -n "$missing" ]; then
        apt-get update -qq
        # shellcheck disable=SC2086 # several words
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing > /dev/null
    fi
    folder=$(mktemp -d)
    trap 'rmdir "$folder"' EXIT
    DOORSTEP_PACKAGING_ROOT=$folder unshare --mount --net -- "$0" "$binary"
    exit
fi

step "the binary is static, and serves"
# Position-independent ones name an interpreter only if they need one.
if readelf -lW "$binary" | grep -q INTERP; then echo "$binary needs an interpreter" >&2; exit 1; fi
if readelf -dW "$binary" | grep -q NEEDED; then echo "$binary needs libraries" >&2; exit 1; fi
ip link set lo up
work=$DOORSTEP_PACKAGING_ROOT
mount -t tmpfs tmpfs "$work"
mkdir "$work"/{upper,work,root,data}
# shellcheck disable=SC2086 # no word, or one
"$check" answers $emulator "$binary" serve --data "$work/data/folder"

step "the Debian package"
package=$("$packaging/deb.sh" "$binary" "$architecture" "$work/deb")
again=$("$packaging/deb.sh" "$binary" "$architecture" "$work/deb-again")
cmp "$package" "$again"
# Not for Debian's archive, whose packages are made from their sources and have a manual page for each command
# and somebody's address. A program that is static and can be loaded at any address is taken for a library.
lintian --allow-root --fail-on error,warning --suppress-tags \
    bogus-mail-host,bogus-mail-host-in-debian-changelog,embedded-library,initial-upload-closes-no-bugs,no-manual-page,shared-library-lacks-prerequisites,statically-linked-binary \
    "$package"
root=$work/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
# Within: the file systems are those of the root, /tmp is where the package is.
mkdir "$root/run/packages"
cp "$package" "$root/run/packages/doorstep.deb"
chroot "$root" dpkg --add-architecture "$architecture"
install_it() { chroot "$root" dpkg --force-confold --install /run/packages/doorstep.deb; }
install_it | grep -q "Put the name of your server into /etc/doorstep/doorstep.toml"
chroot "$root" getent passwd doorstep | grep -q ':/var/lib/doorstep:/usr/sbin/nologin$'
[ "$(chroot "$root" stat -c '%U:%G %a' /etc/doorstep/doorstep.toml)" = "root:doorstep 640" ]
printf 'name = "example.org"\nlisten = [":80"]\n' > "$root/etc/doorstep/doorstep.toml"
install_it > /dev/null
grep -q '^name = "example.org"$' "$root/etc/doorstep/doorstep.toml"
[ "$(chroot "$root" stat -c '%U:%G %a' /etc/doorstep/doorstep.toml)" = "root:doorstep 640" ]

step "the service of systemd"
unit=usr/lib/systemd/system/doorstep.service
said=$(chroot "$root" systemd-analyze verify --man=no "/$unit" 2>&1)
[ -z "$said" ] || { echo "$said"; exit 1; }
# In tenths, from 0 (locked up) to 100: what serves the network at ports below 1024 is hardly less than 17.
chroot "$root" systemd-analyze security --no-pager --offline=true --threshold=20 "/$unit" | tail -n 1
command=$(sed -n 's/^ExecStart=//p' "$root/$unit")
# As systemd does: the folder of StateDirectory, the user, no power but that to bind port 80.
chroot "$root" install -d -o doorstep -g doorstep -m 0700 /var/lib/doorstep
only="-all,+net_bind_service"
as_service="chroot $root setpriv --reuid doorstep --regid doorstep --init-groups --no-new-privs \
    --inh-caps $only --ambient-caps $only --bounding-set $only"
trace=
if [ -z "$emulator" ]; then
    trace="strace -D -f -o /var/lib/doorstep/trace"
fi
# shellcheck disable=SC2086 # words
"$check" answers --port 80 \
    --beside "chroot $root $emulator /usr/bin/doorstep user list --data /var/lib/doorstep" \
    --beside "chroot $root $emulator /usr/bin/doorstep backup --data /var/lib/doorstep /var/lib/doorstep/backup.tar" \
    $as_service $trace $emulator $command
if [ -n "$trace" ]; then
    "$check" calls "$root/var/lib/doorstep/trace" "$root/$unit"
fi

step "the package goes, and leaves what nobody can make again"
chroot "$root" dpkg --remove doorstep > /dev/null
[ ! -e "$root/usr/bin/doorstep" ] && [ -e "$root/etc/doorstep/doorstep.toml" ]
chroot "$root" dpkg --purge doorstep | grep -q "/var/lib/doorstep stays"
[ ! -e "$root/etc/doorstep/doorstep.toml" ] && [ -e "$root/var/lib/doorstep/doorstep.db" ]

step "the image"
"$packaging/image.py" "$binary" "$architecture" "$work/image.tar"
"$packaging/image.py" "$binary" "$architecture" "$work/image-again.tar"
cmp "$work/image.tar" "$work/image-again.tar"
# Both ways to read it; copying proves every digest.
for form in oci-archive docker-archive; do
    skopeo copy --quiet --insecure-policy "$form:$work/image.tar" "dir:$work/$form"
    [ "$(skopeo inspect "dir:$work/$form" | grep -c "\"$architecture\"")" = 1 ]
done
mkdir "$work/image"
read -r user entry < <("$check" image "$work/image.tar" "$architecture" "$work/image")
if [ -n "$emulator" ]; then cp "$emulator" "$work/image/root/emulator"; fi
# shellcheck disable=SC2086 # words
"$check" answers --port 8008 chroot --userspec="$user" "$work/image/root" ${emulator:+/emulator} $entry --name example.org
[ -e "$work/image/root/data/doorstep.db" ]
