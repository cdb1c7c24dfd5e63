#!/bin/sh
# Makes the key that the tests sign RS and PS tokens with: ring makes no RSA keys. It is used nowhere else.
set -eu
cd "$(dirname "$0")"
openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -outform DER 2>/dev/null |
  openssl pkcs8 -topk8 -nocrypt -inform DER -outform DER -out rsa2048.pk8.der
openssl pkey -inform DER -in rsa2048.pk8.der -pubout -outform DER -out rsa2048.spki.der
