"""Judge: PyPI `spiffe` as a client of the agent's Workload API.

usage: py_workload.py SOCKET       prints a JSON object a line for everything that it sees, until it is killed
"""

import json
import sys
import threading

from spiffe import JwtSvid, WorkloadApiClient
from spiffe.errors import PySpiffeError


def say(event: str, **facts: object) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def svid(it) -> dict:
    return {
        "id": str(it.spiffe_id),
        "serial": format(it.leaf.serial_number, "x"),
        "key_fits": it.private_key.public_key() == it.leaf.public_key(),
    }


def authorities(bundles) -> dict:
    return {str(it.trust_domain): len(it.x509_authorities) for it in bundles.bundles}


def refused(call) -> bool:
    try:
        call()
    except PySpiffeError:
        return True
    return False


def tokens(client) -> None:
    token = client.fetch_jwt_svid({"db"}).token
    bundles = client.fetch_jwt_bundles()
    (bundle,) = bundles.bundles
    say(
        "token",
        locally=str(JwtSvid.parse_and_validate(token, bundle, {"db"}).spiffe_id),
        by_agent=str(client.validate_jwt_svid(token, "db").spiffe_id),
        elsewhere_refused=refused(lambda: client.validate_jwt_svid(token, "mail")),
    )


def main() -> None:
    client = WorkloadApiClient(f"unix://{sys.argv[1]}", default_timeout=60)
    say("svid", **svid(client.fetch_x509_svid()))
    say("bundles", authorities=authorities(client.fetch_x509_bundles()))
    tokens(client)
    done = threading.Event()

    def updated(context) -> None:
        svids = [svid(it) for it in context.x509_svids]
        say("update", svids=svids, authorities=authorities(context.x509_bundle_set))

    def failed(fault: Exception) -> None:
        say("error", fault=str(fault))
        done.set()

    client.stream_x509_contexts(updated, failed, retry_connect=False)
    done.wait()
    try:
        client.fetch_x509_svid()
    except PySpiffeError as refusal:
        say("refused", fault=str(refusal))


main()
