"""The served report of a finished run in Debian's Chromium: a person signs in and reads it. `FEDPIPE_PICTURES=FOLDER` keeps pictures."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from browser import Browser, opened_browser
from report_servers import StandInReviews, reporter_of, served
from stand_in_cluster import KubeWorld

DESKTOP = (1280, 900)
TELEPHONE = (390, 844)


class Reader(NamedTuple):
    """A person's browser, the address of a run's report, and who may read it."""

    browser: Browser
    url: str
    reviews: StandInReviews


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    folder = tmp_path_factory.mktemp("reports")
    with opened_browser(folder / "browser") as browser:
        world, reviews, pages = KubeWorld(folder), StandInReviews(), folder / "pages"
        world.settle()
        pages.mkdir()
        with served(reporter_of(world, reviews, pages)) as port:
            yield Reader(browser, f"http://localhost:{port}/default/toy", reviews)


@pytest.fixture
def signed_in(reader: Reader) -> Reader:
    sign_in(reader, "viewers-token")
    return reader


def sign_in(reader: Reader, token: str) -> None:
    reader.browser.devtools("Network.clearBrowserCookies")
    reader.browser.resize(*DESKTOP)
    reader.browser.theme("light")
    reader.browser.open(reader.url)
    reader.browser.write("#token", token)
    reader.browser.submit("button")


def keep_picture(browser: Browser, name: str) -> None:
    """Store it, if somebody wants to look at it."""
    if folder := os.environ.get("FEDPIPE_PICTURES"):
        browser.picture(Path(folder) / f"{name}.png")


def without_missing_icon(complaints: list[str]) -> list[str]:
    """A browser asks by itself for an icon, and for the page before it signed in."""
    return [one for one in complaints if "/favicon.ico" not in one and "status of 401" not in one]


def test_a_person_signs_in_with_a_token_and_reads_the_report(reader: Reader) -> None:
    reader.browser.open(reader.url)
    assert reader.browser.texts("h1") == ["The report of default/toy"]
    keep_picture(reader.browser, "sign-in")

    sign_in(reader, "viewers-token")

    assert reader.browser.url() == reader.url
    assert reader.browser.texts("h1") == ["toy Complete"]
    assert reader.browser.texts("#rounds tr td:first-child") == ["1", "2"]
    assert reader.browser.texts("#why h3") == [f"The plan of site-{letter}, and why" for letter in "abc"]
    assert without_missing_icon(reader.browser.complaints()) == []


def test_every_figure_is_drawn(signed_in: Reader) -> None:
    figures = signed_in.browser.run("return Object.keys(JSON.parse(document.getElementById('figures').textContent))")
    drawn = signed_in.browser.run("return [...document.querySelectorAll('[id^=figure-] svg.main-svg')].length")

    assert {"metric", "plan", "forecast"} <= set(figures)
    assert drawn >= len(figures)


def test_the_browser_keeps_the_token_where_no_script_can_read_it(signed_in: Reader) -> None:
    cookies = signed_in.browser.devtools("Network.getCookies", urls=[signed_in.url])["cookies"]

    assert signed_in.browser.run("return document.cookie") == ""
    assert [(one["httpOnly"], one["secure"], one["sameSite"], one["session"]) for one in cookies] == [(True, True, "Strict", True)]


@pytest.mark.parametrize("size", [DESKTOP, TELEPHONE], ids=["desktop", "telephone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_part_of_the_page_is_wider_than_the_window(signed_in: Reader, size: tuple[int, int], theme: str) -> None:
    browser = signed_in.browser
    browser.resize(*size)
    browser.theme(theme)
    browser.open(signed_in.url)
    keep_picture(browser, f"report-{size[0]}-{theme}")

    assert browser.run("return document.documentElement.scrollWidth") <= size[0]
    assert without_missing_icon(browser.complaints()) == []


def test_the_theme_is_the_reader_s(signed_in: Reader) -> None:
    colours = []
    for theme in ("light", "dark"):
        signed_in.browser.theme(theme)
        colours.append(signed_in.browser.run("return getComputedStyle(document.body).backgroundColor"))

    assert colours == ["rgb(244, 246, 248)", "rgb(18, 22, 27)"]


def test_a_wrong_token_is_told_in_the_form_and_a_foreign_one_reads_nothing(reader: Reader) -> None:
    sign_in(reader, "no-token")
    wrong = reader.browser.texts("#problem")
    keep_picture(reader.browser, "wrong-token")
    sign_in(reader, "strangers-token")
    keep_picture(reader.browser, "forbidden")

    assert wrong == ["the API server does not know this token for fedpipe.io/report, or it has expired"]
    assert reader.browser.texts("h1") == ["Forbidden"]
    assert "you may not get the run default/toy, if there is one" in reader.browser.texts("p")[0]


def test_signing_out_forgets_the_token(signed_in: Reader) -> None:
    signed_in.browser.open(signed_in.url.removesuffix("default/toy"))
    signed_in.browser.submit("button")
    signed_in.browser.open(signed_in.url)

    assert signed_in.browser.texts("h1") == ["The report of default/toy"]
    signed_in.browser.complaints()
