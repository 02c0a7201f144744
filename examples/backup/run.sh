#!/bin/sh
# Copy, mirror and back up what is in a secretfs mount, and restore it: cp, rsync, tar.
#
#   secretfs mount ~/keys && sh examples/backup/run.sh ~/keys
#
# A mount is gone at reboot, so keep a backup. In the clear it would be a secret on a disk: here it is encrypted on the
# way, and nothing readable is ever written outside the mount. (Keep the passphrase elsewhere.)

# shellcheck source=examples/common.sh
. "$(dirname "$0")/../common.sh"

# Some secrets: files, folders, links of both kinds, an empty folder, a hole, an extended attribute.
live=$keys/live
mkdir -p "$live/tls/old" "$live/empty"
openssl genpkey -quiet -algorithm ed25519 -out "$live/tls/server.key"
ln "$live/tls/server.key" "$live/tls/same.key"
ln -s tls/server.key "$live/current"
head -c 70000 /dev/urandom >"$live/tls/old/archive"
truncate -s 300000 "$live/holes"
setfattr -n user.comment -v "renew in May" "$live/tls/server.key"
chmod 640 "$live/tls/server.key"
touch -d '2001-02-03 04:05:06.789012345' "$live/tls/server.key" "$live/empty"

# rsync says which files differ in anything: contents, modes, owners, times, links, attributes.
same() {
    changes=$(rsync --archive --hard-links --xattrs --checksum --dry-run --itemize-changes --delete "$1/" "$2/")
    [ -z "$changes" ] || die "$1 and $2 differ: $changes"
    diff -r "$1" "$2"
}

cp -a "$live" "$keys/copy"
same "$live" "$keys/copy"
echo "ok: cp -a"

rsync --archive --hard-links --xattrs "$live/" "$keys/mirror"
same "$live" "$keys/mirror"
rm "$live/tls/old/archive"
rsync --archive --hard-links --xattrs --delete "$live/" "$keys/mirror"
same "$live" "$keys/mirror"
[ ! -e "$keys/mirror/tls/old/archive" ] || die "rsync --delete left a file"
echo "ok: rsync mirrors, and follows a deletion"

openssl rand -hex 32 >"$keys/passphrase"
tar --create --xattrs --sparse --directory "$live" . |
    openssl enc -aes-256-ctr -pbkdf2 -pass "file:$keys/passphrase" -out "$work/backup.tar.enc"
mkdir "$keys/restored"
openssl enc -d -aes-256-ctr -pbkdf2 -pass "file:$keys/passphrase" -in "$work/backup.tar.enc" |
    tar --extract --xattrs --preserve-permissions --directory "$keys/restored"
same "$live" "$keys/restored"
[ "$(getfattr --absolute-names --only-values -n user.comment "$keys/restored/current")" = "renew in May" ] || die "an attribute is lost"
echo "ok: an encrypted tar archive, restored"
