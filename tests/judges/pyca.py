"""Judge: PyPI `cryptography`, path validation for a TLS client (its server verifier needs a DNS name or an address).

usage: pyca.py DIRECTORY      prints one line, "ACCEPTED <facts>" or "REFUSED <reason>"
"""

import pathlib
import sys

from cryptography import x509
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID


def main() -> None:
    directory = pathlib.Path(sys.argv[1])
    leaf, *intermediates = x509.load_pem_x509_certificates((directory / "chain.pem").read_bytes())
    roots = x509.load_pem_x509_certificates((directory / "bundle.pem").read_bytes())
    verifier = verification.PolicyBuilder().store(verification.Store(roots)).build_client_verifier()
    try:
        verified = verifier.verify(leaf, intermediates)
    except verification.VerificationError as refusal:
        print("REFUSED", str(refusal).replace("\n", " "))
        return
    usages = set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    wanted = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    if usages != wanted:
        print("REFUSED extended key usages are", sorted(usage.dotted_string for usage in usages))
        return
    names = [name.value for name in verified.subjects or []]
    print("ACCEPTED", "chain of", len(verified.chain), "for", *names)


main()
