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
# "-o, --out" of --help and of a page's OPTIONS: "o --out", one a line, headings between them, in their order.
help_options() {
    "$1" --help | sed -nE 's/^([A-Z][A-Za-z ]*):$/\1/p; s/^ +(-([a-zA-Z]), )?(--[a-z0-9-]+)( .*)?$/\2 \3/p'
}
page_options() {
    sed -nE '/^\.Sh OPTIONS/,/^\.Sh [^O]/{
        s/^\.Ss (.*)$/\1/p
        s/^\.It Fl (([a-zA-Z]) , Fl )?(-[a-z0-9-]+)( .*)?$/\2 -\3/p
    }' "$1"
}
same_options() {
    help_options "$1" >"$tmp/help"
    page_options "$2" >"$tmp/page"
    [ -s "$tmp/help" ] && diff "$tmp/help" "$tmp/page"
}
# Defaults in --help that the page does not tell in the paragraph of the option.
missing_defaults() {
    "$1" --help | awk '
        function tell() { if (name != "" && match(text, /\(default [^)]*\)/)) {
            print name, substr(text, RSTART + 9, RLENGTH - 10) } }
        /^ +(-[a-zA-Z], )?--/ { tell(); name = $1 ~ /,$/ ? $2 : $1; text = "" }
        /^[^ ]/ { tell(); name = "" }
        { gsub(/ +/, " "); text = text " " $0 }' | while read -r name value; do
        awk -v start="^\\.It .*Fl ${name#-}( |$)" '/^\.(It|El)/ { inside = 0 } inside; $0 ~ start { inside = 1 }' "$2" |
            tr '\n' ' ' | grep -qE "\(default (\.Pa )?${value}[ ;)]|(^| )$value \(the default\)" ||
            echo "$name: the default $value is not told"
    done
}

tmp=$(mktemp -d "${TMPDIR:-/tmp}/man.XXXXXX") || exit 1
trap 'rm -rf "$tmp"' EXIT
for source in cmd/unicon-*.c; do
    [ -f "$source" ] || continue
    name=$(basename "$source" .c)
    page=man/$name.1
    program=${BIN:-bin}/$name
    ok "$page is there" test -f "$page"
    if [ -x "$program" ]; then
        ok "$page and $name --help have the same options in the same order" same_options "$program" "$page"
        ok "$page tells every default" silent missing_defaults "$program" "$page"
    else
        skip "$page and $name --help have the same options in the same order" "$program is not built"
        skip "$page tells every default" "$program is not built"
    fi
    for section in SYNOPSIS OPTIONS ENVIRONMENT FILES 'EXIT STATUS' EXAMPLES; do
        ok "$page has $section" grep -qx "\\.Sh $section" "$page"
    done
done
done_testing
