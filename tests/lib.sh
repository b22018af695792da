# tests/lib.sh: TAP for shell scripts. Sourced, never run.
#
#     . "$(dirname "$0")/lib.sh"
#     ok 'the file is there' test -f "$file"      passes if the command does; what it prints becomes notes
#     skip 'mandoc is clean' 'no mandoc here'
#     done_testing                                prints the plan; exit status 0 if all passed
n_run=0
n_failed=0

note() {
    printf '%s\n' "$*" | sed 's/^/# /'
}

ok() {
    ok_what=$1
    shift
    n_run=$((n_run + 1))
    if ok_said=$("$@" 2>&1); then
        echo "ok $n_run - $ok_what"
    else
        echo "not ok $n_run - $ok_what"
        n_failed=$((n_failed + 1))
        [ -z "$ok_said" ] || note "$ok_said" | head -n 40
    fi
}

skip() {
    n_run=$((n_run + 1))
    echo "ok $n_run - $1 # SKIP $2"
}

# A command that must print nothing: what it prints is the fault.
silent() {
    silent_said=$("$@" 2>&1)
    [ -z "$silent_said" ] || {
        printf '%s\n' "$silent_said"
        false
    }
}

done_testing() {
    echo "1..$n_run"
    [ $n_failed -eq 0 ] && [ $n_run -gt 0 ]
}
