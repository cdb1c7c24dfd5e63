#!/bin/sh
# Makes the requests and keys that the unit tests read, with openssl 3 and python 3. The private keys are thrown away.
# Run in this directory; the tests need the files to be as described, not to be byte for byte the same.
set -eu
keys=$(mktemp -d)
trap 'rm -rf "$keys"' EXIT

request() { # name, extra openssl req arguments
    name=$1
    shift
    openssl req -new -key "$keys/key.pem" -subj "${SUBJECT-/}" -outform DER -out "$name.csr.der" "$@"
}
rsa() { openssl genpkey -quiet -algorithm RSA -pkeyopt "rsa_keygen_bits:$1" -pkeyopt "rsa_keygen_pubexp:$2" -out "$keys/key.pem"; }
ec() { openssl genpkey -quiet -algorithm EC -pkeyopt "ec_paramgen_curve:$1" -out "$keys/key.pem"; }

rsa 1024 65537; request rsa1024 -sha256
rsa 2048 3;     request rsa2048_e3 -sha256
rsa 4096 65537; request rsa4096 -sha512
rsa 3072 65537; request rsa3072 -sha384
rsa 4104 65537; request rsa4104 -sha256
rsa 2048 65537; request rsa2048 -sha256
request rsa2048_sha1 -sha1
# As Istio agents send it: organisation in the subject, the SPIFFE ID as the only name.
SUBJECT=/O=istio request istio_agent -sha256 -addext "subjectAltName=critical,URI:spiffe://cluster.local/ns/a/sa/b"
ec P-521;     request p521 -sha512
ec secp256k1; request secp256k1 -sha256
ec P-384;     request p384 -sha384
openssl genpkey -quiet -algorithm ED25519 -out "$keys/key.pem"; request ed25519
ec P-256;     request p256 -sha256
# As cert-manager and others send it: everything a leaf could want.
SUBJECT=/CN=web request harmless -sha256 -addext "subjectAltName=DNS:web,DNS:web.example,IP:10.0.0.1,email:a@example.org" \
    -addext "keyUsage=critical,digitalSignature,keyEncipherment" -addext "extendedKeyUsage=serverAuth,clientAuth" \
    -addext "basicConstraints=critical,CA:FALSE" -addext "subjectKeyIdentifier=hash"
request ca_true -sha256 -addext "basicConstraints=critical,CA:TRUE"
request key_cert_sign -sha256 -addext "keyUsage=keyCertSign"
request crl_sign -sha256 -addext "keyUsage=cRLSign"
request must_staple -sha256 -addext "tlsfeature=status_request"
printf '[req]\ndistinguished_name=dn\nattributes=at\nprompt=no\n[dn]\nCN=a\n[at]\nchallengePassword=secret99\n' > "$keys/challenge.cnf"
openssl req -new -key "$keys/key.pem" -config "$keys/challenge.cnf" -outform DER -out challenge_password.csr.der

# A modulus with the ROCA fingerprint: modulo every small odd prime it is a power of 65537. Not a product of two
# primes, so there is no private key.
python3 - <<'PYTHON'
import random
random.seed(15361)
primes = [p for p in range(3, 168) if all(p % d for d in range(2, p))]
product = 1
for p in primes:
    product *= p
base = pow(65537, random.getrandbits(200), product)
while True:
    n = base + product * random.getrandbits(2048 - product.bit_length())
    if n.bit_length() == 2048 and n & 1:
        break
def der(tag, body):
    size = len(body)
    head = bytes([size]) if size < 128 else bytes([0x80 + (size.bit_length() + 7) // 8]) + size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag]) + head + body
number = lambda v: der(2, v.to_bytes(v.bit_length() // 8 + 1, "big"))
key = der(0x30, number(n) + number(65537))
spki = der(0x30, bytes.fromhex("300d06092a864886f70d0101010500") + der(3, b"\0" + key))
open("roca.spki.der", "wb").write(spki)
PYTHON
