#!/bin/sh
# Compiles secret.c against the library of the secretfs on PATH (or $SECRETFS) and runs it.
set -eu
here=$(dirname "$0")
PKG_CONFIG_PATH=$("${SECRETFS:-secretfs}" preload --print-pkgconfig)
export PKG_CONFIG_PATH
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# shellcheck disable=SC2046 # options, one word each
cc -Wall -Wextra -Werror -o "$folder/secret" "$here/secret.c" $(pkg-config --cflags --libs secretfs)
"$folder/secret"
