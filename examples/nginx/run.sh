#!/bin/sh
# nginx serves TLS with a key that exists only in a secretfs mount; then the key is replaced while it runs.
#
#   secretfs mount ~/keys && sh examples/nginx/run.sh ~/keys
#
# Key and certificate share one file, so that one rename(2) replaces both at once: whenever nginx looks, they match.

# shellcheck source=examples/common.sh
. "$(dirname "$0")/../common.sh"

# A new key and its certificate take the place of $keys/tls.pem; $1 gets a copy of the certificate, for clients.
new_key() {
    openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$keys/next.pem"
    openssl req -x509 -key "$keys/next.pem" -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -days 1 -out "$1"
    cat "$1" >>"$keys/next.pem"
    mv "$keys/next.pem" "$keys/tls.pem"
}

# What the server answers a client that trusts the certificate $1 and no other.
ask() {
    curl --silent --show-error --max-time 10 --noproxy '*' --cacert "$1" "https://127.0.0.1:$port/"
}

new_key "$work/first.crt"
port=$(free_port)
sed -e "s|@WORK@|$work|" -e "s|@KEYS@|$keys|" -e "s|@PORT@|$port|" "$(dirname "$0")/nginx.conf" >"$work/nginx.conf"
: >"$work/log"
nginx -p "$work" -c nginx.conf -e stderr -g 'daemon off; error_log stderr notice;' 2>>"$work/log" &
server=$!
wait_for_log 'start worker process [0-9]'
[ "$(ask "$work/first.crt")" = "served from secret memory" ] || die "no answer over TLS"
echo "ok: nginx serves TLS with the key in the mount, and curl has checked its certificate"

# Replace the key, and tell nginx. When the last of its old workers is gone, every answer comes from a new one.
old=$(pgrep -P "$server")
new_key "$work/second.crt"
kill -HUP "$server"
for worker in $old; do
    wait_for_log "worker process $worker exited with code 0"
done
[ "$(ask "$work/second.crt")" = "served from secret memory" ] || die "no answer after the reload"
refused ask "$work/first.crt"
[ "$(pgrep -P "$server" | wc -l)" -eq 2 ] || die "a worker is missing"
echo "ok: after a rename and SIGHUP it serves with the new key, and the old certificate is no longer shown"
