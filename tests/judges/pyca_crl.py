"""Judge: PyPI `cryptography`, of the revocation list in crl.pem, signed by the second certificate of chain.pem.

usage: pyca_crl.py DIRECTORY      prints one line, "ACCEPTED <facts>" or "REFUSED <reason>"
"""

import pathlib
import sys

from cryptography import x509


def main() -> None:
    directory = pathlib.Path(sys.argv[1])
    leaf, issuer, *_ = x509.load_pem_x509_certificates((directory / "chain.pem").read_bytes())
    try:
        crl = x509.load_pem_x509_crl((directory / "crl.pem").read_bytes())
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        authority = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    except ValueError as refusal:
        print("REFUSED", str(refusal).replace("\n", " "))
        return
    subject = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    if crl.issuer != issuer.subject or authority.key_identifier != subject.digest:
        print("REFUSED it names another issuer")
    elif not crl.is_signature_valid(issuer.public_key()):
        print("REFUSED the signature is not its issuer's")
    elif crl.next_update_utc != issuer.not_valid_after_utc:
        print("REFUSED it may not be used until its issuer's end")
    else:
        listed = crl.get_revoked_certificate_by_serial_number(leaf.serial_number) is not None
        print("ACCEPTED", "number", number, "entries", len(crl), "leaf", "listed" if listed else "not listed")


main()
