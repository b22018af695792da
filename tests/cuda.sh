#!/bin/sh
# tests/cuda.sh: unicon-sample on the emulated device, from the command line: the pictures are the processor's, what has
# no kernels or no room is refused with one line. $B/emu/unicon-sample and $B/tool/* come from `make check`. With
# UNICON_SAMPLE=PROGRAM that program draws, on the device that it finds (tests/gpu.sh).
. "$(dirname "$0")/lib.sh"
cd "$(dirname "$0")/.." || exit 1
b=${B:-build/release}
sample=${UNICON_SAMPLE:-$b/emu/unicon-sample}
tmp=$(mktemp -d "${TMPDIR:-/tmp}/cuda.XXXXXX") || exit 1
trap 'rm -rf "$tmp"' EXIT
for part in sd1 depth id control; do
    "$b/tool/tiny_base" "$part" "$tmp/$part" || exit 1
done
on() {                                      # on DEVICE OUT ARGUMENT..
    device=$1
    out=$2
    shift 2
    "$sample" --base "$tmp/sd1" --prompt 'a red fox' --width 48 --height 32 --steps 4 --seed 3 --device "$device" \
        --out "$tmp/$out" "$@" >"$tmp/said" 2>&1
}
alike() {                                   # alike ARGUMENT..: f32 on both devices
    on cpu cpu.png --dtype f32 "$@" && on cuda cuda.png --dtype f32 "$@" || { cat "$tmp/said"; return 1; }
    d=$("$b/tool/picture_diff" "$tmp/cpu.png" "$tmp/cuda.png") || return 1
    [ "${d#* }" -eq 0 ] || { echo "off by up to $d"; return 1; }
}
refused() {                                 # refused 'WORDS' ARGUMENT..
    words=$1
    shift
    if on cuda no.png "$@"; then
        echo 'it was not refused'
        return 1
    fi
    [ "$(wc -l <"$tmp/said")" -eq 1 ] && grep -qF -- "$words" "$tmp/said" && [ ! -e "$tmp/no.png" ] ||
        { cat "$tmp/said"; return 1; }
}
ok 'text to image is the same picture' alike
cp "$tmp/cpu.png" "$tmp/given.png"
ok 'image to image, a batch of two, ancestral noise' alike --sampler euler-a --batch 2 --count 2
ok 'x from y' alike --unicon "$tmp/depth" --y "$tmp/given.png" --task y2x
ok 'two checkpoints, condition guidance' alike --unicon "$tmp/depth" --unicon "$tmp/id" --y "depth=$tmp/given.png" \
    --y "id=$tmp/given.png" --cond-guidance depth=1.5
ok 'ControlNet' alike --controlnet "edge=$tmp/control" --y "edge=$tmp/given.png" --cfg 3
ok 'gradient guidance has no kernels yet' refused 'use --device cpu' --unicon "$tmp/depth" --y "$tmp/given.png" \
    --y-noise 0.5 --guide y
ok 'a plan says what the device takes' on cuda plan.png --plan
[ -z "$UNICON_SAMPLE" ] || { done_testing; exit; }
UNICON_EMU_MEMORY=400000000
export UNICON_EMU_MEMORY
ok 'more memory than the device has' refused 'memory'
unset UNICON_EMU_MEMORY
UNICON_EMU_CC=75
export UNICON_EMU_CC
ok 'a device that is too old' refused 'too old'
unset UNICON_EMU_CC
done_testing
