#!/usr/bin/env bash
# Builds what scripts/gpu-check.sh runs, and packs it with the fixtures and the libraries of this system that it needs, for a
# machine with a GPU and without Rust, a C compiler or OpenBLAS.
# usage: scripts/gpu-pack.sh [FILE.tar.xz]           (default: target/duogpt-gpu.tar.xz)
#        scripts/gpu-pack.sh --directory DIRECTORY   not packed
# There: tar xf FILE.tar.xz && duogpt-gpu/scripts/gpu-check.sh
# PROFILE=mutants builds faster, and slower code.
set -euo pipefail
cd "$(dirname "$0")/.."
bundle=target/duogpt-gpu archive=${1:-target/duogpt-gpu.tar.xz}
if [ "${1:-}" = --directory ]; then
    bundle=$2 archive=
fi
most=$((64 << 20)) # bytes of an archive that is still easy to hand on

rm -rf "$bundle"
mkdir -p "$bundle"/{bin,lib,fixtures,scripts,benches/peer}
# In one call, so that all share one build of the crate. Kind, name and path of each program:
cargo build --profile "${PROFILE:-release}" --bin duogpt --test gpu --test golden --test cross_backend --bench gpu \
    --message-format=json-render-diagnostics |
    sed -n 's/.*"target":{"kind":\["\([a-z]*\)"\][^}]*"name":"\([^"]*\)".*"executable":"\([^"]*\)".*/\1 \2 \3/p' |
    while read -r kind name path; do
        [ "$kind" = bin ] || name=$kind-$name
        cp "$path" "$bundle/bin/$name"
    done
strip "$bundle"/bin/*
cp -r fixtures/vectors "$bundle/fixtures/"
mkdir "$bundle/fixtures/nano-llama"
cp fixtures/nano-llama/{config.json,model.safetensors} "$bundle/fixtures/nano-llama/"
cp scripts/gpu-check.sh "$bundle/scripts/"
cp benches/peer/peer.py "$bundle/benches/peer/"
# OpenBLAS and what it needs of the compiler's libraries; all else is in every Linux system.
ldd "$bundle/bin/duogpt" | awk '/lib(openblas|gfortran|quadmath)\.so/ { print $3 }' | while read -r library; do
    cp -L "$library" "$bundle/lib/"
done
glibc=$(objdump -T "$bundle"/bin/* "$bundle"/lib/* | grep -o 'GLIBC_2\.[0-9]*' | sort -u -V | tail -n 1)

{
    echo "commit: $(git describe --always --dirty --abbrev=12)"
    echo "fixtures: $(cat fixtures/vectors/v1/*/*/tensors.safetensors | sha256sum | cut -c 1-16) (SHA-256 of the tensors in fixtures/vectors)"
    echo "built with: $(rustc --version)"
    echo "needs: Linux $(uname -m), glibc ${glibc#GLIBC_} or newer"
    echo "crates:$(awk '$1 == "name" { name = $2 } $1 == "version" && name ~ /^"(libloading|ndarray|ndarray-linalg|criterion|half|rayon)"$/ {
        gsub(/"/, "", name); gsub(/"/, "", $2); printf " %s %s", name, $2 }' FS=' = | ' Cargo.lock)"
} > "$bundle/bundle.txt"
cat > "$bundle/README.txt" <<'TEXT'
Checks and times duogpt's CUDA kernels on this machine:

    scripts/gpu-check.sh

Needed here: a driver for CUDA 12 or newer, and of the CUDA toolkit of the driver's major version, on LD_LIBRARY_PATH or where
the loader looks:
    CUDA 13: libnvrtc.so.13, libnvrtc-builtins.so.13.*, libcublas.so.13, libcublasLt.so.13, libcusolver.so.12
    CUDA 12: libnvrtc.so.12, libnvrtc-builtins.so.12.*, libcublas.so.12, libcublasLt.so.12, libcusolver.so.11
and what these load themselves: libcusparse, libnvJitLink. The PyPI wheels of a PyTorch installation have all of them; the
script finds those by itself. Python with PyTorch is needed for the ratios alone. bundle.txt says what this was built from.

Results: benches/results/<gpu>/<date>.json (all figures), .md (the table), .txt (the environment).
One bench again:    bin/bench-gpu --bench panel/llama-2-7b-down      with LD_LIBRARY_PATH=lib:$LD_LIBRARY_PATH
TEXT
[ -n "$archive" ] || exit 0
XZ_OPT=-6 tar --create --xz --file "$archive" --directory "$(dirname "$bundle")" "$(basename "$bundle")"
bytes=$(stat --format %s "$archive")
echo "$archive: $((bytes >> 20)) MiB"
if [ "$bytes" -gt "$most" ]; then
    echo "error: more than $((most >> 20)) MiB" >&2
    exit 1
fi
