"""Counts MinIO's requests by kind: MinIO reports each request, and those of the operator and its aggregations are counted."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field

from aiohttp import web

_USER_AGENT = "Boto3"
_ROUND_LISTING = re.compile(r"/rounds/(?!0000)\d{4}$")
"""Without round 0, whose folder is listed together with that of round 1."""


@dataclass
class StoreLog:
    """Request counts by the name of the API call."""

    calls: Counter[str] = field(default_factory=Counter)
    reconciles: int = 0
    """Reconciles of runs: each lists the folder of the current round and, at its start, of the previous one."""

    async def serve(self, port: int) -> web.AppRunner:
        """Serve the endpoint to which MinIO sends its audit log."""
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/", self._receive)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return runner

    async def _receive(self, request: web.Request) -> web.Response:
        for line in (await request.text()).splitlines():
            if line:
                self._count(json.loads(line))
        return web.Response()

    def _count(self, entry: dict[str, object]) -> None:
        call, query = entry.get("api"), entry.get("requestQuery") or {}
        if isinstance(call, dict) and isinstance(query, dict) and _USER_AGENT in str(entry.get("userAgent")):
            self.calls[str(call.get("name"))] += 1
            self.reconciles += bool(_ROUND_LISTING.search(str(query.get("prefix", ""))))
