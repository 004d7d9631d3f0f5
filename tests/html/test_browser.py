"""The page of a report in headless Chromium: search, filters and paging by row counts, no error, no request.

Skipped where neither Playwright nor a browser is installed; ``CHROMIUM`` names one.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import ms_prefstream as mps
from ms_prefstream.html.build import inspect_report, stats_report
from ms_prefstream.html.page import Report, write_report
from ms_prefstream.html.samples import Samples
from ms_prefstream.inspection import FoundRow
from ms_prefstream.inspection.encoded import EncodedRow

from .rows import HOSTILE, lines, write

pytestmark = pytest.mark.slow

playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

COUNT = 290
OPTIONS = {"task": mps.DPO(160), "tokenizer": "bytes"}
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as started:
        try:
            found = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield found
        found.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("reports")
    path = str(write(folder / "rows.jsonl", COUNT))
    inspect_report(folder / "inspect.html", path, 10_000, OPTIONS)
    inspect_report(folder / "tokens.html", path, 30, OPTIONS, with_tokens=True)
    stats_report(folder / "stats.html", mps.stats(path, tokenizer="bytes").to_dict(), path, {**OPTIONS, "task": None})
    return folder


@pytest.fixture
def opened(browser: Any, folder: pathlib.Path) -> Iterator[Open]:
    """Opens a page; at the end nothing was logged as an error, and nothing was requested but the file."""
    problems: list[str] = []
    contexts = []

    def visit(name: str = "inspect.html", locale: str = "en-US", **options: Any) -> Any:
        contexts.append(browser.new_context(locale=locale, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        url = (folder / name).as_uri()
        page.on("request", lambda request: problems.append(request.url) if request.url not in (url, "data:,") else None)
        page.goto(url)
        return page

    yield visit
    for one in contexts:
        one.close()
    assert problems == []


def count(page: Any) -> str:
    """The words on how many rows match, once a search has ended."""
    expect(page.locator("#count")).not_to_have_text(re.compile("search|搜索"), timeout=60_000)
    return str(page.text_content("#count"))


def shown(page: Any) -> list[int]:
    found: list[int] = page.eval_on_selector_all("article", "all => all.map(one => Number(one.dataset.row))")
    return found


def search(page: Any, words: str) -> str:
    page.fill("#search", words)
    page.wait_for_timeout(250)  # it waits for the end of typing
    return count(page)


def encoded() -> list[EncodedRow]:
    return [mps.encode(row, task=mps.DPO(160), tokenizer="bytes") for row in lines(COUNT)]


def kinds() -> dict[str, set[int]]:
    rows = encoded()
    return {
        "all": set(range(len(rows))),
        "kept": {n for n, row in enumerate(rows) if row.kept},
        "dropped": {n for n, row in enumerate(rows) if not row.kept},
        "cut": {n for n, row in enumerate(rows) if row.truncated},
        "noted": {n for n, row in enumerate(rows) if row.unread},
    }


def all_pages(page: Any) -> list[int]:
    found = shown(page)
    while page.locator("[data-go=next]").first.is_enabled():
        page.locator("[data-go=next]").first.click()
        found += shown(page)
    return found


@pytest.mark.parametrize("name", ["all", "kept", "dropped", "cut", "noted"])
def test_filters(name: str, opened: Open) -> None:
    page, expected = opened(), kinds()[name]
    assert len(expected) > 20
    button = page.locator(f"[data-show={name}]")
    assert button.text_content().endswith(f" {len(expected)}")
    button.click()
    assert count(page) == f"1–20 of {len(expected)} rows"
    assert button.get_attribute("aria-pressed") == "true"
    found = all_pages(page)
    assert found == sorted(expected)
    assert count(page).endswith(f"{len(expected)} of {len(expected)} rows")


@pytest.mark.parametrize("order", ["longest", "shortest", "gap_order"])
def test_orders(order: str, opened: Open) -> None:
    rows = {n: [side.tokens[2] for side in row.sides] for n, row in enumerate(encoded()) if row.kept}
    keys = {
        "longest": lambda n: (-max(rows[n]), n),
        "shortest": lambda n: (max(rows[n]), n),
        "gap_order": lambda n: (-abs(rows[n][0] - rows[n][1]), n),
    }
    page = opened()
    page.select_option("#order", order)
    assert count(page) == f"1–20 of {len(rows)} rows"
    assert all_pages(page) == sorted(rows, key=keys[order])


def test_search(opened: Open) -> None:
    page = opened()
    assert search(page, "#17#") == "1–1 of 1 row"
    assert shown(page) == [17]
    assert search(page, "WHY? LONG") == f"1–20 of {len(kinds()['cut'])} rows"  # cut text is searched, too
    page.locator("[data-show=noted]").click()
    both = kinds()["noted"] & kinds()["cut"]
    assert count(page) == f"1–{len(both)} of {len(both)} rows"
    assert search(page, "no row has this") == "0 of 0 rows"
    assert page.text_content("#rows") == "No row matches."
    assert search(page, "") == f"1–20 of {len(kinds()['noted'])} rows"
    page.locator("[data-show=all]").click()
    assert search(page, "rows.jsonl:8").startswith("1–1")  # 8 and 80 to 89
    assert shown(page) == [7, *range(79, 89)]


def test_paging_by_buttons_number_and_keys(opened: Open) -> None:
    page = opened()
    last = len(lines(COUNT))
    assert page.text_content("#pages") == f"/ {-(-last // 20)}"
    assert page.locator("[data-go=previous]").first.is_disabled()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert shown(page) == list(range(40, 60))
    page.keyboard.press("ArrowLeft")
    assert count(page) == f"21–40 of {last} rows"
    page.fill("#page", "999")
    page.keyboard.press("Enter")
    page.locator("#page").blur()
    assert count(page) == f"{(last - 1) // 20 * 20 + 1}–{last} of {last} rows"
    assert page.locator("[data-go=next]").last.is_disabled()
    page.keyboard.press("/")
    page.keyboard.type("#5#")
    page.wait_for_timeout(250)
    assert count(page) == "1–1 of 1 row"
    page.keyboard.press("Escape")
    page.keyboard.press("e")
    assert page.get_attribute("#expand", "aria-pressed") == "true"


def test_a_row_shows_what_it_becomes(opened: Open) -> None:
    page = opened()
    search(page, "#5#")
    row = mps.encode(lines(6)[5], task=mps.DPO(160), tokenizer="bytes")
    card = page.locator("article")
    cut = "".join(part.text for part in row.sides[0].parts if part.cut)
    assert cut.startswith("<|im_start|>") or "long" in cut
    assert "".join(card.locator(".part.cut").all_text_contents()).replace("⏎", "\n") == cut
    for side in row.sides:
        section = card.locator(f".section.{side.name}")
        assert "".join(section.locator(".part.response").all_text_contents()) == side.trained[0][:-10]
        assert section.locator(".part.end").text_content() == "<|im_end|>"
        assert section.locator(".under").text_content() == f"{side.tokens[1]} under the loss"
    colours = [
        page.eval_on_selector(f"article .{side} .response", "one => getComputedStyle(one).color")
        for side in ("chosen", "rejected")
    ]
    assert len(set(colours)) == 2
    assert card.locator(".part.cut").first.evaluate("one => getComputedStyle(one).textDecorationLine") == "line-through"


def test_no_text_of_a_row_is_markup_or_code(opened: Open) -> None:
    page = opened()
    for n, text in enumerate(HOSTILE):
        if "\ud83d" in text:
            continue
        assert search(page, f"hostile {n} ") == "1–1 of 1 row"
        assert page.evaluate("window.owned") is None
        assert page.locator("article img, article script, article b, article iframe, article a").count() == 0
    search(page, "<script>window.owned")
    assert shown(page)
    assert page.locator(".chosen .response").first.text_content() == HOSTILE[0]


def test_tokens(opened: Open) -> None:
    page = opened("tokens.html")
    side = mps.encode(lines(1)[0], task=mps.DPO(160), tokenizer="bytes").sides[0]
    assert page.locator(".token").count() == 0
    page.click("#tokens")
    tokens = page.locator("article").first.locator(".section.chosen .token")
    ids = [int(one) for one in tokens.locator("small").all_text_contents()]
    assert ids == list(side.ids[side.tokens[0] :])
    assert page.locator("article").first.locator(".section.chosen .token.trained").count() == side.tokens[1]


def test_both_languages_and_themes(opened: Open) -> None:
    page = opened("stats.html", locale="zh-CN", color_scheme="dark")
    assert page.get_attribute("html", "lang") == "zh-CN"
    assert "条" in count(page)
    headings = page.locator("h2").all_text_contents()
    assert re.match(rf"{COUNT + len(HOSTILE)} 条 · ", page.text_content("header p"))
    assert "bad_type 值的类型不对" in page.text_content("table:has(code)")
    page.click("[data-show=dropped]")
    assert "bad_type 值的类型不对" in page.locator("article h3").first.text_content()
    assert "英文原文" in page.locator("article").first.text_content()
    page.click("[data-show=all]")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#language")
    assert page.get_attribute("html", "lang") == "en"
    assert not set(headings) & set(page.locator("h2").all_text_contents())
    assert count(page).endswith(" rows")
    assert page.text_content("header p").startswith(f"{COUNT + len(HOSTILE)} rows · ")
    assert "值的类型不对" not in page.text_content("main")
    page.click("#theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark


@pytest.mark.parametrize("name", ["inspect.html", "stats.html"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_screen(name: str, width: int, opened: Open) -> None:
    page = opened(name, viewport={"width": width, "height": 800})
    page.press("body", "e")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.training  # half a minute
def test_a_hundred_thousand_rows_stay_usable(opened: Open, folder: pathlib.Path) -> None:
    rows = [mps.encode(row, task=mps.DPO(160), tokenizer="bytes") for row in lines(90)]
    samples = Samples()
    for n in range(100_000):
        samples.add(FoundRow(n, f"big.jsonl:{n + 1}", rows[n % len(rows)]))
    samples.finish()
    write_report(folder / "big.html", Report(title="big", samples=samples))
    page = opened("big.html")
    page.wait_for_selector("article", timeout=60_000)
    assert count(page) == "1–20 of 100,000 rows"
    clock = "(async act => { const begin = performance.now(); await act(); return performance.now() - begin; })"
    dropped = sum(1 for n in range(100_000) if not rows[n % len(rows)].kept)
    took = page.evaluate(f"{clock}(() => document.querySelector('[data-show=dropped]').click())")
    assert count(page) == f"1–20 of {dropped:,} rows"
    assert took < 2000, took
    page.locator("[data-show=all]").click()
    took = page.evaluate(f"{clock}(() => document.querySelector('[data-go=next]').click())")
    assert took < 1000, took
    page.fill("#search", "big.jsonl:99999")
    page.wait_for_timeout(250)
    assert count(page) == "1–1 of 1 row"
    assert shown(page) == [99_998]
