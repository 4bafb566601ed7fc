#!/bin/sh
# A Python of another architecture that runs on this machine, without a board, chroot, binfmt or container:
#
#     tests/edge/make_root.sh WORK [SUITE] [PYTHON] [ARCHITECTURE]     defaults: bookworm 3.11 arm64
#
#     WORK/ROOT        (root-SUITE-ARCHITECTURE) Debian's python3 with the libraries that it needs, unpacked, not installed
#     WORK/ROOT/wheels the runtime's packages for it: numpy, Pillow, click and a TensorFlow Lite interpreter
#     WORK/qemu        a static qemu of Debian 13, for every architecture (Debian 12's qemu 7.2 crashes in the interpreter)
#     WORK/source      captionlite, a link to the checkout that this script stands in
#
# ARCHITECTURE is Debian's name: arm64 (64-bit Pi OS), armhf (32-bit) or amd64. PYTHON is the version of SUITE's python3:
# bookworm 3.11, trixie 3.13. What is there already is left alone: remove it to have it made again. Environment: MIRROR
# (default http://deb.debian.org/debian), PIP (default "python3 -m pip"), QEMU (a static qemu-user to take instead).
# stdout gets one line, the command that starts the Python; what is being done goes to stderr.
set -eu

die() { echo "make_root.sh: $*" >&2; exit 1; }
say() { echo "make_root.sh: $*" >&2; }

[ $# -ge 1 ] && [ $# -le 4 ] || { sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2; }
suite=${2:-bookworm} python=${3:-3.11} architecture=${4:-arm64}
mirror=${MIRROR:-http://deb.debian.org/debian} pip=${PIP:-python3 -m pip}
repository=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1" || die "cannot make the folder $1"
work=$(cd "$1" && pwd)
root=$work/root-$suite-$architecture wheels=$work/root-$suite-$architecture/wheels

# Platform tags: pip takes those named and no others, so all that SUITE's glibc (bookworm 2.36) and newer can load.
case $architecture in
    arm64) emulator=qemu-aarch64 tags='manylinux2014_aarch64 manylinux_2_27_aarch64 manylinux_2_28_aarch64'
        cpus='cortex-a72 (Pi 4), cortex-a76 (Pi 5, int8 dot products)' ;;
    amd64) emulator=qemu-x86_64 tags='manylinux2014_x86_64 manylinux_2_27_x86_64 manylinux_2_28_x86_64'
        cpus='Haswell (AVX2, no AVX-512)' ;;
    armhf) emulator=qemu-arm tags='linux_armv7l manylinux2014_armv7l manylinux_2_34_armv7l'
        cpus='cortex-a7 (Pi 2), max' ;;
    *) die "architecture: found $architecture, expected arm64, armhf or amd64" ;;
esac
packages=python3,libstdc++6
requirements='ai-edge-litert numpy pillow click'
if [ "$architecture" = armhf ]; then
    [ "$python" = 3.11 ] || die "armhf: tflite-runtime, its only interpreter, ends with Python 3.11 (found $python); take bookworm 3.11"
    packages=$packages,python3-numpy,python3-pil  # PyPI has no 32-bit ARM wheels of these
    requirements='--no-deps tflite-runtime click'
fi

command -v mmdebstrap >/dev/null || die "mmdebstrap is missing: apt-get install mmdebstrap"
$pip --version >/dev/null 2>&1 || die "\`$pip\` does not run; name one that does with PIP='... -m pip'"

# unpack SUITE ARCHITECTURE PACKAGES FOLDER: all or nothing, so that what was interrupted is not taken for done.
unpack() {
    rm -rf "$4.partial"
    say "unpacking $3 of Debian $1 ($2) into $4"
    mmdebstrap --quiet --variant=extract --architectures="$2" --include="$3" "$1" "$4.partial" "$mirror" >&2 ||
        die "mmdebstrap could not unpack $3 of $1 ($2) from $mirror (see above). Other archives: MIRROR=URL"
    # Links that Debian's alternatives system would make, were the packages installed: NumPy's linear algebra.
    for library in "$4.partial"/usr/lib/*/*/libblas.so.3 "$4.partial"/usr/lib/*/*/liblapack.so.3; do
        [ ! -e "$library" ] || (cd "$(dirname "$library")/.." && ln -sf "${library#"$PWD/"}" .)
    done
    chmod 755 "$4.partial"
    mv "$4.partial" "$4"
}

[ -d "$root" ] || unpack "$suite" "$architecture" "$packages" "$root"
[ -x "$root/usr/bin/python$python" ] ||
    die "Debian $suite has $(cd "$root/usr/bin" && echo python3.*), not python$python: name that version as PYTHON"

if [ -z "${QEMU:-}" ]; then
    [ -d "$work/qemu" ] || unpack trixie "$(dpkg --print-architecture)" qemu-user "$work/qemu"
    QEMU=$work/qemu/usr/bin/$emulator
fi
[ -x "$QEMU" ] || die "no $emulator at $QEMU"

if [ ! -d "$wheels" ]; then
    rm -rf "$wheels.partial"
    say "wheels for Python $python ($architecture): $requirements"
    # shellcheck disable=SC2046,SC2086  # lists of words
    $pip install --quiet --target "$wheels.partial" --only-binary=:all: --implementation cp --python-version "$python" \
        $(printf -- '--platform %s ' $tags) $requirements >&2 ||
        die "pip found no wheels of $requirements for Python $python on $architecture (see above)"
    mv "$wheels.partial" "$wheels"
fi

mkdir -p "$work/source"
ln -sfn "$repository" "$work/source/captionlite"

command="env PYTHONPATH=$wheels:$work/source PYTHONDONTWRITEBYTECODE=1 $QEMU -L $root $root/usr/bin/python3"
say "trying it"
found=$($command -c 'import platform, captionlite.runtime.interpreter as i
print(platform.machine(), platform.python_version(), i.find_backend().name, i.find_backend().version)') ||
    die "that Python does not run: $command"
say "ready: $found. To choose a CPU put \`-cpu NAME\` after $emulator: $cpus"
echo "$command"
