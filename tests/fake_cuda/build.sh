#!/usr/bin/env bash
# Builds the stand-ins for CUDA's libraries; does nothing where they are up to date.
# usage: tests/fake_cuda/build.sh [DIRECTORY]   (default: target/fake-cuda)
# Then: LD_LIBRARY_PATH=target/fake-cuda duogpt prune --backend cuda ...
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
emulator=$here/../emulator
directory=${1:-$here/../../target/fake-cuda}
compiler=${CXX:-g++}
mkdir -p "$directory"
exec 9> "$directory/lock"
flock 9

sum=$(cat "$here"/*.cpp "$here"/*.h "$here/build.sh" "$emulator"/{prelude.h,runtime.cpp,flags.txt} | sha256sum | cut -c 1-16)
[ "$(cat "$directory/built" 2> /dev/null)" != "$sum" ] || exit 0
rm -f "$directory/built"

# As tests/emulator/mod.rs compiles kernels and their runtime.
read -r common < <(sed -n 1p "$emulator/flags.txt")
read -r runtime < <(sed -n 2p "$emulator/flags.txt")
read -r watched < <(sed -n 3p "$emulator/flags.txt")
cp "$emulator/prelude.h" "$directory/"
$compiler $common $runtime -c -o "$directory/runtime.o" "$emulator/runtime.cpp"

$compiler -std=c++17 -O2 -g -Wall -Wextra -Werror -fPIC -shared -fvisibility=hidden -Wl,-z,nodelete -Wl,-soname,libfake_cuda.so \
    -DKERNEL_FLAGS="\"$common $watched\"" -DFAKE_CUDA_BUILD=$((16#${sum:0:6})) \
    $(pkg-config --cflags openblas) -o "$directory/libfake_cuda.so" "$here"/{core,plant,driver,module,nvrtc,blas}.cpp \
    $(pkg-config --libs openblas) -ldl
# A program looks each function up in the library of its name, and so in what that library needs.
for library in cuda nvrtc cublas cusolver; do
    $compiler -shared -Wl,-soname,lib$library.so -Wl,--no-as-needed -Wl,-rpath,'$ORIGIN' -o "$directory/lib$library.so" -x c++ /dev/null \
        -x none "$directory/libfake_cuda.so"
done
ln -sf libcuda.so "$directory/libcuda.so.1" # the name that a driver is installed under
# What scripts/gpu-check.sh asks for the device's name.
printf '#!/bin/sh\necho "a stand-in for a device"\n' > "$directory/nvidia-smi"
chmod +x "$directory/nvidia-smi"
echo "$sum" > "$directory/built"
