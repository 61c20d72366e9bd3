"""The endpoints of the kubelet's probes, /healthz and /readyz, served by the event loop itself: if it is blocked, they do not answer."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from fedpipe_operator.handlers.health import Vitals, liveness_problems, readiness_problems

_LOG: Final = logging.getLogger(__name__)
_ANY_HOST: Final = "0.0.0.0"  # noqa: S104 -- the kubelet connects from the node
_UNAVAILABLE: Final = 503
_Handler = Callable[[web.Request], Awaitable[web.Response]]
_Problems = Callable[[], Sequence[str]]


@asynccontextmanager
async def served(port: int, vitals: Callable[[], Vitals], *, host: str = _ANY_HOST) -> AsyncIterator[None]:
    """Serve both endpoints. Their bodies say what is wrong."""
    async with _answered(port, host, alive=lambda: liveness_problems(vitals()), ready=lambda: readiness_problems(vitals())):
        yield


async def wait_while(problem: Callable[[], str | None], port: int, *, poll_seconds: float, host: str = _ANY_HOST) -> None:
    """Wait as long as there is this problem, alive and not ready: a restart would not solve it, and whoever looks at the pod reads it."""
    found = problem()
    if found is None:
        return
    async with _answered(port, host, alive=lambda: (), ready=lambda: (found,) if found else ()):
        while found is not None:
            _LOG.error("not ready: %s", found)
            await asyncio.sleep(poll_seconds)
            found = problem()


@asynccontextmanager
async def _answered(port: int, host: str, *, alive: _Problems, ready: _Problems) -> AsyncIterator[None]:
    app = web.Application()
    for path, problems in {"/healthz": alive, "/readyz": ready}.items():
        app.router.add_get(path, _answering(problems))
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield
    finally:
        await runner.cleanup()


def _answering(problems: _Problems) -> _Handler:
    async def answer(_request: web.Request) -> web.Response:
        found = problems()
        return web.Response(text="\n".join(found or ["ok"]) + "\n", status=_UNAVAILABLE if found else 200)

    return answer
