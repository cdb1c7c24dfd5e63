"""Judge: PyPI `spiffe`, which knows what an X509-SVID is and checks no signatures.

usage: py_spiffe.py DIRECTORY      prints one line, "ACCEPTED <facts>" or "REFUSED <reason>"
"""

import pathlib
import sys

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from spiffe import X509Bundle, X509Svid
from spiffe.errors import PySpiffeError


def spki(public_key) -> bytes:
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def main() -> None:
    directory = pathlib.Path(sys.argv[1])
    try:
        svid = X509Svid.parse((directory / "chain.pem").read_bytes(), (directory / "key.pem").read_bytes())
        bundle = X509Bundle.parse(svid.spiffe_id.trust_domain, (directory / "bundle.pem").read_bytes())
    except PySpiffeError as refusal:
        print("REFUSED", str(refusal).replace("\n", " "))
        return
    if spki(svid.private_key.public_key()) != spki(svid.leaf.public_key()):
        print("REFUSED key.pem is not the key of the leaf")
        return
    print("ACCEPTED", svid.spiffe_id, "with", len(bundle.x509_authorities), "authorities")


main()
