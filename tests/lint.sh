#!/bin/sh
# shellcheck disable=SC2046,SC2059 # words are split and formats are built on purpose
# tests/lint.sh: what the house style says and a machine can see. Every rule is tried first on a tree of planted
# faults, so that a rule which finds nothing there fails too.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
LC_ALL=C
export LC_ALL
bad=$(mktemp -d "${TMPDIR:-/tmp}/lint.XXXXXX") || exit 1
trap 'rm -rf "$bad"' EXIT

# Sources under the current directory: all of them, or those below cmd/.
sources() {
    find kernels core store jobs cmd tests \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cc' \) \
        2>/dev/null | sort
}
below_cmd() {
    sources | grep -E '^(kernels|core|store|jobs)/'
}
texts() {
    find kernels core store jobs cmd tests man .ci Makefile README.md LICENSE .gitignore -type f 2>/dev/null |
        grep -vE '/corpus/|/builtin/|^tests/reference/.*\.txt$|\.(safetensors|png|jpg|tiff?|ppm|bin|tap)$' | sort
}

# file:line:code of the files on stdin, comments and strings blanked; a // comment is left as //.
code() {
    xargs awk '
        FNR == 1 { inside = 0 }
        {
            rest = $0
            out = ""
            while (rest != "") {
                if (inside) {
                    if (!(at = index(rest, "*/")))
                        break
                    rest = substr(rest, at + 2)
                    inside = 0
                } else if (match(rest, /\/\*|\/\/|"([^"\\]|\\.)*"|\047([^\047\\]|\\.)+\047/)) {
                    token = substr(rest, RSTART, 2)
                    out = out substr(rest, 1, RSTART - 1)
                    rest = substr(rest, RSTART + RLENGTH)
                    if (token == "/*") {
                        inside = 1
                    } else if (token == "//") {
                        out = out "//"
                        break
                    } else
                        out = out (out ~ /#[ ]*include[ ]*$/ ? token "" : "\"\"")
                } else {
                    out = out rest
                    break
                }
            }
            if (out != "")
                print FILENAME ":" FNR ":" out
        }' /dev/null
}
calls() {                                   # calls of $1 (an alternation) in the files on stdin
    code | grep -E "(^|[^A-Za-z0-9_.>])($1)[ ]*\("
}

# ---- the rules: each prints its offenders ----
arrow() {
    below_all='{ rank["kernels"] = 0; rank["core"] = 1; rank["store"] = 2; rank["jobs"] = 3; rank["cmd"] = 4 }'
    sources | grep -v '^tests/' | xargs grep -HnE '^[ ]*#[ ]*include[ ]*"' /dev/null | awk "
        BEGIN $below_all"'
        {
            split($1, path, "/")
            match($0, /"[^"]*"/)
            split(substr($0, RSTART + 1), to, "/")
            if (!(to[1] in rank) || rank[to[1]] > rank[path[1]])
                print
        }'
}
slashes() { sources | code | grep '//'; }
ends_or_prints() {
    below_cmd | calls 'exit|_exit|_Exit|quick_exit|abort|assert|printf|vprintf|puts|putchar|perror|err|errx|warn|warnx'
    below_cmd | code | grep -E '(^|[^A-Za-z0-9_])(stderr|stdout|stdin)([^A-Za-z0-9_]|$)'
}
kernels_allocate() {
    sources | grep '^kernels/' | calls 'malloc|calloc|realloc|free|aligned_alloc|alloca|cudaMalloc[A-Za-z]*|cudaFree'
    sources | grep '^kernels/' | calls 'fopen|open|fprintf|getenv'
}
core_sees_outside() {
    sources | grep '^core/' | calls 'fopen|open|openat|creat|unlink|rename|getenv|system|popen|fprintf'
    sources | grep '^core/' | calls 'time|clock|clock_gettime|gettimeofday|localtime'
}
tabs() { texts | grep -v Makefile | xargs grep -Hn "$(printf '\t')" /dev/null; }
blanks() { texts | xargs grep -HnE '[[:blank:]]+$' /dev/null; }
long_lines() { texts | xargs grep -HnE '^.{121}' /dev/null | cut -c 1-100; }
guards() {
    sources | grep '\.h$' | while read -r f; do
        guard=UNICON_$(echo "${f%.h}" | tr 'a-z/-' 'A-Z__')_H
        set -- $(grep -nE '^#(ifndef|define|endif)' "$f" | sed -n '1p;2p;$p' | sed 's/^[0-9]*://; s/ /_/')
        [ "$1 $2" = "#ifndef_$guard #define_$guard" ] && [ "${3%%_*}" = '#endif' ] || echo "$f: guard is not $guard"
    done
}
own_header_first() {
    sources | grep -E '\.(c|cu)$' | while read -r f; do
        own=${f%.*}.h
        [ -f "$own" ] || case $f in core/op/*) own=core/op/ ;; *) continue ;; esac      # these share headers
        grep -E '^[ ]*#[ ]*include' "$f" | head -n 1 | grep -qF "\"$own" || echo "$f: does not begin with $own"
    done
}
purpose() {                                 # headers and sources open with a comment
    sources | while read -r f; do
        own=${f%.*}.h
        case $f in *.c) [ ! -f "$own" ] || continue ;; esac
        head -c 2 "$f" | grep -qF '/*' || echo "$f: does not open with its purpose"
    done
}
typedefs() {                                # but where another library's names are given
    sources | grep -v '^tests/emu/' | code |
        grep -E '(^|[^A-Za-z0-9_])typedef +(struct|union|enum)([^A-Za-z0-9_(][^(]*)?$'
}
machine_paths() { texts | grep -v '^tests/lint.sh$' | xargs grep -HnE '/(home|Users|work|root)/[a-zA-Z]' /dev/null; }
unfinished() { texts | grep -v '^tests/lint.sh$' | xargs grep -HnwE 'TODO|FIXME|HACK' /dev/null; }
too_long() { sources | xargs wc -l /dev/null | awk '$2 != "total" && $1 > 900 { print $2 ": " $1 " lines" }'; }
scripts_run() {
    find tests .ci -maxdepth 1 -type f \( -name '*.sh' -o -name run \) ! -name lib.sh 2>/dev/null | while read -r f; do
        [ -x "$f" ] && head -n 1 "$f" | grep -q '^#!' || echo "$f: is not executable or has no #! line"
    done
}

# ---- planted faults: rule, file, text ----
plant() {
    mkdir -p "$bad/$1/$(dirname "$2")"
    printf "$3" >"$bad/$1/$2"
}
plant arrow core/a.c '#include "store/b.h"\n'
plant slashes core/a.c 'int a; // b\n'
plant ends_or_prints core/a.c 'void f(void) { abort(); }\n'
plant kernels_allocate kernels/a.c 'void *f(void) { return malloc(1); }\n'
plant core_sees_outside core/a.c 'void *f(void) { return fopen("a", "r"); }\n'
plant tabs core/a.c '\tint a;\n'
plant blanks man/a.7 'a \n'
plant long_lines core/a.c "$(printf '%0121d' 1)\\n"
plant guards core/a.h '#ifndef A_H\n#define A_H\n#endif\n'
plant own_header_first core/a.c '#include <stdio.h>\n#include "core/a.h"\n'
plant own_header_first core/a.h ''
plant purpose core/a.c 'int a;\n'
plant typedefs core/a.h 'typedef struct { int a; } b;\n'
plant machine_paths core/a.c '/* see /home/me/notes */\n'
plant unfinished core/a.c '/* TODO */\n'
plant too_long core/a.c "$(printf '%901s' '' | sed 's/ /\\n/g')"
plant scripts_run tests/a.sh 'true\n'
finds() {
    (cd "$bad/$1" && [ -n "$($1)" ])
}
# What must not be taken for a fault.
plant innocent core/a.c '/* abort(), http://x */\nchar *s = "exit( // printf(";\nint n = snprintf(s, 1, "a");\n'
innocent() {
    (cd "$bad/innocent" && slashes && ends_or_prints && core_sees_outside) | grep . && return 1
    return 0
}

cd "${1:-$here/..}" || exit 1
while IFS=: read -r rule what; do
    ok "$rule: finds a planted fault" finds "$rule"
    ok "$rule: $what" silent "$rule"
done <<'RULES'
arrow:includes point from cmd to jobs, store, core, kernels and never back
slashes:comments are /* */
ends_or_prints:nothing below cmd/ prints or ends the process
kernels_allocate:kernels/ neither allocates nor opens files
core_sees_outside:core/ opens no file, reads no clock and no environment
tabs:no tabs
blanks:no trailing blanks
long_lines:no line is longer than 120
guards:header guards are UNICON_PATH_H
own_header_first:a source includes its own header first
purpose:a header, or a source without one, opens with its purpose
typedefs:structs are not hidden behind typedef
machine_paths:no path of one machine
unfinished:nothing is left to do
too_long:no source is longer than 900 lines
scripts_run:test scripts can be run
RULES
ok 'comments and strings are not taken for code' innocent
sources | xargs wc -l /dev/null | awk '$2 != "total" && $1 > 600 { print "# guide: " $2 " has " $1 " lines" }'
done_testing
