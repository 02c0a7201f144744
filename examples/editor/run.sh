#!/bin/sh
# Edit a secret where it lies: with editors that write a new file and rename it, and with some that write in place.
#
#   secretfs mount ~/keys && sh examples/editor/run.sh ~/keys
#
# Mind what an editor leaves elsewhere. vim keeps a swap file, a backup, an undo file and ~/.viminfo: the options below
# keep them in the mount or switch them off.

# shellcheck source=examples/common.sh
. "$(dirname "$0")/../common.sh"

file=$keys/settings
printf 'user=me\npassword=one\n' >"$file"
chmod 640 "$file"

# password $1: is it in the file, with the mode as it was, and is nothing left beside it?
now() {
    [ "$(cat "$file")" = "$(printf 'user=me\npassword=%s' "$1")" ] || die "wrong contents: $(cat "$file")"
    [ "$(stat -c %a "$file")" = 640 ] || die "the mode has changed"
    [ "$(ls -A "$keys")" = settings ] || die "left behind: $(ls -A "$keys")"
}
inode() {
    stat -c %i "$file"
}

# By rename: afterwards the name leads to another inode.
before=$(inode)
vim -u NONE -i NONE -N -es -c 'set directory=. backupdir=. noundofile backupcopy=no' \
    -c '%s/one/two/' -c 'wq' "$file" </dev/null
now two
[ "$(inode)" != "$before" ] || die "vim wrote in place"
echo "ok: vim"

before=$(inode)
sed -i 's/two/three/' "$file"
now three
[ "$(inode)" != "$before" ] || die "sed wrote in place"
echo "ok: sed -i"

before=$(inode)
printf 'user=me\npassword=four\n' | /usr/bin/python3 "$(dirname "$0")/atomic_write.py" "$file"
now four
[ "$(inode)" != "$before" ] || die "it was written in place"
echo "ok: a Python program that replaces it atomically"

# In place: the inode stays.
before=$(inode)
printf '/four/s//five5/\nw\nq\n' | ed -s "$file"
now five5
printf 'SIX66' | dd of="$file" bs=1 seek=17 conv=notrunc status=none
now SIX66
vim -u NONE -i NONE -N -es -c 'set directory=. backupdir=. noundofile backupcopy=yes' \
    -c '%s/SIX66/seven/' -c 'wq' "$file" </dev/null
now seven
[ "$(inode)" = "$before" ] || die "it was not written in place"
echo "ok: ed, dd and vim in place"
