"""The API server for the benchmark itself: the administrator's calls, many at once."""

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
    """Plain dicts in and out."""

    def __init__(self, kubeconfig: Path) -> None:
        told = json.loads(kubeconfig.read_text())
        self.server, token = told["clusters"][0]["cluster"]["server"], told["users"][0]["user"]["token"]
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # our own server, on loopback
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        self.session = aiohttp.ClientSession(connector=connector, headers={"Authorization": f"Bearer {token}"}, timeout=timeout)
        self._free = asyncio.Semaphore(_MAX_CONCURRENT)

    async def close(self) -> None:
        """Let go of all connections."""
        await self.session.close()

    async def get(self, path: str) -> Plain:
        """What is there."""

        async def ask() -> Plain:
            async with self._free, self.session.get(self.server + path) as answer:
                answer.raise_for_status()
                found: Plain = await answer.json()
                return found

        return await patiently(ask)

    async def create_all(self, wanted: Iterable[Plain]) -> None:
        """Create these objects."""
        await asyncio.gather(*(self.create(one) for one in wanted))

    async def create(self, body: Plain) -> None:
        """Create this object."""
        path = _PATHS[body["kind"]].format(namespace=body["metadata"].get("namespace"))
        async with self._free, self.session.post(self.server + path, json=body) as answer:
            answer.raise_for_status()

    async def patch(self, path: str, change: Plain) -> bool:
        """Merge this into what is there; whether it was there."""
        headers = {"Content-Type": "application/merge-patch+json"}

        async def ask() -> bool:
            async with self._free, self.session.patch(self.server + path, data=json.dumps(change), headers=headers) as answer:
                if answer.status not in (404, 409):
                    answer.raise_for_status()
                return answer.ok

        return await patiently(ask)

    async def watch(self, path: str) -> AsyncIterator[Plain]:
        """Everything that is there, then all that comes, again and again; an object may come twice."""
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


async def patiently(ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Once more after a pause where the server is busy, or had closed a connection that was idle."""
    for pause in _PAUSES:
        try:
            return await ask()
        except (aiohttp.ClientError, TimeoutError):
            await asyncio.sleep(pause)
    return await ask()
