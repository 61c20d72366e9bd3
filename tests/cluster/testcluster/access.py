"""Authentication: a token for each component and for the administrator, and their kubeconfigs."""

import base64
import json
import secrets

from testcluster.layout import API_PORT, HOST, NODES, Layout

ADMIN = "admin"
CONTROLLER_MANAGER = "system:kube-controller-manager"
SCHEDULER = "system:kube-scheduler"
PROXY = "system:kube-proxy"

GROUPS = {ADMIN: "system:masters", CONTROLLER_MANAGER: "", SCHEDULER: "", PROXY: ""} | {
    f"system:node:{node.name}": "system:nodes" for node in NODES
}
"""Each user's group, if it needs one."""


def token_lines(tokens: dict[str, str]) -> str:
    """The lines of the API server's token file."""
    return "".join(f"{token},{user},{user}{f',{GROUPS[user]}' if GROUPS[user] else ''}\n" for user, token in tokens.items())


def kubeconfig(*, user: str, token: str, authority: bytes) -> str:
    """The kubeconfig of one user, as JSON, which is YAML."""
    cluster = {"server": f"https://{HOST}:{API_PORT}", "certificate-authority-data": base64.b64encode(authority).decode()}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "fedpipe-test", "cluster": cluster}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "fedpipe-test", "context": {"cluster": "fedpipe-test", "user": user}}],
        "current-context": "fedpipe-test",
    }
    return json.dumps(document, indent=2) + "\n"


def write_all(layout: Layout) -> None:
    """Write the token file and the kubeconfigs, unless they exist."""
    if (layout.run / "tokens.csv").exists():
        return
    tokens = {user: secrets.token_hex(24) for user in GROUPS}
    authority = layout.certificate("ca").read_bytes()
    (layout.run / "users").mkdir(exist_ok=True)
    for user, token in tokens.items():
        file = layout.kubeconfig if user == ADMIN else layout.user(user.rpartition(":")[2])
        file.write_text(kubeconfig(user=user, token=token, authority=authority))
        file.chmod(0o600)
    tokens_file = layout.run / "tokens.csv"
    tokens_file.write_text(token_lines(tokens))
    tokens_file.chmod(0o600)
