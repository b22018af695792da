#!/usr/bin/env bash
# tests/gpu.sh: all that a machine with a CUDA device can tell, in less than ten minutes: what there is, a build for it,
# every kernel and model beside the processor's, times, the sanitizer, and what PyTorch takes on the same device.
#
#     tests/gpu.sh [STAGE ..]         builds in build/gpu; stages: probe build ops model sample bench check torch
#     tests/gpu.sh --prepare          builds where no device is, for CUDA_ARCH (sm_90), to build/gpu-built.tar.xz
#     tests/gpu.sh --built [STAGE ..] takes what was carried from there: build/gpu-built.tar.xz or what was in it
#     tests/gpu.sh --emulated         the stages up to bench on the emulated device, which tests this script
#
# Each stage has a time of its own and runs whatever became of those before it. The table at the end is printed however
# it ends; the last line is `N passed, N failed`. B is where everything lies (B/gpu.log, gpu.tsv, torch.tsv);
# GPU_SECONDS (570) is the time for all, PYTHON (python3) one with torch.
set -u
cd "$(dirname "$0")/.." || exit 1
unset MAKEFLAGS MAKELEVEL
mode=device
case ${1:-} in
--prepare | --built | --emulated)
    mode=${1#--}
    shift
    ;;
--*)
    echo "usage: tests/gpu.sh [--prepare|--built|--emulated] [STAGE ..]" >&2
    exit 2
    ;;
esac
only=" $* "
seconds=${GPU_SECONDS:-570}
each=60                                     # for one test program
tiny=
case $mode in
emulated) B=${B:-build/gpu} seconds=${GPU_SECONDS:-3600} each=900 tiny=-tiny ;;
prepare) B=${B:-build/gpu} seconds=${GPU_SECONDS:-3600} ;;
built) B=${B:-build/gpu-built} ;;
*) B=${B:-build/gpu} ;;
esac
programs=$B${tiny:+/emu}
sample=$B/bin/unicon-sample
case $mode in
emulated) sample=$B/emu/unicon-sample ;;
built) sample=$B/unicon-sample ;;
esac
export LC_ALL=C B
PATH=$PATH:/usr/local/cuda/bin:/usr/local/nvidia/bin
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$B/lib:/usr/local/cuda/lib64
log=$B/gpu.log
passed=0
failed=0
measured=
child=
table=()
mkdir -p "$B/tap" || exit 1
: >"$log"

finish() {
    printf '\n%-8s %-8s %5s  %s\n' stage result s ''
    [ ${#table[@]} -eq 0 ] || printf '%s\n' "${table[@]}"
    figures
    echo "$passed passed, $failed failed"
}
exec 3>&1                                   # a signal may come where output goes to a file
trap 'finish >&3' EXIT
trap 'failed=$((failed + 1)); kill $child 2>/dev/null; exit 1' INT TERM HUP

# ---- stages ----

# stage NAME SECONDS: run the function NAME for at most so long. It says what came of it in $said and returns 0, 1, or
# 77 if there was nothing to do; what it counted in $passed and $failed counts, otherwise the stage is one check.
stage() {
    local name=$1 began=$SECONDS ok=$passed bad=$failed result=passed rc
    [ "$only" = '  ' ] || [[ $only == *" $name "* ]] || return 0
    until=$((SECONDS + $2 < seconds ? SECONDS + $2 : seconds))
    said=
    echo "== $name" | tee -a "$log"
    if [ "$until" -le "$SECONDS" ]; then
        said='no time was left'
        rc=1
    else
        "$name"
        rc=$?
    fi
    [ $rc -ne 77 ] || result=skipped
    [ $rc -eq 77 ] || [ $rc -eq 0 ] || [ "$failed" -gt "$bad" ] || failed=$((failed + 1))
    [ "$failed" -eq "$bad" ] || result=failed
    [ $rc -ne 0 ] || [ "$passed" -gt "$ok" ] || [ "$failed" -gt "$bad" ] || passed=$((passed + 1))
    table+=("$(printf '%-8s %-8s %5d  %s' "$name" $result $((SECONDS - began)) "$said")")
}

# limited SECONDS COMMAND..: for so long, and no longer than the stage has; 124 or 137 if it took longer.
limited() {
    local left=$((until - SECONDS))
    [ "$left" -lt "$1" ] || left=$1
    shift
    [ $left -gt 0 ] || return 124
    timeout -k 5 $left "$@" &               # a trap does not wait for what runs in the foreground
    child=$!
    wait $child
}

# tap SECONDS PROGRAM: the results of a test count, those that failed are shown.
tap() {
    local name ok bad
    name=$(basename "$2")
    case $2 in */emu/*) name=emu-$name ;; esac
    [ -f "$2" ] || {
        missing="$missing $name"
        return 0
    }
    rm -f "$B/tap/$name.tap"
    TEST_SECONDS=$1 limited $(($1 + 5)) sh tests/run.sh --one "$B/tap" "$2" >"$B/tap/$name.out" 2>&1
    cat "$B/tap/$name.out" >>"$log"
    touch "$B/tap/$name.tap"
    ok=$(grep -c '^ok' "$B/tap/$name.tap")
    bad=$(grep -c '^not ok' "$B/tap/$name.tap")
    passed=$((passed + ok))
    n_ok=$((n_ok + ok))
    if [ "$bad" -eq 0 ] && [ "$ok" -eq 0 ]; then
        echo "not ok - $name: nothing ran: $(tail -n 1 "$B/tap/$name.out")"
        bad=1
    fi
    failed=$((failed + bad))
    n_bad=$((n_bad + bad))
    grep -A 3 '^not ok' "$B/tap/$name.tap" | grep -v '^ok' | head -n 20
    echo "   $name: $ok ok, $bad not ok"
}
taps() {                                    # taps SECONDS PROGRAM..: each of them for so long
    local each=$1 program
    n_ok=0
    n_bad=0
    missing=
    shift
    for program in "$@"; do
        tap "$each" "$program"
    done
    said="$n_ok ok, $n_bad not ok${missing:+; not built:$missing}"
    [ $((n_ok + n_bad)) -gt 0 ] || return 1
    [ -z "$missing" ] && [ $n_bad -eq 0 ]
}

ask() { limited 20 nvidia-smi -i 0 --format=csv,noheader --query-gpu="$1"; }

probe() {
    if [ $mode = emulated ]; then
        said='the emulated device'
        return 0
    fi
    local card nvcc
    nvcc=$(command -v nvcc >/dev/null && nvcc --version | sed -n 's/.*release \([0-9.]*\).*/nvcc \1/p')
    if [ $mode = prepare ]; then
        arch=${CUDA_ARCH:-sm_90}
        said="${nvcc:-no nvcc}; for $arch"
        [ "$nvcc" ]
        return
    fi
    command -v nvidia-smi >/dev/null || {
        device=no
        said="there is no nvidia-smi, so no device; ${nvcc:-no nvcc}"
        return 1
    }
    if ! card=$(ask name,driver_version,memory.total 2>&1); then
        device=no
        said="there is no device: ${card:-nvidia-smi says nothing}"
        said=${said%%$'\n'*}
        return 1
    fi
    arch=$(ask compute_cap | tr -dc 0-9)
    arch=sm_${arch:-90}
    said="$card, $arch; ${nvcc:-no nvcc}; $(command -v compute-sanitizer >/dev/null || echo 'no ')compute-sanitizer"
    said="$said; $("${PYTHON:-python3}" -c 'from importlib import metadata
print("torch", metadata.version("torch"))' 2>/dev/null || echo 'no torch')"
    if [ $mode = device ] && [ -z "$nvcc" ]; then
        device=no
        said="there is no nvcc; $card"
        return 1
    fi
}

tests() {                                   # tests DIR: the names of the tests of the twin there
    printf "$1/%s\n" $(cd tests && ls t_cuda*.c | sed 's/\.c$//')
}

build() {
    [ $mode != built ] || {
        said='it was prepared'
        [ ! -f "$B.tar.xz" ] || tar -C "$B" -xJf "$B.tar.xz" || "${PYTHON:-python3}" -m tarfile -e "$B.tar.xz" "$B"
        return
    }
    local cuda="CUDA=yes CUDA_ARCH=$arch" rc n
    [ $mode != emulated ] || cuda=CUDA=no
    # shellcheck disable=SC2046,SC2086 # words
    limited "$seconds" make -k -j"${JOBS:-$(nproc)}" B="$B" $cuda "$sample" "$programs/bench" \
        "$B/tool/tiny_base" "$B/tool/picture_diff" $(tests "$programs") >"$B/build.log" 2>&1
    rc=$?
    cat "$B/build.log" >>"$log"
    grep -E 'error|\*\*\*|undefined reference' "$B/build.log" | head -n 20
    n=$(grep -c 'warning:' "$B/build.log")
    said="status $rc, $n warnings"
    [ $rc -eq 0 ] && [ "$n" -eq 0 ]
}

# The programs without their symbols, and the libraries that another machine may lack.
carry() {
    local to=$B-built f
    rm -rf "$to"
    mkdir -p "$to/lib" "$to/tool" || return 1
    # shellcheck disable=SC2046 # words
    strip -o "$to/unicon-sample" "$sample" && cp $(tests "$B") "$B/bench" "$to" &&
        cp "$B/tool/tiny_base" "$B/tool/picture_diff" "$to/tool" &&
        strip "$to"/t_* "$to/bench" "$to"/tool/* || return 1
    for f in "$to"/t_* "$to"/unicon-sample "$to/bench"; do
        ldd "$f" | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p'
    done | sort -u | grep -vE '/(libc|libm|libdl|libpthread|librt|libgcc_s|libstdc\+\+|libcu[a-zA-Z]*)\.so' |
        while read -r f; do
            cp -L "$f" "$to/lib/"
        done
    tar -C "$to" -c . | xz -T 1 -8 >"$to.tar.xz" || return 1       # the programs share most of what they are
    said="carry $to.tar.xz, $(du -sh "$to.tar.xz" | cut -f 1), and say tests/gpu.sh --built"
}

ops() { taps $each $(tests "$programs" | grep -v t_cuda_model); }

# bench WORDS: `bench gpu WORDS`; a line each counts, and what it says on standard error is what failed.
figure() {
    local name=$1 rc
    shift
    : >"$B/$name.tsv"
    [ -x "$programs/bench" ] || return 1
    # shellcheck disable=SC2086 # $tiny is a word or none
    limited 300 "$programs/bench" gpu $tiny "$@" >"$B/$name.tsv" 2>"$B/$name.err"
    rc=$?
    cat "$B/$name.tsv" "$B/$name.err" >>"$log"
    head -n 20 "$B/$name.err"
    n_line=$((n_line + $(grep -c . "$B/$name.tsv")))
    n_bad=$((n_bad + $(grep -c '^bench: ' "$B/$name.err")))
    if [ $rc -gt 1 ]; then
        n_bad=$((n_bad + 1))
        echo "   bench $*: ended with status $rc" | tee -a "$log"
    fi
}
figures_said() {
    passed=$((passed + n_line))
    failed=$((failed + n_bad))
    said="${said:+$said; }$n_line lines, $n_bad failed"
    [ "$n_line" -gt 0 ] && [ $n_bad -eq 0 ]
}

model() {
    local rc
    taps $each "$programs/t_cuda_model"
    rc=$?
    n_line=0
    n_bad=0
    figure parity parity
    figures_said && [ $rc -eq 0 ]
}

sample() {
    [ -x "$sample" ] || {
        said='not built'
        return 1
    }
    [ $mode = emulated ] || export UNICON_SAMPLE=$sample
    taps 300 tests/cuda.sh
}

# The parts apart: what one breaks does not take the others along.
bench() {
    local part
    measured=yes
    n_line=0
    n_bad=0
    for part in models attention product memory; do
        figure part $part
        [ $part = models ] && cp "$B/part.tsv" "$B/gpu.tsv" || grep -v '^peak' "$B/part.tsv" >>"$B/gpu.tsv"
    done
    rm -f "$B/part.tsv" "$B/part.err"
    figures_said
}

check() {
    local tool tool_check program name rc n=0 late='' small
    tool=$(command -v compute-sanitizer) || {
        said='there is no compute-sanitizer'
        return 77
    }
    export UNICON_TEST_SMALL=1
    for tool_check in memcheck racecheck synccheck initcheck; do
        for program in $(tests "$programs"); do
            [ -x "$program" ] || continue
            name=$tool_check-$(basename "$program")
            limited 40 "$tool" --tool $tool_check --error-exitcode 99 --print-limit 3 "$program" >"$B/tap/$name" 2>&1
            rc=$?
            cat "$B/tap/$name" >>"$log"
            if grep -qi 'device not supported' "$B/tap/$name" || { [ $n -eq 0 ] && [ $rc -ne 124 ] &&
                ! grep -q 'SUMMARY' "$B/tap/$name"; }; then
                said="it does not work on this machine: $(grep -m 1 '=========' "$B/tap/$name")"
                unset UNICON_TEST_SMALL
                return 77
            fi
            n=$((n + 1))
            case $rc in
            0) passed=$((passed + 1)) ;;
            124 | 137) late="$late $name" ;;
            *)
                failed=$((failed + 1))
                echo "not ok - $name"
                grep '=========' "$B/tap/$name" | head -n 12
                ;;
            esac
        done
    done
    unset UNICON_TEST_SMALL
    said="$n runs${late:+; not done in time:$late}"
    [ $n -gt 0 ]
}

torch() {
    "${PYTHON:-python3}" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || {
        said='no torch with CUDA'
        return 77
    }
    measured=yes
    limited "$seconds" "${PYTHON:-python3}" tests/bench/gpu_torch.py --out "$B/torch.tsv" \
        --seconds $((until - SECONDS - 5)) >>"$log" 2>&1
    said="$(grep -c . "$B/torch.tsv" 2>/dev/null) lines in $B/torch.tsv"
    [ -s "$B/torch.tsv" ]
}

# Peaks and models, and PyTorch's times over ours where both measured the same.
figures() {
    [ "$measured" ] && [ -s "$B/gpu.tsv" ] || return 0
    printf '\n%-34s %10s %9s %-8s %7s  %s\n' '' ms '' '' share 'PyTorch/ours'
    touch "$B/torch.tsv"
    awk -F '\t' '
        FILENAME == ARGV[1] { sub(/, .*/, "", $1); if (!($1 in best) || $2 < best[$1]) best[$1] = $2; next }
        $1 ~ /^(peak|all|UNet|pair|VAE|text enc)/ {
            name = $1
            sub(/, whole/, "", name)
            ratio = (name in best) && $2 > 0 ? sprintf("%.2f", best[name] / $2) : ""
            printf("%-34s %10.3f %9.1f %-8s %6.1f %%  %s\n", $1, $2, $3, $4, 100 * $5, ratio)
        }' "$B/torch.tsv" "$B/gpu.tsv"
}

arch=sm_90
device=yes
stage probe 90
if [ $mode = prepare ]; then
    stage build 3600
    stage carry 120
elif [ $device = yes ]; then
    stage build $([ $mode = emulated ] && echo 3000 || echo 240)
    stage ops $([ $mode = emulated ] && echo 900 || echo 120)
    stage model $([ $mode = emulated ] && echo 900 || echo 100)
    stage sample $([ $mode = emulated ] && echo 300 || echo 60)
    stage bench $([ $mode = emulated ] && echo 300 || echo 150)
    if [ $mode != emulated ]; then
        stage check 90
        stage torch 420
    fi
fi
[ $failed -eq 0 ] && [ $passed -gt 0 ]
