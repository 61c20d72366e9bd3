"""What a tracker is shown, so that it lets the operator write: from a Secret, or on one machine from the environment. Pure."""

import base64
from collections.abc import Mapping
from typing import Final, NamedTuple

from fedpipe_operator.errors import UserError

USERNAME, PASSWORD, TOKEN = LOGIN = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""The keys of the Secret, which are the variables of MLflow's own client."""
_SECRET_MAX: Final = 8192


class Login(NamedTuple):
    """A token, or a name and a password; neither: nothing is shown. `repr` hides them."""

    username: str = ""
    password: str = ""
    token: str = ""

    def __repr__(self) -> str:
        return "Login(…)"

    @property
    def headers(self) -> dict[str, str]:
        """Of each request."""
        if self.token:
            return {"Authorization": f"Bearer {self.token}"}
        if self.username:
            pair = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
            return {"Authorization": f"Basic {pair}"}
        return {}


def login_in(values: Mapping[str, str], where: str) -> Login:
    """The login in these values, without the spaces and the end of a line that a file leaves around them.

    Raises:
        UserError: `SecretIncomplete`, `SecretInvalid`. `where` names what has the values.
    """
    found = {name: values.get(name, "").strip() for name in LOGIN}
    if any(not value.isprintable() or len(value) > _SECRET_MAX for value in found.values()):
        what = f"{where} has a value of several lines, or of more than {_SECRET_MAX} characters"
        raise UserError("SecretInvalid", f"{what}, in {', '.join(LOGIN)}: correct it")
    if not found[TOKEN] and not (found[USERNAME] and found[PASSWORD]):
        raise UserError("SecretIncomplete", f"{where} has no {TOKEN}, and not both {USERNAME} and {PASSWORD}: add the one or the others")
    return Login(found[USERNAME], found[PASSWORD], found[TOKEN])
