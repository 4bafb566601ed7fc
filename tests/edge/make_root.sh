#!/bin/sh
# A Python of another architecture that runs on this machine, without a board, chroot, binfmt or container:
#
#     tests/edge/make_root.sh WORK [SUITE] [ARCHITECTURE] [PACKAGE...]     defaults: bookworm arm64
#
#     WORK/root-SUITE-ARCHITECTURE   Debian's python3, venv and pip with the libraries that they need, and PACKAGEs,
#                                    unpacked, not installed
#     WORK/qemu                      a static qemu of Debian 13, for every architecture (Debian 12's 7.2 crashes in the interpreter)
#
# ARCHITECTURE is Debian's name: arm64 (64-bit Pi OS), armhf (32-bit) or amd64. Bookworm has Python 3.11, trixie 3.13. What
# is there already is left alone: remove it to have it made again. Environment: MIRROR (default
# http://deb.debian.org/debian), QEMU (a static qemu-user to take instead).
# stdout gets one line, the Python; what is being done goes to stderr. It can be used as on the machine itself:
#
#     pi=$(tests/edge/make_root.sh WORK); $pi -m venv WORK/pi; WORK/pi/bin/pip install numpy; QEMU_CPU=cortex-a72 WORK/pi/bin/python
#
# Why that works: usr/bin/python3.X of the root is a shell script that starts the emulator on the real one beside it, and
# tells it the name that it was called by. So a venv's link to it is that venv's Python, and whatever an emulated program
# starts by name (pip, the scripts that pip writes) comes back through the script. Files are the host's, except those that
# exist in the root. Programs other than the wrapped ones are the host's too: keep them out with PATH.
# Exit codes: 1 where it cannot be made here, with the reason; 2 wrong usage.
set -eu

die() { echo "make_root.sh: $*" >&2; exit 1; }
say() { echo "make_root.sh: $*" >&2; }

[ $# -ge 1 ] || { sed -n '2,24s/^# \{0,1\}//p' "$0" >&2; exit 2; }
suite=${2:-bookworm} architecture=${3:-arm64}
mirror=${MIRROR:-http://deb.debian.org/debian}
mkdir -p "$1" || die "cannot make the folder $1"
work=$(cd "$1" && pwd)
root=$work/root-$suite-$architecture
packages=python3-venv,python3-pip,libstdc++6
if [ $# -gt 3 ]; then
    shift 3
    packages=$packages,$(echo "$*" | tr ' ' ,)
fi

case $architecture in
    arm64) emulator=qemu-aarch64 cpus='cortex-a53 (Pi 3, Zero 2), cortex-a72 (Pi 4), cortex-a76 (Pi 5, int8 dot products)' ;;
    amd64) emulator=qemu-x86_64 cpus='Haswell (AVX2, no AVX-512)' ;;
    armhf) emulator=qemu-arm cpus='cortex-a7 (Pi 2), max' ;;
    *) die "architecture: found $architecture, expected arm64, armhf or amd64" ;;
esac
command -v mmdebstrap >/dev/null || die "mmdebstrap is missing: apt-get install mmdebstrap"

# unpack SUITE ARCHITECTURE PACKAGES FOLDER: all or nothing, so that what was interrupted is not taken for done.
unpack() {
    rm -rf "$4.partial"
    say "unpacking $3 of Debian $1 ($2) into $4"
    timeout "${LIMIT_S:-600}" mmdebstrap --quiet --variant=extract --architectures="$2" --include="$3" \
        --aptopt='Acquire::http::Timeout "20"' --aptopt='Acquire::Retries "2"' "$1" "$4.partial" "$mirror" >&2 ||
        die "mmdebstrap could not unpack $3 of $1 ($2) from $mirror (see above). Other archives: MIRROR=URL"
    # Links that Debian's alternatives system would make, were the packages installed: NumPy's linear algebra.
    for library in "$4.partial"/usr/lib/*/*/libblas.so.3 "$4.partial"/usr/lib/*/*/liblapack.so.3; do
        [ ! -e "$library" ] || (cd "$(dirname "$library")/.." && ln -sf "${library#"$PWD/"}" .)
    done
    # And those of Debian 13's base system: its programs look for their loader in /lib.
    for folder in lib lib64; do
        [ -e "$4.partial/$folder" ] || [ ! -d "$4.partial/usr/$folder" ] || ln -s "usr/$folder" "$4.partial/$folder"
    done
    chmod 755 "$4.partial"
}

# wrap PROGRAM, a path in the root: a script of its name that starts the emulator on it.
wrap() {
    program=$root.partial/$1
    mv "$program" "$program.elf"
    {
        echo '#!/bin/sh'
        # pip looks into the file of a 32-bit Python for how it passes floating-point numbers, and takes no wheels without
        # an answer. What the root has at the very path of a venv's Python is what emulated programs read there.
        [ "$architecture" != armhf ] || cat <<END
if [ -e "\${0%/*}/../pyvenv.cfg" ] && ! [ -e "$root\$0" ]; then
    /bin/mkdir -p "$root\${0%/*}" && /bin/ln "$root/$1.elf" "$root\$0"
fi
END
        echo "exec \"$qemu\" -L \"$root\" -0 \"\$0\" \"$root/$1.elf\" \"\$@\""
    } >"$program"
    chmod +x "$program"
}

qemu=${QEMU:-$work/qemu/usr/bin/$emulator}
if [ -z "${QEMU:-}" ] && [ ! -d "$work/qemu" ]; then
    unpack trixie "$(dpkg --print-architecture)" qemu-user "$work/qemu"
    mv "$work/qemu.partial" "$work/qemu"
fi
[ -x "$qemu" ] || die "no $emulator at $qemu"

if [ ! -d "$root" ]; then
    unpack "$suite" "$architecture" "$packages" "$root"
    for program in "$root.partial"/usr/bin/python3.[0-9]* "$root.partial"/usr/bin/espeak-ng; do
        [ ! -x "$program" ] || wrap "${program#"$root.partial/"}"
    done
    # Python 3.13 copies pip's wheel with its extended attributes, and qemu asks for those of the host's file of that name.
    sed -i "s|'WHEEL_PKG_DIR': '/usr/|'WHEEL_PKG_DIR': '$root/usr/|" "$root.partial"/usr/lib/python3*/_sysconfigdata_*.py
    mv "$root.partial" "$root"
fi

say "trying it"
found=$("$root/usr/bin/python3" -c 'import platform, venv
print(platform.machine(), platform.python_version())') || die "that Python does not run: $root/usr/bin/python3"
say "ready: $found. To choose a CPU set QEMU_CPU: $cpus"
echo "$root/usr/bin/python3"
