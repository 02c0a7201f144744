#!/bin/sh
# sshd's host key and ssh's identity live only in a secretfs mount.
#
#   secretfs mount ~/keys && sh examples/ssh/run.sh ~/keys
#
# Works as root and as any user who may log in (not as nobody, whose account is locked); a user's sshd can let in only
# that user. sshd wants every folder above authorized_keys
# to be writable by nobody else, so a mount below /tmp won't do: see StrictModes in sshd_config(5).

# shellcheck source=examples/common.sh
. "$(dirname "$0")/../common.sh"

ssh-keygen -q -t ed25519 -N '' -C host -f "$keys/host"
ssh-keygen -q -t ed25519 -N '' -C me -f "$keys/id"
cp "$keys/id.pub" "$keys/authorized_keys"

port=$(free_port)
sed -e "s|@KEYS@|$keys|" -e "s|@PORT@|$port|" "$(dirname "$0")/sshd_config" >"$work/sshd_config"
echo "[127.0.0.1]:$port $(cat "$keys/host.pub")" >"$work/known_hosts"
cat >"$work/ssh_config" <<END
Host server
    HostName 127.0.0.1
    Port $port
    User $(id -un)
    IdentityFile "$keys/id"
    IdentitiesOnly yes
    IdentityAgent none
    UserKnownHostsFile "$work/known_hosts"
    GlobalKnownHostsFile none
    StrictHostKeyChecking yes
    BatchMode yes
    ConnectTimeout 10
END

[ "$(id -u)" -ne 0 ] || mkdir -p -m 755 /run/sshd # where sshd locks its unprivileged half in; Debian's service makes it too
: >"$work/log"
/usr/sbin/sshd -D -e -f "$work/sshd_config" 2>>"$work/log" &
server=$!
wait_for_log 'Server listening on 127.0.0.1'

answer=$(ssh -F "$work/ssh_config" server 'echo "hello from $(id -un)"')
[ "$answer" = "hello from $(id -un)" ] || die "ssh: $answer"
echo "ok: ssh logged in with the identity in the mount, and sshd has shown the host key in the mount"

# Copy a secret to another machine, from secret memory into secret memory.
head -c 100000 /dev/urandom >"$keys/secret"
scp -q -F "$work/ssh_config" "$keys/secret" "server:$keys/copy"
cmp "$keys/secret" "$keys/copy"
echo "ok: scp copied a file from mount to mount"

# ssh refuses an identity that others could read. The mount keeps modes, so this protection works there too.
chmod 644 "$keys/id"
refused ssh -F "$work/ssh_config" server true
grep -q 'UNPROTECTED PRIVATE KEY FILE' "$work/refused" || die "ssh failed for another reason: $(cat "$work/refused")"
echo "ok: with mode 0644 ssh refuses the identity"
