#!/bin/sh
# tests/run.sh TAPDIR TEST...: run TAP programs and scripts under prove and end with `N passed, N failed`.
# What each test printed is kept in TAPDIR/NAME.tap; each has an empty directory of its own in $TMPDIR.
# TEST_SECONDS (900) ends a test that hangs; it counts as one failure more.
# TEST_JOBS tests run at a time, by default one for each processor.
if [ "$1" = --one ]; then
    name=$(basename "$3")
    case $3 in */emu/*) name=emu-$name ;; esac      # of the same test on another device
    tap=$2/$name.tap
    rm -rf "$2/$name.dir"
    mkdir -p "$2/$name.dir" || exit 1
    TMPDIR=$(cd "$2/$name.dir" && pwd)
    export TMPDIR
    case $3 in
    *.sh) set -- sh "$3" ;;
    /*) set -- "$3" ;;
    *) set -- "./$3" ;;
    esac
    command -v timeout >/dev/null && set -- timeout --foreground "${TEST_SECONDS:-900}" "$@"
    "$@" >"$tap"
    rc=$?
    cat "$tap"
    n=$(grep -Ec '^(not )?ok' "$tap")
    if [ $rc -ne 0 ] && ! grep -q '^not ok' "$tap"; then
        echo "not ok - $name ended with status $rc" >>"$tap"
    elif ! grep -Eq "^1\.\.$n( |\$)" "$tap"; then
        echo "not ok - $name ran $n tests and planned others" >>"$tap"
    fi
    [ $rc -ne 0 ] || rm -rf "$TMPDIR"          # what a failed test left is kept
    exit $rc
fi

dir=$1
shift
rm -rf "$dir"
mkdir -p "$dir" || exit 1
prove -j "${TEST_JOBS:-$(nproc 2>/dev/null || echo 1)}" --exec "sh $0 --one $dir" "$@"
rc=$?
passed=$(cat "$dir"/*.tap 2>/dev/null | grep -c '^ok')
failed=$(cat "$dir"/*.tap 2>/dev/null | grep -c '^not ok')
[ $rc -eq 0 ] || [ "$failed" -ne 0 ] || failed=1
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
