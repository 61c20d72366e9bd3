"""The endpoints of the kubelet's probes, /healthz and /readyz, served by the event loop itself: if it is blocked, they do not answer."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from fedpipe_operator.handlers.health import Vitals, liveness_problems, readiness_problems

_UNAVAILABLE: Final = 503
_Handler = Callable[[web.Request], Awaitable[web.Response]]


@asynccontextmanager
async def served(port: int, vitals: Callable[[], Vitals], *, host: str = "0.0.0.0") -> AsyncIterator[None]:  # noqa: S104 -- the kubelet connects from the node
    """Serve both endpoints. Their bodies say what is wrong."""
    app = web.Application()
    for path, problems in {"/healthz": liveness_problems, "/readyz": readiness_problems}.items():
        app.router.add_get(path, _answering(problems, vitals))
    runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield
    finally:
        await runner.cleanup()


def _answering(problems: Callable[[Vitals], Sequence[str]], vitals: Callable[[], Vitals]) -> _Handler:
    async def answer(_request: web.Request) -> web.Response:
        found = problems(vitals())
        return web.Response(text="\n".join(found or ["ok"]) + "\n", status=_UNAVAILABLE if found else 200)

    return answer
