"""Where the operator writes a run's figures for people who compare runs: an MLflow server, and TensorBoard's event files in the store."""

from typing import Annotated, Final

from pydantic import Field

from fedpipe_operator.api.meta import ApiModel, SecretReference

TRACKING_URI_PATTERN: Final = r"^https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*/?$"
EXPERIMENT_PATTERN: Final = r"^[A-Za-z0-9_][A-Za-z0-9 ._/-]*$"


class MlflowSpec(ApiModel):
    """An MLflow server."""

    tracking_uri: Annotated[str, Field(pattern=TRACKING_URI_PATTERN, max_length=1024)]
    """URL of the server, as in `MLFLOW_TRACKING_URI`, with the path where a gateway serves it."""
    experiment: Annotated[str, Field(pattern=EXPERIMENT_PATTERN, max_length=256)] = "fedpipe"
    """Name of the experiment, which is created if there is none."""
    credentials_secret_ref: SecretReference | None = None
    """A Secret of the run's namespace with `MLFLOW_TRACKING_USERNAME` and `MLFLOW_TRACKING_PASSWORD`, or `MLFLOW_TRACKING_TOKEN`."""


class TrackingSpec(ApiModel):
    """Where the operator writes the run's figures for people who compare runs. No round waits for a tracker or fails for one."""

    mlflow: MlflowSpec | None = None
    """An MLflow server. What is written says of a site what the run's metrics say."""
    tensorboard: bool = False
    """Whether TensorBoard's event files are written, into the folder `tensorboard` of the run's store."""
