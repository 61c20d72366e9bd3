"""When each watch was last requested: kopf's requests are seen where they are sent, by a session of aiohttp on a real server."""

import asyncio
from collections.abc import Sequence

import aiohttp
from aiohttp import web
from free_ports import free_port

from fedpipe_operator.handlers.health import WatchAge
from fedpipe_operator.handlers.watch_requests import WatchRequests, watched_paths

RUNS, SITES, JOBS = (
    "/apis/fedpipe.io/v1alpha1/federatedfinetunes",
    "/apis/fedpipe.io/v1alpha1/edgesites",
    "/apis/batch/v1/jobs",
)


def test_there_is_a_watch_of_each_kind_in_each_namespace_and_of_the_nodes() -> None:
    assert watched_paths((), with_nodes=True) == [RUNS, SITES, JOBS, "/api/v1/nodes"]
    assert watched_paths(("wards", "labs"), with_nodes=False)[::3] == [
        "/apis/fedpipe.io/v1alpha1/namespaces/wards/federatedfinetunes",
        "/apis/fedpipe.io/v1alpha1/namespaces/labs/federatedfinetunes",
    ]


def requested(urls: Sequence[str], *, status: int = 200) -> WatchRequests:
    """What is known after these requests to a server that answers so."""

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status)

    async def ask() -> WatchRequests:
        watches = WatchRequests([RUNS, JOBS], clock=iter(range(100)).__next__)
        app, port = web.Application(), free_port()
        app.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        async with aiohttp.ClientSession(trace_configs=[watches.trace()]) as session:
            for url in urls:
                async with session.get(f"http://127.0.0.1:{port}{url}"):
                    pass
        await runner.cleanup()
        return watches

    return asyncio.run(ask())


def test_a_watch_is_established_when_it_is_granted_and_all_are_when_each_is() -> None:
    listed = requested([RUNS, f"{RUNS}?watch=true", JOBS])
    watched = requested([RUNS, f"{RUNS}?watch=true", JOBS, f"/k8s/clusters/one{JOBS}?watch=true&labelSelector=fedpipe.io/run"])

    assert [(one.name, one.is_established) for one in listed.ages()] == [(RUNS, True), (JOBS, False)]
    assert not listed.established.is_set()
    assert watched.established.is_set()


def test_a_list_counts_as_a_request_and_so_does_one_that_is_refused() -> None:
    assert requested([RUNS, RUNS, "/api/v1/pods"]).ages() == [
        WatchAge(RUNS, 1, is_established=False),
        WatchAge(JOBS, None, is_established=False),
    ]

    refused = requested([f"{JOBS}?watch=true"], status=403)
    assert refused.ages() == [WatchAge(RUNS, None, is_established=False), WatchAge(JOBS, 1, is_established=False)]


def test_a_watch_of_one_namespace_is_not_that_of_another() -> None:
    paths = watched_paths(("wards",), with_nodes=False)
    watches = WatchRequests(paths)

    watches.granted("/apis/fedpipe.io/v1alpha1/namespaces/labs/federatedfinetunes")
    watches.granted(paths[0])

    assert [one.is_established for one in watches.ages()] == [True, False, False]
