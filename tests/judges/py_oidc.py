"""Judge: PyJWT as a relying party of OpenID Connect, and PyPI `spiffe` on the same keys and the same token.

usage: py_oidc.py ISSUER AUDIENCE ROOTS      reads the token from RHIZOME_TEST_TOKEN, prints its claims as JSON

It is told the issuer and nothing else: where the keys are, it learns by discovery.
"""

import json
import os
import ssl
import sys
import urllib.request

import jwt
from spiffe import JwtBundle, JwtSvid, TrustDomain


def main() -> None:
    issuer, audience, roots = sys.argv[1:]
    context = ssl.create_default_context(cafile=roots)
    with urllib.request.urlopen(f"{issuer}/.well-known/openid-configuration", context=context) as answer:
        discovered = json.load(answer)
    if discovered["issuer"] != issuer:
        sys.exit(f"discovery names the issuer {discovered['issuer']}")
    token = os.environ["RHIZOME_TEST_TOKEN"]
    key = jwt.PyJWKClient(discovered["jwks_uri"], ssl_context=context).get_signing_key_from_jwt(token)
    claims = jwt.decode(
        token,
        key.key,
        algorithms=discovered["id_token_signing_alg_values_supported"],
        audience=audience,
        issuer=issuer,
        options={"require": ["exp", "iat", "iss", "sub", "aud"]},
    )
    with urllib.request.urlopen(discovered["jwks_uri"], context=context) as answer:
        bundle = JwtBundle.parse(TrustDomain(claims["sub"].split("/")[2]), answer.read())
    svid = JwtSvid.parse_and_validate(token, bundle, {audience})
    if str(svid.spiffe_id) != claims["sub"]:
        sys.exit(f"spiffe says {svid.spiffe_id}")
    print(json.dumps(claims))


main()
