#!/bin/sh
# Make private keys straight into a secretfs mount, and use them with openssl.
#
#   secretfs mount ~/keys && sh examples/openssl/run.sh ~/keys
#
# None of the keys ever touches a disk. `openssl genpkey` creates its file with mode 0600 by itself.

# shellcheck source=examples/common.sh
. "$(dirname "$0")/../common.sh"

openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$keys/ec.key"
openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$keys/rsa.key"
openssl genpkey -quiet -algorithm ed25519 -out "$keys/ed25519.key"
echo "what is to be signed" >"$work/message"

for kind in ec rsa ed25519; do
    key=$keys/$kind.key
    [ "$(stat -c %a "$key")" = 600 ] || die "$key is open to others"

    # The key is complete, and its public half can be had from it.
    openssl pkey -in "$key" -check -noout >/dev/null
    openssl pkey -in "$key" -pubout -out "$work/$kind.pub"

    # A request to a certificate authority, and a certificate signed by the key itself.
    openssl req -new -key "$key" -subj "/CN=$kind.example" -out "$work/$kind.csr"
    openssl req -in "$work/$kind.csr" -verify -noout 2>/dev/null
    openssl req -x509 -key "$key" -subj "/CN=$kind.example" -days 1 -out "$work/$kind.crt"
    openssl verify -CAfile "$work/$kind.crt" "$work/$kind.crt" >/dev/null

    # A signature. (ed25519 hashes for itself, which `dgst` of OpenSSL 3.0 can't do.)
    if [ "$kind" = ed25519 ]; then
        openssl pkeyutl -sign -rawin -inkey "$key" -in "$work/message" -out "$work/signature"
        openssl pkeyutl -verify -rawin -pubin -inkey "$work/$kind.pub" -in "$work/message" \
            -sigfile "$work/signature" >/dev/null
    else
        openssl dgst -sha256 -sign "$key" -out "$work/signature" "$work/message"
        openssl dgst -sha256 -verify "$work/$kind.pub" -signature "$work/signature" "$work/message" >/dev/null
    fi
    echo "ok: $kind key made in the mount, checked, certified, signed with"
done
