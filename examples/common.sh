# shellcheck shell=sh
# What the shell examples share. Sourced first, with the example's arguments: one mountpoint.
#
# It gives them    $keys  a fresh folder in the mount: everything secret goes there
#                  $work  a fresh folder outside: configuration, logs, certificates, nothing secret
# and removes both at the end. A server is started in the background, recorded with `server=$!`, and ended by its pid.

set -eu
umask 077

if [ $# -ne 1 ] || [ ! -d "$1" ]; then
    echo "usage: $0 MOUNTPOINT        (secretfs mount MOUNTPOINT, before)" >&2
    exit 2
fi
mount=$(cd "$1" && pwd -P)
keys=
work=
server=

cleanup() {
    code=$?
    trap - EXIT
    stop
    if [ "$code" -ne 0 ] && [ -n "$work" ] && [ -s "$work/log" ]; then
        sed 's/^/server log: /' "$work/log" >&2
    fi
    rm -rf ${keys:+"$keys"} ${work:+"$work"}
    exit "$code"
}

# End the server, if there is one.
stop() {
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
        server=
    fi
}

die() {
    echo "$0: $*" >&2
    exit 1
}

# Run a command that must fail.
refused() {
    if "$@" >"$work/refused" 2>&1; then
        die "this should have failed: $*"
    fi
}

# A port of the loopback interface that is free now.
free_port() {
    /usr/bin/python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# Wait until the server's log has a line with $1. Fails when the server has ended, or after 15 seconds.
wait_for_log() {
    timeout 15 tail -n +1 -f --pid="$server" "$work/log" | grep -q -m 1 -- "$1" || die "the server never said: $1"
}

trap cleanup EXIT
trap 'exit 1' HUP INT TERM
keys=$(mktemp -d "$mount/example.XXXXXX")
work=$(mktemp -d)
