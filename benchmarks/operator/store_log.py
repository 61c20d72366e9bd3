"""What MinIO was asked: it tells of each request, and the requests of the operator and its aggregations are counted by kind."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field

from aiohttp import web

_OURS = "Boto3"
_LOOK = re.compile(r"/rounds/(?!0000)\d{4}$")
"""Round 0's folder is listed beside round 1's."""


@dataclass
class StoreLog:
    """Requests by name of the API."""

    calls: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    """Turns of runs: each lists the folder of the round under way, and where one begins, of the one before."""

    async def serve(self, port: int) -> web.AppRunner:
        """Listen for MinIO."""
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/", self._take)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return runner

    async def _take(self, request: web.Request) -> web.Response:
        for line in (await request.text()).splitlines():
            if line:
                self._note(json.loads(line))
        return web.Response()

    def _note(self, entry: dict[str, object]) -> None:
        asked, query = entry.get("api"), entry.get("requestQuery") or {}
        if isinstance(asked, dict) and isinstance(query, dict) and _OURS in str(entry.get("userAgent")):
            self.calls[str(asked.get("name"))] += 1
            self.turns += bool(_LOOK.search(str(query.get("prefix", ""))))
