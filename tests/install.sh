#!/bin/sh
# tests/install.sh: `make install` puts every file in its place, a program builds against what was installed and
# nothing else, and `make uninstall` leaves nothing behind. $B, $VARIANT and $UNICON_CC come from `make check`.
. "$(dirname "$0")/lib.sh"
cd "$(dirname "$0")/.." || exit 1
tmp=$(mktemp -d "${TMPDIR:-/tmp}/install.XXXXXX") || exit 1
trap 'rm -rf "$tmp"' EXIT
root=$tmp/root
prefix=/opt/unicon

run_make() {
    make -s B="${B:-build/release}" VARIANT="${VARIANT:-release}" DESTDIR="$root" PREFIX="$prefix" "$@"
}
files() {
    find "$root" -type f -o -type l
}
here() {
    for f; do
        [ -s "$root$prefix/$f" ] || {
            echo "$f is not there"
            return 1
        }
    done
}
# The words of a line of unicon.pc, with the prefix where it was installed.
pc() {
    sed -n "s/^$1: //p" "$root$prefix/lib/pkgconfig/unicon.pc" | sed "s|\${prefix}|$root$prefix|g"
}
builds() {
    cat >"$tmp/hello.c" <<'END'
#include <stdio.h>
#include <kernels/kern.h>
int main(void) { return puts(kern_cpu(NULL)->name) < 0; }
END
    # shellcheck disable=SC2046 # words
    (cd "$tmp" && ${UNICON_CC:-cc} -std=c11 $(pc Cflags) hello.c $(pc Libs) -o hello)
}
names_a_set() {
    "$tmp/hello" | grep -Ex 'portable|avx2|avx512|avx512bf16|neon'
}
headers_stand_alone() {
    (cd "$root$prefix/include/unicon" && find . -name '*.h') | sed 's|^\./||' | while read -r h; do
        echo "#include <$h>" >"$tmp/one.c"
        # shellcheck disable=SC2046
        ${UNICON_CC:-cc} -std=c11 -Wall -Wextra -Wpedantic $(pc Cflags) -fsyntax-only "$tmp/one.c" 2>&1 || echo "$h"
    done
}
same_files() {
    files | sort >"$tmp/second"
    diff "$tmp/first" "$tmp/second"
}

ok 'install succeeds' run_make install
ok 'library, headers, manual and unicon.pc are there' here lib/libunicon.a lib/pkgconfig/unicon.pc \
    include/unicon/kernels/kern.h include/unicon/core/tape.h include/unicon/core/op/op.h share/man/man7/unicon.7 \
    include/unicon/store/base_model.h include/unicon/jobs/spec.h share/man/man1/unicon-sample.1 bin/unicon-sample
files | sort >"$tmp/first"
ok 'a second install changes nothing' run_make install
ok 'the same files as before' same_files
ok 'each installed header compiles alone' silent headers_stand_alone
ok 'three lines of C build against it' builds
ok 'and print the instruction set' names_a_set
ok 'uninstall succeeds' run_make uninstall
ok 'uninstall leaves no file' silent files
done_testing
