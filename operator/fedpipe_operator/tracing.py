"""Traces by OpenTelemetry: a span for each reconcile, and in it one for each call of the API server or of a store.

Only where the operator is given an endpoint: otherwise nothing of OpenTelemetry is imported, and a span costs the look at a variable. A
span has the fields that the lines of the log have. Of an error it has the reason and not the message, which may quote a URL.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from fedpipe_operator import logs
from fedpipe_operator.errors import FedPipeError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Tracer

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

SERVICE: Final = "fedpipe-operator"


@dataclass
class _Tracing:
    """Of this process."""

    tracer: "Tracer | None" = None


_TRACING: Final = _Tracing()


def configure(endpoint: str, version: str) -> None:
    """Send the spans of this process by OTLP over HTTP to `endpoint`, such as `http://collector:4318`; nowhere if it is empty."""
    if endpoint:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 -- only if it is used
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415 -- likewise

        start(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")), version)


def start(processor: "SpanProcessor", version: str) -> None:
    """Give the spans of this process to `processor` from now on."""
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 -- only if it is used
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415 -- likewise

    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE, "service.version": version}))
    provider.add_span_processor(processor)
    _TRACING.tracer = provider.get_tracer(SERVICE, version)


def stop() -> None:
    """Make no further spans."""
    _TRACING.tracer = None


@contextmanager
def span(name: str, **attributes: str) -> Iterator[None]:
    """A span of this name around what is done in this context, about what the lines of the log are about there."""
    if _TRACING.tracer is None:
        yield
        return
    from opentelemetry.trace import StatusCode  # noqa: PLC0415 -- only if it is used

    fields: dict[str, str | int] = {f"fedpipe.{field}": value for field, value in logs.bound().items() if isinstance(value, str | int)}
    started = _TRACING.tracer.start_as_current_span(
        name, attributes={**fields, **attributes}, record_exception=False, set_status_on_exception=False
    )
    with started as current:
        try:
            yield
        except BaseException as error:
            current.set_status(StatusCode.ERROR)
            current.set_attribute("error.type", error.reason if isinstance(error, FedPipeError) else type(error).__name__)
            raise


def traced(name: Callable[..., str]) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Have each call of a function be a span, whose name depends on the arguments."""

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        @wraps(function)
        def call(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
            with span(name(*arguments, **named)):
                return function(*arguments, **named)

        return call

    return decorate
