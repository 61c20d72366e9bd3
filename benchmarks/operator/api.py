"""The benchmark's own client of the API server: the administrator's calls, many at once."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

Plain = dict[str, Any]
Answer = TypeVar("Answer")

_MAX_CONCURRENT = 16
_PAUSES = (1.0, 5.0, 15.0)
_PATHS = {
    "Node": "/api/v1/nodes",
    "EdgeSite": "/apis/fedpipe.io/v1alpha1/namespaces/{namespace}/edgesites",
    "FederatedFineTune": "/apis/fedpipe.io/v1alpha1/namespaces/{namespace}/federatedfinetunes",
}


class Api:
    """A client that takes and returns plain dicts."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        self.server, token = config["clusters"][0]["cluster"]["server"], config["users"][0]["user"]["token"]
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # our own server, on loopback
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self.session = aiohttp.ClientSession(connector=connector, headers={"Authorization": f"Bearer {token}"}, timeout=timeout)
        self._free = asyncio.Semaphore(_MAX_CONCURRENT)

    async def close(self) -> None:
        """Close all connections."""
        await self.session.close()

    async def get(self, path: str) -> Plain:
        """Get an object or a list."""

        async def request() -> Plain:
            async with self._free, self.session.get(self.server + path) as answer:
                answer.raise_for_status()
                found: Plain = await answer.json()
                return found

        return await with_retries(request)

    async def create_all(self, wanted: Iterable[Plain]) -> None:
        """Create these objects."""
        await asyncio.gather(*(self.create(one) for one in wanted))

    async def create(self, body: Plain) -> None:
        """Create this object."""
        path = _PATHS[body["kind"]].format(namespace=body["metadata"].get("namespace"))
        async with self._free, self.session.post(self.server + path, json=body) as answer:
            answer.raise_for_status()

    async def patch(self, path: str, change: Plain) -> bool:
        """Apply a merge patch; return whether the object exists and accepts it."""
        headers = {"Content-Type": "application/merge-patch+json"}

        async def request() -> bool:
            async with self._free, self.session.patch(self.server + path, data=json.dumps(change), headers=headers) as answer:
                if answer.status not in (404, 409):
                    answer.raise_for_status()
                return answer.ok

        return await with_retries(request)

    async def watch(self, path: str) -> AsyncIterator[Plain]:
        """List and watch, and again after an error; an object may be yielded twice."""
        while True:
            try:
                async with self.session.get(f"{self.server}{path}&watch=1", read_bufsize=2**22) as answer:
                    async for line in answer.content:
                        event = json.loads(line)
                        if event["type"] == "ERROR":
                            break
                        yield event
            except aiohttp.ClientError:  # the server is busy
                await asyncio.sleep(1)


async def with_retries(request: Callable[[], Awaitable[Answer]]) -> Answer:
    """Retry after a pause if the server is busy or has closed an idle connection."""
    for pause in _PAUSES:
        try:
            return await request()
        except (aiohttp.ClientError, TimeoutError):
            await asyncio.sleep(pause)
    return await request()
