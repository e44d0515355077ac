#!/usr/bin/env bash
# Does the runtime compute on 64-bit Arm what it computes here? Builds a bundle's CPU engine under qemu-user, tests it on
# its golden samples and classifies images. For correctness only: an emulator says nothing about speed, and nothing here
# ran on an Arm processor. With the demo's bundle it takes about a minute once all is downloaded (2 cores of an EPYC).
#
# Run: tools/arm_check.sh model.p4q [IMAGE...]
# On Debian or Ubuntu, x86_64, without root. ARM_FOLDER (default: build/arm) keeps what is downloaded: Debian's
# qemu-user-static, an arm64 Python of this release, and aarch64 wheels of the runtime's requirements (250 MB).
# ARM_CPU (default: max) is the processor that is emulated: `max`, or `cortex-a57`, which has no int8 dot products.
set -euo pipefail

(($#)) || { echo "usage: tools/arm_check.sh model.p4q [IMAGE...]" >&2; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${ARM_FOLDER:-$root/build/arm}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
system=$folder/system
packages=$folder/packages

fail() { echo "arm_check: $1" >&2; exit 3; }

# The system's own sources of packages, but for another architecture and with nothing installed.
apt_arm() {
  apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User=root \
    -o Dir::State="$folder/apt/state" -o Dir::State::status="$folder/apt/status" -o Dir::Cache="$folder/apt/cache" "$@"
}

command -v apt-get >/dev/null || fail "expected Debian or Ubuntu with apt-get. Run it in a container of one"

if ! qemu=$(command -v qemu-aarch64-static); then
  qemu=$folder/qemu/usr/bin/qemu-aarch64-static
  if [[ ! -x $qemu ]]; then
    mkdir -p "$folder/qemu"
    (cd "$folder/qemu" && apt-get -qq -o APT::Sandbox::User=root download qemu-user-static) ||
      fail "qemu-user-static cannot be downloaded. Run: apt-get update"
    dpkg -x "$folder"/qemu/qemu-user-static_*.deb "$folder/qemu"
    rm "$folder"/qemu/*.deb
  fi
fi

if [[ ! -e $system/usr/bin/python3 ]]; then
  mkdir -p "$folder"/apt/{state/lists/partial,cache/archives/partial} "$system"
  : >"$folder/apt/status"
  apt_arm update || fail "the list of arm64 packages cannot be downloaded"
  apt_arm install --yes --download-only --no-install-recommends python3 libstdc++6 || fail "no arm64 Python to download"
  for archive in "$folder"/apt/cache/archives/*.deb; do dpkg -x "$archive" "$system"; done
  rm -rf "$folder/apt"
fi

# Libraries look their processor up in files that qemu takes from this machine: they get those of an Arm Neoverse N1, or
# of the processor without the instructions that qemu would end them for.
features="fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
case ${ARM_CPU:-max} in
  max) part=0xd0c features="$features atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp i8mm" ;;
  cortex-a57) part=0xd07 ;;
  *) fail "expected ARM_CPU=max or cortex-a57, got $ARM_CPU" ;;
esac
mkdir -p "$system/proc" "$system/sys/devices/system/cpu"
echo 0 | tee "$system"/sys/devices/system/cpu/{possible,present} >/dev/null
cat >"$system/proc/cpuinfo" <<END
processor	: 0
BogoMIPS	: 100.00
Features	: $features
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x1
CPU part	: $part
CPU revision	: 1

END

version=$(basename "$(readlink "$system/usr/bin/python3")")
version=${version#python}

if [[ ! -d $packages/onnxruntime ]]; then
  python3 -m pip install --quiet --target "$packages" --only-binary=:all: --implementation cp --python-version "$version" \
    --platform manylinux2014_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 \
    --constraint "$root/tools/constraints.txt" numpy pillow safetensors msgspec onnxruntime onnx ||
    fail "no aarch64 wheels for Python $version to download"
fi

# The runtime itself, as it is now: it reads its own version where it is installed.
runtime=$folder/runtime
rm -rf "$runtime"
python3 -m pip install --quiet --no-deps --target "$runtime" "$root/runtime" || fail "the runtime cannot be built"

# What the runtime starts as processes of its own must be emulated too: they are started by this script's name.
python=$folder/python
printf '#!/bin/sh\nexec %q -cpu %q -L %q %q "$@"\n' "$qemu" "${ARM_CPU:-max}" "$system" "$system/usr/bin/python3" >"$python"
chmod +x "$python"
start='import sys; sys.executable = sys.argv.pop(1); from p4q_edge.runtime.cli.main import main; sys.exit(main())'
export PYTHONPATH=$packages:$runtime PYTHONDONTWRITEBYTECODE=1 P4Q_EDGE_CACHE=$folder/cache

p4q() { "$python" -c "$start" "$python" "$@"; }

bundle=$1
shift
engine=$folder/$(basename "${bundle%.p4q}").onnx
"$python" -c 'import numpy, onnxruntime, platform, sys
print(platform.machine(), "Python", sys.version.split()[0], "ONNX Runtime", onnxruntime.__version__, "NumPy", numpy.__version__)'
for profile in exact float; do
  echo "== $profile"
  p4q build "$bundle" --engine "$engine" --cpu-profile "$profile" --threads 1 --deadline 6000 --force
  p4q selftest "$engine" --threads 1
  if (($#)); then p4q classify "$engine" "$@" --threads 1; fi
done
