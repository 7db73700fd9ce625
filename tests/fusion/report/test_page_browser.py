"""The page in a real browser, from a file and without a network."""

import importlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.fusion.made import Made, tiny_recipe, train_made
from tests.fusion.paged import HOSTILE, LABELS, Evaluated, evaluated, hostile_made, written_predictions

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--autoplay-policy=no-user-gesture-required",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """Hostile texts and labels."""
    one = evaluated(tmp_path_factory.mktemp("labelled"), hostile_made(), {"linear_path": False})  # which errs sometimes
    one.write(one.results / "report")
    return one


class Opened:
    """A page and what went wrong on it."""

    def __init__(self, browser: Browser, file: Path, **options: Any) -> None:
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.context: BrowserContext = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        self.context.route(re.compile("^(?!file:|data:)"), lambda route: route.abort())
        self.page: Page = self.context.new_page()
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.goto(file.as_uri())

    def until(self, expression: str) -> None:
        """Wait until it is true; the page's policy forbids what playwright's own waiting does."""
        for _ in range(500):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(20)
        raise AssertionError(f"never: {expression}")

    def ids(self) -> list[str]:
        """Of the rows in sight, from the top."""
        told = self.page.locator(".row small").all_inner_texts()
        return [text.rsplit(" · ", 1)[1] for text in told]

    def count(self) -> int:
        return int(self.page.inner_text("#count").split(" of ")[0].replace(",", ""))


@pytest.fixture
def opened(browser: Browser, labelled: Evaluated) -> Iterator[Opened]:
    one = Opened(browser, labelled.results / "report" / "index.html")
    yield one
    assert one.complaints == []
    assert {url.split(":")[0] for url in one.asked} <= {"file", "data"}
    assert len([url for url in one.asked if url.endswith(".html")]) == 1
    one.context.close()


def predictions(one: Evaluated) -> dict[str, dict[str, Any]]:
    """By utterance: what is true, and the label of the largest mean probability."""
    found: dict[str, dict[str, Any]] = {}
    for row in written_predictions(one):
        own = found.setdefault(row["utterance"], {"true": row["true"], "sums": [0.0] * len(LABELS)})
        own["sums"] = [total + float(row[f"p_{name}"]) for total, name in zip(own["sums"], LABELS, strict=True)]
    for own in found.values():
        own["predicted"] = LABELS[own["sums"].index(max(own["sums"]))]
    return found


def test_it_opens_with_the_numbers_of_metrics_json_and_asks_for_nothing(opened: Opened, labelled: Evaluated) -> None:
    metrics = json.loads((labelled.results / "metrics.json").read_text())
    own = metrics["weighted_f1"]
    assert opened.page.inner_text(".headline strong") == f"{own['mean']:.3f} ± {own['std']:.3f}"
    assert opened.asked == [opened.page.url]


def test_filters_leave_the_turns_that_they_name(opened: Opened, labelled: Evaluated) -> None:
    said = predictions(labelled)
    assert opened.count() == len(said)
    opened.page.select_option("select[name=show]", "wrong")
    wrong = {name for name, own in said.items() if own["true"] not in ("", own["predicted"])}
    assert opened.count() == len(wrong)
    assert set(opened.ids()) <= wrong
    opened.page.select_option("select[name=true]", label=LABELS[1])
    assert opened.count() == len({name for name in wrong if said[name]["true"] == LABELS[1]})
    opened.page.click("button[type=reset]")
    opened.until(f"document.getElementById('count').textContent.startsWith('{len(said)} of')")
    opened.page.fill("input[name=search]", sorted(said)[3].upper())
    assert opened.ids() == [sorted(said)[3]]
    opened.page.fill("input[name=search]", "nothing is like this")
    assert opened.count() == 0
    assert opened.page.inner_text("#dialogue") == "No turn is like this."


def test_the_biggest_change_without_the_other_turns_comes_first(opened: Opened) -> None:
    opened.page.select_option("select[name=order]", "change")
    shares = []
    for _ in range(4):
        shares.append(int(re.findall(r"turns (\d+) %", opened.page.inner_text("#turn"))[0]))
        opened.page.keyboard.press("j")
    assert shares == sorted(shares, reverse=True)


def test_turns_where_audio_and_text_disagree_say_so(opened: Opened) -> None:
    everyone = opened.count()
    opened.page.select_option("select[name=show]", "disagree")
    assert 0 < opened.count() < everyone
    assert "Audio and text disagree." in opened.page.inner_text("#turn")


KINDS: dict[str, tuple[Made, dict[str, Any], dict[str, Any]]] = {
    "hbaf of scores": (Made(conversations=(4, 2, 2), scored=True), {"name": "hbaf"}, {"target": "score"}),
    "hcam": (Made(conversations=(4, 3, 3)), {"name": "hcam"}, {"seeds": (0, 1)}),
    "audio alone": (Made(conversations=(4, 2, 2)), {"name": "audio"}, {}),
}


@pytest.fixture(scope="module")
def page_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The page of one of the `KINDS`, with all turns; written when it is first asked for."""

    @cache
    def write(kind: str) -> Path:
        made, model, train = KINDS[kind]
        folder = tmp_path_factory.mktemp("kind")
        evaluated(folder, made, model, **{"seeds": (4,), "epochs": 1} | train).write(folder / "page", "all")
        return folder / "page" / "index.html"

    return write


@pytest.mark.soak
def test_a_turn_without_a_modality_says_which(browser: Browser, page_of: Callable[[str], Path]) -> None:
    one = Opened(browser, page_of("hcam"))
    expected = {
        (True, True): "There is neither audio nor text.",
        (True, False): "There is no audio.",
        (False, True): "There is no text.",
    }
    met = set()
    for _ in range(one.count()):
        facts, change = one.page.locator("#turn > .note").all_inner_texts()[:2]
        absent = (" 0 frames" in facts, " 0 tokens" in facts)
        assert change.endswith(expected.get(absent, "agree."))
        met.add(absent)
        one.page.keyboard.press("j")
    assert met >= set(expected)
    assert one.complaints == []
    one.context.close()


@pytest.mark.soak
def test_the_benchmark_times_every_filter(
    browser: Browser, labelled: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    benchmark = importlib.import_module("report")
    times = benchmark.filter_times(browser, labelled.results / "report" / "index.html")
    assert list(times) == list(benchmark.FILTERS)
    assert all(0 < one.lowest <= one.highest for one in times.values())


def test_hostile_texts_and_labels_are_text(opened: Opened) -> None:
    opened.page.fill("input[name=search]", "harmed")
    shown = opened.page.inner_text(".chosen .bubble")
    assert "".join(HOSTILE.split()) in "".join(shown.split())
    assert LABELS[1] in opened.page.inner_text(".confusion")
    assert opened.page.evaluate("window.harmed === undefined && !document.querySelector('img, main i:not(.bar i)')")


@pytest.mark.soak
def test_a_turn_plays_its_part_of_the_recording(opened: Opened, labelled: Evaluated) -> None:
    row = opened.page.locator(".row").nth(opened.ids().index(turn_with_sound(labelled)))
    row.click()
    opened.until("document.querySelector('audio').readyState >= 1")
    opened.page.evaluate("window.player = document.querySelector('audio')")
    assert opened.page.evaluate("player.currentTime") == pytest.approx(0.25)
    opened.page.keyboard.press("p")
    opened.until("player.currentTime > 0.3")
    opened.until("player.paused && player.currentTime >= 0.75")
    assert opened.page.evaluate("player.currentTime") < 1.0
    painted = "() => { const c = document.querySelector('canvas.wave'); return c.getContext('2d')" \
        ".getImageData(0, 0, c.width, c.height).data.filter((_, i) => i % 4 === 3).some((a) => a > 0) }"  # fmt: skip
    opened.until(painted)


def turn_with_sound(one: Evaluated) -> str:
    """The first one of the split that has a recording."""
    lines = [
        json.loads(line) for line in (one.results.parent / "manifest.jsonl").read_text("utf-8").split("\n") if line
    ]
    return next(line["id"] for line in lines if line["id"].startswith("test/") and line["audio"])


@pytest.mark.soak
def test_a_recording_too_large_for_the_page_is_played_from_beside_it(
    browser: Browser, labelled: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion.report.build.SOUND_BYTES", 0)
    labelled.write(labelled.results / "beside")
    one = Opened(browser, labelled.results / "beside" / "index.html")
    one.page.locator(".row").nth(one.ids().index(turn_with_sound(labelled))).click()
    one.until("document.querySelector('audio').readyState >= 1")
    assert "Played from tone.wav" in one.page.inner_text("#turn")
    assert one.complaints == []
    one.context.close()


def test_the_views_of_a_turn_are_drawn_and_read_by_keyboard(opened: Opened) -> None:
    opened.page.wait_for_selector("#views .map canvas")
    first = opened.page.locator("#views > .strip > span:first-child").all_inner_texts()
    assert [name for name in first if name] == ["moments that count", "words that count"]
    assert opened.page.inner_text("#views > h4") == "Which words each moment looks at"
    assert "even share" in opened.page.inner_text("#views > .note >> nth=0")
    opened.page.click("#views summary")
    opened.page.wait_for_selector("#views details .map canvas")  # drawn once they are open
    names = opened.page.locator("#views details .strip > span:first-child").all_inner_texts()
    assert "levels › raw › audio › gate" in names
    assert "levels › context › text › relevance" in names
    assert "Gate: 1 takes the modality's own stream alone" in opened.page.inner_text("#views details > .note")
    canvas = opened.page.locator("#views details .map canvas")
    canvas.focus()
    opened.page.keyboard.press("ArrowRight")
    read = opened.page.inner_text("#views details .map + .read")
    assert re.fullmatch(r"\S.* looks at .*: \d\.\d{3}, \d+\.\d × even", read)
    select = opened.page.locator("#views select")
    select.select_option("levels.raw.text.intra")
    assert "tokens (rows) look at tokens (columns)" in opened.page.inner_text("#views")


def test_a_position_of_several_turns_is_named_by_the_first_and_the_last(browser: Browser, tmp_path: Path) -> None:
    one = evaluated(tmp_path, Made(conversations=(4, 2, 2), turns=(40, 40), frames=(1, 2)), {"name": "hcam"})
    one.write(one.results / "report")
    opened = Opened(browser, one.results / "report" / "index.html")
    opened.page.wait_for_selector("#views summary")
    opened.page.click("#views summary")
    opened.page.wait_for_selector("#views details .words b")
    labels = [name for name in opened.page.locator("#views .words b").all_inner_texts() if name.startswith("turn")]
    assert len(labels) % 32 == 0
    assert labels[:5] == ["turn 1", "turn 2", "turn 3", "turns 4\u20135", "turn 6"]
    assert labels[31] == "turns 39\u201340"
    opened.context.close()


def test_sound_and_maps_share_one_time_axis_with_the_player_on_it(opened: Opened, labelled: Evaluated) -> None:
    opened.page.locator(".row").nth(opened.ids().index(turn_with_sound(labelled))).click()
    opened.page.wait_for_selector("#views .map canvas")
    boxes = "[...document.querySelectorAll('.timed')].map((one) => one.getBoundingClientRect())"
    edges = f"{boxes}.map((box) => [box.left, box.right])"
    opened.until(f"{edges}.length >= 3")
    assert len({tuple(one) for one in opened.page.evaluate(edges)}) == 1
    opened.until("document.querySelector('audio').readyState >= 1")
    opened.page.evaluate("document.querySelector('audio').currentTime = 0.5")  # half of 0.25 to 0.75
    opened.until("document.querySelector('#turn.playing') !== null")
    at = "Number(document.getElementById('turn').style.getPropertyValue('--at'))"
    assert opened.page.evaluate(at) == pytest.approx(0.5, abs=0.02)


def test_a_link_opens_its_turn_and_the_address_follows(opened: Opened, browser: Browser) -> None:
    wanted = opened.ids()[4]
    opened.page.locator(".row").nth(4).click()
    address = opened.page.evaluate("location.href")
    assert opened.page.locator("#turn a").get_attribute("href") == address[address.index("#") :]
    other = opened.context.new_page()
    other.goto(address)
    assert other.inner_text("#turn .note >> nth=0").startswith(wanted)
    other.goto(address.split("#")[0] + "#turn=%E0%A4%A")  # no address of ours
    assert other.inner_text("#turn .note >> nth=0").startswith(wanted)


def test_a_cell_of_the_confusion_lists_the_turns_that_it_counts(opened: Opened, labelled: Evaluated) -> None:
    rows = written_predictions(labelled)
    for true, predicted in ((0, 1), (1, 1), (2, 0)):
        cell = (LABELS[true], LABELS[predicted])
        expected = {row["utterance"] for row in rows if (row["true"], row["predicted"]) == cell}
        button = opened.page.locator(f"td[data-true='{true}'][data-predicted='{predicted}'] button")
        assert button.count() == bool(expected)
        if expected:
            button.click()
            assert opened.count() == len(expected)


@pytest.mark.soak
def test_two_models_side_by_side(browser: Browser, labelled: Evaluated, tmp_path: Path) -> None:
    train_made(labelled.features, tmp_path / "hcam", tiny_recipe({"name": "hcam"}, seeds=(3,), epochs=1), jobs=1)
    labelled.write(tmp_path / "page", "test", replace(labelled.sources, beside=tmp_path / "hcam"))
    one = Opened(browser, tmp_path / "page" / "index.html")
    counts = 0
    for show in ("both", "own", "other", "neither"):
        cell = one.page.locator(f"td[data-show={show}]")
        counts += (number := int(cell.inner_text()))
        if number:
            cell.locator("button").click()
            assert one.count() == number
            assert "hcam: " in one.page.inner_text(".chosen .bubble")
    rows = written_predictions(labelled)
    assert counts == len({row["utterance"] for row in rows if row["true"]})
    assert one.complaints == []
    one.context.close()


def test_keys_move_through_the_list_and_the_dialogue(opened: Opened) -> None:
    ids = opened.ids()
    chosen = opened.page.locator(".row[aria-selected=true]")
    opened.page.focus("#list")
    for key, expected in [("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("Home", 0)]:
        opened.page.keyboard.press(key)
        assert chosen.inner_text().endswith(f"· {ids[expected]}")
        assert opened.page.get_attribute("#list", "aria-activedescendant") == chosen.get_attribute("id")
    opened.page.keyboard.press("k")  # already the first
    assert chosen.inner_text().endswith(f"· {ids[0]}")
    opened.page.focus(".chosen .bubble")
    opened.page.keyboard.press("ArrowDown")
    assert opened.page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
    assert opened.page.inner_text("#turn .note").startswith(ids[1])
    opened.page.keyboard.press("/")
    assert opened.page.evaluate("document.activeElement.name") == "search"


@pytest.mark.soak
def test_a_number_stays_behind_a_label_that_is_read_from_right_to_left(browser: Browser, tmp_path: Path) -> None:
    one = evaluated(tmp_path, replace(hostile_made(), labels=["غضب", "فرح", "هدوء"]), {})
    one.write(one.results / "report")
    opened = Opened(browser, one.results / "report" / "index.html")
    for said in opened.page.locator(".row small").all_inner_texts():
        assert re.search(r"\u2068\w+\u2069 → \u2068\w+\u2069 \d+ %", said) or "no label" in said
    opened.context.close()


def test_a_phone_scrolls_down_alone(browser: Browser, labelled: Evaluated) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    one = Opened(browser, labelled.results / "report" / "index.html", **phone)
    one.page.wait_for_selector("#views .map canvas")
    assert one.page.evaluate("document.documentElement.scrollWidth") == 390
    lefts = (
        "[...document.querySelectorAll('.wide > table > caption span')].map((one) => one.getBoundingClientRect().left)"
    )
    widths = "[...document.querySelectorAll('.wide tbody th')].map((one) => one.getBoundingClientRect().width)"
    assert min(width for width in one.page.evaluate(widths) if width) > 30  # of a name: not a letter a line
    lines = "one => (range => (range.selectNodeContents(one), range.getClientRects().length))(document.createRange())"
    name = one.page.locator("#run tbody th").get_by_text("conversations", exact=True)
    assert name.evaluate(lines) == 1  # not a word in two
    assert one.page.locator("#scores tbody td").get_by_text("±").first.evaluate(lines) <= 2  # mean, and deviation
    before = one.page.evaluate(lefts)
    moved = "[...document.querySelectorAll('.wide')].map((one) => (one.scrollLeft = 60, one.scrollLeft))"
    one.page.evaluate(moved)
    tables = "[...document.querySelectorAll('#scores .wide, #confusion .wide')]"
    assert not one.page.evaluate(f"{tables}.some((one) => one.scrollWidth > one.clientWidth)")  # none is cut
    assert one.page.evaluate(lefts) == pytest.approx(before)  # captions stay in sight
    assert one.complaints == []
    one.context.close()


def test_a_long_label_is_clipped_above_the_confusion_and_whole_in_its_title(browser: Browser, tmp_path: Path) -> None:
    long = "a label that says far more than a label should " * 4
    one = evaluated(tmp_path, replace(hostile_made(), labels=["anger", long.strip(), "neutral"]), {}, epochs=1)
    one.write(one.results / "report")
    opened = Opened(browser, one.results / "report" / "index.html")
    head = opened.page.locator(".confusion thead th").nth(2)
    assert head.get_attribute("title") == long.strip()
    assert head.evaluate("one => one.getBoundingClientRect().width") < 200
    assert opened.page.evaluate(
        "(one => one.scrollWidth <= one.clientWidth)(document.querySelector('.confusion').parentElement)"
    )
    opened.context.close()


def test_on_paper_nothing_is_left_of_the_explorer(opened: Opened) -> None:
    assert opened.page.locator("#conversations-title").is_visible()
    opened.page.emulate_media(media="print")
    for part in ("#conversations-title", "#conversations > .note", ".keys", "#explorer", "nav"):
        assert not opened.page.locator(part).first.is_visible()
    assert opened.page.locator("#scores-title").is_visible()


def contrast(one: Opened, selector: str) -> float:
    """Between the text of an element and the page (WCAG 2)."""
    colours = one.page.evaluate(
        "s => [getComputedStyle(document.querySelector(s)).color, getComputedStyle(document.body).backgroundColor]",
        selector,
    )
    light = []
    for colour in colours:
        parts = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in parts]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.soak
def test_light_and_dark_are_readable_and_can_be_chosen(browser: Browser, labelled: Evaluated) -> None:
    papers = set()
    for scheme in ("light", "dark"):
        one = Opened(browser, labelled.results / "report" / "index.html", color_scheme=scheme)
        for _ in range(3):  # auto, light, dark
            for selector in ("h1", ".note", "a", ".mark.wrong", ".mark.right"):
                assert contrast(one, selector) >= 4.5, (scheme, selector)
            papers.add(one.page.evaluate("getComputedStyle(document.body).backgroundColor"))
            one.page.click("#theme")
        one.context.close()
    assert len(papers) == 2


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_every_turn_of_every_kind_of_model_opens(browser: Browser, page_of: Callable[[str], Path], kind: str) -> None:
    one = Opened(browser, page_of(kind))
    for order in one.page.locator("select[name=order] option").evaluate_all("all => all.map(one => one.value)"):
        one.page.select_option("select[name=order]", order)
    for _ in range(one.count()):
        one.page.keyboard.press("j")
    one.page.wait_for_timeout(100)
    assert one.complaints == []
    one.context.close()
