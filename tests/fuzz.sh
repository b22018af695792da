#!/bin/sh
# tests/fuzz.sh: every fuzz target takes its stored corpus, and a few thousand inputs derived from it, without falling.
. "$(dirname "$0")/lib.sh"
cd "$(dirname "$0")/.." || exit 1

for source in tests/fuzz/f_*.c; do
    name=$(basename "$source" .c)
    ok "$name: there is a corpus" test -n "$(ls "tests/fuzz/corpus/$name" 2>/dev/null)"
    ok "$name: the corpus passes" "${B:-build/release}/fuzz/$name" "tests/fuzz/corpus/$name"
done
done_testing
