#!/bin/sh
# tests/man.sh: the manual pages are well-formed mdoc, and each program has one.
. "$(dirname "$0")/lib.sh"
cd "$(dirname "$0")/.." || exit 1

# Not counted: pages of other packages that this machine does not have.
faults() {
    mandoc -T lint -W style "$1" 2>&1 | grep -vE 'mandoc\.db|referenced manual not found'
}
# Sources that a page names with .Pa and that are not there.
missing_files() {
    sed -nE 's/^\.(It )?Pa ((kernels|core|store|jobs|cmd|tests)\/[a-z_/]*\.[a-z]+)( .*)?$/\2/p' "$1" |
        while read -r f; do
            [ -e "$f" ] || echo "$f"
        done
}

for page in man/*.[1-9]; do
    if command -v mandoc >/dev/null; then
        ok "mandoc finds nothing in $page" silent faults "$page"
    else
        skip "mandoc finds nothing in $page" 'no mandoc here'
    fi
    for section in NAME DESCRIPTION 'SEE ALSO'; do
        ok "$page has $section" grep -qx "\\.Sh $section" "$page"
    done
    ok "$page names files that exist" silent missing_files "$page"
done
for program in cmd/unicon-*.c; do
    [ -f "$program" ] || continue
    page=man/$(basename "$program" .c).1
    ok "$page is there" test -f "$page"
done
done_testing
