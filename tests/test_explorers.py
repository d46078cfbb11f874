"""The explorers in a real browser: equal to the Python model, and usable without mouse, network or JavaScript."""

import base64
import gzip
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from bs4 import BeautifulSoup
from chipmath.devices import DEVICES
from chipmath.formats import FORMATS
from chipmath.occupancy import occupancy, occupancy_table, shared_ceilings
from chipmath.quantize import SCALE_RULES, clipped, flushed, quantize, sqnr_db
from conftest import ROOT, ToyBook
from explorers.steps import Program, Symbol
from test_browser import DESKTOP, FLAGS, HEADLESS, PHONE, Visit
from test_occupancy import GOLDEN as LAUNCHES
from test_occupancy import REFUSED, random_launches
from test_quantize import GOLDEN as BLOCKS

from explorers import MODEL
from explorers import occupancy as explorer

LAUNCHES_TRIED = 20_000
BLOCKS_TRIED = 20_000
NAMES = ("occupancy", "mx-block")
PAGE = "---\nmyst: {{html_meta: {{description: An explorer.}}}}\n---\n# {0}\n\nProse.\n\n```{{explorer}} {0}\n```\n"


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """Return a book whose pages embed the explorers, built as the real one is."""
    toy = ToyBook(tmp_path_factory.mktemp("book"))
    toy.page.write_text("# A page\n\nWithout explorer.\n")
    for name in NAMES:
        (toy.root / f"{name}.md").write_text(PAGE.format(name))
    toc = toy.root / "_toc.yml"
    toc.write_text(toc.read_text() + "".join(f"- file: {name}\n" for name in NAMES))
    status, output = toy.build()
    assert status == 0, output
    return toy


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="browser tests need playwright")
    if not HEADLESS:
        pytest.skip("BROWSER TESTS SKIPPED: no chromium on this machine (Debian: apt install chromium)")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=HEADLESS, args=FLAGS)
        yield browser
        browser.close()


def visit(chromium, book, name, *, viewport=DESKTOP, theme="light"):
    return Visit(chromium, str(book.root / "_build/html" / name), viewport=viewport, theme=theme)


def address(book, name, state):
    return (book.root / f"_build/html/{name}.html").as_uri() + f"#{name}:{state}"


@pytest.fixture(scope="module")
def opened(chromium, book):
    """Return the page of each explorer, opened once; ``page_of`` gives it in its first state."""
    visits = {name: visit(chromium, book, name) for name in NAMES}
    yield {name: visited.page for name, visited in visits.items()}
    for visited in visits.values():
        visited.context.close()


@pytest.fixture
def page_of(opened):
    def first_state(name):
        follow(opened[name], f"{name}:")
        assert error(opened[name]) == ""
        return opened[name]

    return first_state


def follow(page, state):
    """Follow a link to a state of the page, and wait until the page has taken it."""
    script = """state => new Promise((done) => {
        history.replaceState(null, "", "#elsewhere");
        addEventListener("hashchange", () => done(), {once: true});
        location.hash = state;
    })"""
    page.evaluate(script, state)


def status(page):
    return page.locator("[role=status]").inner_text().replace("\u00a0", " ")


def error(page):
    return page.locator("[role=alert]").inner_text().replace("\u00a0", " ")


def table(page):
    return page.evaluate("[...document.querySelectorAll('.explorer-first tr, caption')].map(row => row.textContent)")


# --- the rules in the browser are those of the package ----------------------------------------------------------------


def test_a_rule_that_branches_is_refused():
    symbol = Symbol(Program(), "registers")
    with pytest.raises(TypeError, match="branches on t0;"):
        max(symbol, 8)


def test_the_same_step_is_taken_once():
    program = Program()
    symbol = Symbol(program, "threads")
    waves = [(symbol + 63) // 64 for _ in range(2)]
    assert program.steps == [["+", "threads", 63], ["//", "t0", 64]]
    assert [wave.name for wave in waves] == ["t1", "t1"]
    assert f"{waves[0]} waves" == "{t1} waves"


def boundary_launches(arch):
    """Every value where a limit steps, and the next one: each alone, and registers against threads."""
    unit = DEVICES[arch]
    base = {"registers": 1, "shared_bytes": 0, "threads": unit.wave_lanes}
    steps = np.arange(0, 257, 8)
    edges = {
        "registers": np.unique([*steps, *(steps + 1), *(steps - 1)]),
        "threads": np.unique([k + d for k in range(0, 1089, 32) for d in (-1, 0, 1)]),
        "shared_bytes": np.unique([k + d for k in shared_ceilings(arch).values() for d in (-1, 0, 1)]),
    }
    if unit.vendor == "AMD":
        edges |= {"accumulators": np.arange(0, 258), "scalars": np.arange(0, 110)}
    else:
        edges |= {"barriers": np.arange(0, 17)}
    for name, values in edges.items():
        yield from (base | {name: int(value)} for value in values if value >= 0)
    for registers in steps + 1:
        yield from (base | {"registers": int(registers), "threads": int(t)} for t in edges["threads"][1:])


def answer(arch, launch):
    got = occupancy(arch, **launch)
    return {
        "groups": got.groups_per_unit,
        "waves": got.waves_per_unit,
        "fraction": got.fraction,
        "limits": got.limits,
        "limiters": list(got.limiters),
        "allocated": got.allocated,
        "reason": got.reason,
    }


@pytest.mark.browser
def test_occupancy_equals_the_model(page_of):
    """20,000 random launches, every boundary, every hand-worked case: all of the answer, the reason's words too."""
    cases = [(arch, launch) for arch, launch, *_ in [*LAUNCHES, *REFUSED]]
    for arch in DEVICES:
        drawn = random_launches(arch, LAUNCHES_TRIED // len(DEVICES))
        cases += [(arch, dict(zip(drawn, row))) for row in np.stack([*drawn.values()], axis=1).tolist()]
        cases += [(arch, launch) for launch in boundary_launches(arch)]
    page = page_of("occupancy")
    script = """cases => JSON.stringify(JSON.parse(cases).map(([arch, launch]) => {
        const {charges, ...answer} = chipmath.occupancy(arch, launch);
        return answer;
    }))"""
    got = json.loads(page.evaluate(script, json.dumps(cases)))
    wrong = [(case, result) for case, result in zip(cases, got) if result != answer(*case)]
    assert not wrong, f"{len(wrong)} of {len(cases)} differ, first: {wrong[0]}, expected {answer(*wrong[0][0])}"
    assert len(cases) >= LAUNCHES_TRIED + 30_000


@pytest.mark.browser
@pytest.mark.parametrize(
    ("arch", "launch"),
    [
        ("gfx950", {"registers": 8, "threads": 64, "barriers": 2}),
        ("sm_90", {"registers": 8, "threads": 64, "barriers": 17}),
        ("sm_90", {"registers": 8, "threads": 64, "accumulators": 4}),
        ("sm_90", {"registers": 8, "threads": 64, "scalars": 16}),
    ],
)
def test_what_makes_no_sense_is_refused_in_the_same_words(page_of, arch, launch):
    with pytest.raises(ValueError) as refused:
        occupancy(arch, **launch)
    page = page_of("occupancy")
    script = "([arch, launch]) => { try { chipmath.occupancy(arch, launch) } catch (error) { return error.message } }"
    assert page.evaluate(script, [arch, launch]) == str(refused.value)


def nearest_change(arch, launch, name, direction):
    """The cliff by trying every value: an independent way to what the script finds by halving."""
    bounds = explorer.data()["chips"][arch]["inputs"][name]
    values = np.arange(0, bounds["last"] + 1, bounds["search_step"])
    values = values[(values >= bounds["min"]) & ((values - launch[name]) * direction > 0)]
    waves = occupancy_table(arch, **(launch | {name: values}))
    waves *= -(-(values if name == "threads" else launch["threads"]) // DEVICES[arch].wave_lanes)
    changed = values[waves != occupancy(arch, **launch).waves_per_unit]
    return None if not changed.size else int(changed[np.argmin(abs(changed - launch[name]))])


@pytest.mark.browser
def test_cliffs_are_the_nearest_changes(page_of):
    cases = []
    for arch in DEVICES:
        drawn = random_launches(arch, 20)
        rows = [dict(zip(drawn, row)) for row in np.stack([*drawn.values()], axis=1).tolist()]
        cases += [(arch, row, name, direction) for row in rows for name in row for direction in (-1, 1)]
    page = page_of("occupancy")
    script = "cases => JSON.parse(cases).map((one) => chipmath.cliff(...one))"
    got = page.evaluate(script, json.dumps(cases))
    expected = [nearest_change(*case) for case in cases]
    assert [*zip(cases, got)] == [*zip(cases, expected)]
    assert sum(value is not None for value in expected) > 300


def random_blocks(fmt, count, rng):
    """Blocks of ordinary values, of any bits at all, of ties between codes, and with NaN or infinity among them."""
    kinds = count // 4
    ordinary = rng.standard_normal((kinds, 32)) * 2.0 ** rng.integers(-130, 120, (kinds, 1))
    bits = rng.integers(0, 1 << 32, (kinds, 32), dtype=np.uint32).view(np.float32)
    anything = np.where(np.isfinite(bits), bits, 1.0)
    codes = torch.from_numpy(rng.integers(0, fmt.max_code, (kinds, 32), dtype=np.uint8))
    ties = (fmt.decode(codes) + fmt.decode(codes + 1)).numpy() / 2 * 2.0 ** rng.integers(-130, 100, (kinds, 1))
    ties *= rng.choice([-1, 1], ties.shape)
    rest = count - 3 * kinds
    special = rng.standard_t(1, (rest, 32))
    special[rng.random(special.shape) < 0.02] = np.nan
    special[rng.random(special.shape) < 0.02] = -np.inf
    special[rng.random(special.shape) < 0.1] = -0.0
    special[:2] = [[0.0], [-0.0]]
    with np.errstate(over="ignore"):
        return np.concatenate([part.astype(np.float32) for part in (ordinary, anything, ties, special)])


def boundary_blocks(fmt):
    """Blocks of ±v for every magnitude v where a scale rule or the scale's range steps, and for v's two neighbours."""
    exponents = np.arange(-149, 128)
    steps = [1, fmt.max / 2**fmt.emax, 1.75, 1.875, 1.9375, 2 - 2.0 ** -(fmt.mantissa_bits + 1)]
    edges = 2.0 ** exponents[:, None] * steps
    edges = np.unique(edges.astype(np.float32))
    near = [edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(np.inf))]
    hand = [value for _, _, value in BLOCKS]
    values = np.concatenate([*near, np.array(hand, np.float32), [np.float32(0)]])
    return values[:, None] * np.resize(np.array([1, -1], np.float32), 32)


# One Float64Array for each block: scale byte, SQNR, then codes, bits of the decoded values, marks.
QUANTIZE_ALL = """([blocks, fmt, rule]) => {
    const bytes = Uint8Array.from(atob(blocks), (letter) => letter.charCodeAt(0));
    const x = new Float32Array(bytes.buffer);
    const width = 2 + 4 * 32;
    const all = new Float64Array((x.length / 32) * width);
    for (let block = 0; block < x.length / 32; block += 1) {
        const values = Array.from(x.subarray(32 * block, 32 * block + 32));
        const got = chipmath.quantize(values, fmt, rule);
        const decoded = new Int32Array(new Float32Array(got.values).buffer);
        const marks = [...got.clipped, ...got.flushed].map(Number);
        const row = [got.scale, chipmath.sqnrDb(values, got.values), ...got.codes, ...decoded, ...marks];
        all.set(row, block * width);
    }
    const result = new Uint8Array(all.buffer);
    let text = "";
    for (let at = 0; at < result.length; at += 8192) text += String.fromCharCode(...result.subarray(at, at + 8192));
    return btoa(text);
}"""


@pytest.mark.browser
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=str)
def test_blocks_equal_the_model(page_of, fmt):
    """Scale bytes, codes, decoded values, clipped and flushed marks and SQNR, under every rule."""
    rng = np.random.default_rng(fmt.max_code)
    each = -(-BLOCKS_TRIED // (len(FORMATS) * len(SCALE_RULES)))
    page = page_of("mx-block")
    for rule in SCALE_RULES:
        blocks = np.concatenate([random_blocks(fmt, each, rng), boundary_blocks(fmt)])
        x = torch.from_numpy(blocks)
        sent = base64.b64encode(blocks.tobytes()).decode()
        received = base64.b64decode(page.evaluate(QUANTIZE_ALL, [sent, fmt.name, rule]))
        got = torch.frombuffer(bytearray(received), dtype=torch.float64).view(len(blocks), -1)
        expected = quantize(x, fmt, rule)
        values = expected.dequantize()
        assert torch.equal(got[:, :1], expected.scales.double())
        assert torch.equal(got[:, 2:34], expected.elements.double())
        seen = got[:, 34:66].to(torch.int32).view(torch.float32)
        assert torch.equal(seen.isnan(), values.isnan())
        assert torch.equal(seen.nan_to_num(1).view(torch.int32), values.nan_to_num(1).view(torch.int32))
        assert torch.equal(got[:, 66:98], clipped(x, expected).double())
        assert torch.equal(got[:, 98:], flushed(x, expected).double())
        for row in values.isfinite().all(-1).nonzero()[::19].ravel().tolist():
            assert float(got[row, 1]) == pytest.approx(sqnr_db(x[row], values[row]), rel=1e-9, abs=1e-9)


# --- what the reader sees ---------------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize("name", NAMES)
def test_the_first_result_is_the_models_with_and_without_javascript(chromium, book, name):
    context = chromium.new_context(java_script_enabled=False, viewport=PHONE)
    page = context.new_page()
    page.goto((book.root / f"_build/html/{name}.html").as_uri())
    assert page.locator(".explorer-first table").is_visible()
    assert page.locator(".explorer-first .evidence-computed").is_visible()
    assert not page.locator(".explorer form").is_visible()
    assert page.get_by_text("With JavaScript this table is an explorer").is_visible()
    without = page.locator(".explorer-first table tr").all_inner_texts()
    context.close()
    with visit(chromium, book, name, viewport=PHONE) as visited:
        assert visited.page.locator(".explorer form").is_visible()
        assert visited.page.locator(".explorer-first table tr").all_inner_texts() == without
        caption = BeautifulSoup(book.html(name), "html.parser").select_one(".explorer-first caption").get_text()
        assert visited.page.locator(".explorer-first caption").inner_text() == caption


@pytest.mark.browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("occupancy", ""),
        ("occupancy", "arch=sm_120&registers=300&shared_bytes=2147483647&threads=1025&barriers=16"),
        ("mx-block", ""),
        ("mx-block", "f=E5M2&r=even&v=" + ",".join(["-1.1754944e-38", "3.4028235e38"] * 16)),
    ],
)
def test_quiet_offline_and_no_wider_than_the_screen(chromium, book, name, state, viewport, theme):
    with visit(chromium, book, name, viewport=viewport, theme=theme) as visited:
        visited.page.goto(address(book, name, state))
        visited.page.reload()
        assert error(visited.page) == ""
        assert visited.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
        assert not [url for url in visited.requests if not url.startswith(("file:", "data:"))]
        assert visited.messages == []


@pytest.mark.browser
def test_occupancy_is_told_to_a_screen_reader(page_of):
    page = page_of("occupancy")
    assert status(page) == "4 workgroups per CU: 16 of 32 waves, 50.0 %. Bound by LDS."
    page.get_by_label("VGPRs per thread", exact=True).fill("128")
    assert status(page) == "4 workgroups per CU: 16 of 32 waves, 50.0 %. Bound by vector registers and LDS."
    page.get_by_label("Threads per workgroup", exact=True).fill("1024")
    page.get_by_label("VGPRs per thread", exact=True).fill("240")
    assert status(page) == (
        "Cannot launch: threads=1024: a workgroup is 16 waves of 240 registers a thread, and the register file holds 8."
    )
    page.get_by_label("Chip", exact=True).select_option("sm_90")
    assert page.get_by_label("Registers per thread", exact=True).input_value() == "240"
    assert not page.get_by_label("AccVGPRs per thread", exact=True).is_visible()
    page.get_by_label("Threads per block", exact=True).fill("64")
    page.get_by_label("Named barriers per block", exact=True).fill("16")
    page.get_by_label("Shared memory per block, bytes", exact=True).fill("1 KiB")
    assert status(page) == "4 blocks per SM: 8 of 64 warps, 12.5 %. Bound by registers and named barriers."
    badge = page.locator(".explorer-first .evidence-computed")
    assert badge.get_attribute("aria-label") == f"computed: {badge.get_attribute('data-tip')}"
    assert "in this page" in badge.get_attribute("data-tip")


@pytest.mark.browser
def test_bars_and_cliffs_say_what_binds_and_how_far_the_next_step_is(page_of):
    page = page_of("occupancy")
    page.get_by_label("VGPRs per thread", exact=True).fill("100")
    page.get_by_label("LDS per workgroup, bytes", exact=True).fill("0")
    rows = page.locator(".explorer-bars tbody tr:visible").all_inner_texts()
    cells = [re.split(r"[\n\t]+", row.replace("\u00a0", " ").strip()) for row in rows]
    assert cells == [
        ["wave slots", "4 of 32 a workgroup", "8"],
        ["vector registers", "104 of 512 rows a wave", "4 binds"],
        ["scalar registers", "80 of 800 a wave", "10"],
        ["LDS", "0 of 163,840 bytes a workgroup", "no limit"],
        ["barriers", "1 of 16 a workgroup", "16"],
    ]
    widths = page.locator(".explorer-bars tr:visible .explorer-bar").evaluate_all(
        "bars => bars.map((bar) => bar.style.getPropertyValue('--part'))"
    )
    assert widths == ["50.00%", "25.00%", "62.50%", "0.00%", "100.00%"]
    cliffs = page.locator(".explorer-cliffs tbody tr:visible").first.inner_text().replace("\u00a0", " ")
    assert cliffs.split("\t") == [
        "VGPRs per thread",
        "4 fewer (96): +1 workgroup, 62.5 %",
        "29 more (129): −1 workgroup, 37.5 %",
    ]


@pytest.mark.browser
@pytest.mark.parametrize(
    ("label", "text", "message"),
    [
        ("VGPRs per thread", "abc", "VGPRs per thread: “abc” is not a whole number from 0 to 2,147,483,647."),
        ("Threads per workgroup", "-64", "“-64” is not a whole number"),
        ("SGPRs per wave", "1.5", "“1.5” is not a whole number"),
        ("SGPRs per wave", "2147483648", "“2147483648” is not a whole number"),
        ("LDS per workgroup, bytes", "0.3 KiB", "“0.3 KiB” is not a whole number"),
        ("AccVGPRs per thread", "", "AccVGPRs per thread: “” is not a whole number"),
    ],
)
def test_bad_input_is_named_and_nothing_is_lost(page_of, label, text, message):
    page = page_of("occupancy")
    before, held = status(page), table(page)
    field = page.get_by_label(label, exact=True)
    field.fill(text)
    assert message in error(page)
    assert field.input_value() == text
    assert field.get_attribute("aria-invalid") == "true"
    assert (status(page), table(page)) == (before, held)
    assert page.evaluate("location.hash") == "#occupancy:"
    field.fill("64")
    assert error(page) == ""
    assert field.get_attribute("aria-invalid") is None


@pytest.mark.browser
def test_more_barriers_than_a_block_can_name(page_of):
    page = page_of("occupancy")
    page.get_by_label("Chip", exact=True).select_option("sm_90")
    page.get_by_label("Named barriers per block", exact=True).fill("17")
    assert "“17”: a block names 16 at most." in error(page)


@pytest.mark.browser
def test_occupancy_by_keyboard_alone(page_of):
    page = page_of("occupancy")
    page.get_by_label("Chip", exact=True).focus()
    reached = []
    for _ in range(12):
        reached.append(page.evaluate("document.activeElement.name || document.activeElement.dataset.for || 'link'"))
        page.keyboard.press("Tab")
    arguments = ["registers", "accumulators", "scalars", "shared_bytes", "threads"]
    assert reached == ["arch", *(name for argument in arguments for name in (argument, argument)), "link"]
    page.get_by_label("VGPRs per thread, slider", exact=True).focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_label("VGPRs per thread", exact=True).input_value() == "97"
    page.keyboard.press("End")
    assert page.get_by_label("VGPRs per thread", exact=True).input_value() == "256"
    assert "Bound by vector registers." in status(page)
    page.get_by_label("VGPRs per thread", exact=True).press("Enter")
    assert "Bound by vector registers." in status(page)  # a form that sent itself would have reloaded the page


@pytest.mark.browser
@pytest.mark.parametrize(
    ("name", "state", "told"),
    [
        ("occupancy", "arch=gfx942&registers=32&accumulators=0&scalars=96&shared_bytes=0&threads=64", "28 workgroups"),
        ("occupancy", "arch=sm_90&registers=96&shared_bytes=0&threads=672&barriers=1", "Cannot launch"),
        ("mx-block", "f=INT8&r=rceil&law=heavy&draw=3", "Scale 2"),
        ("mx-block", "f=E2M1&r=even&law=gaussian&draw=2&at=7&by=12", "flushed"),
        ("mx-block", "f=E4M3&r=floor&v=nan," + ",".join(["0.1", "-0", "1e-40"] * 10) + ",inf", "Scale NaN"),
    ],
)
def test_a_link_shows_the_same_again(chromium, book, name, state, told):
    with visit(chromium, book, name) as visited:
        page = visited.page
        follow(page, f"{name}:{state}")
        assert told in status(page)
        shown = status(page), table(page), page.locator(".explorer-link a").get_attribute("href")
        assert shown[2] == f"#{name}:{state}"
    with visit(chromium, book, "intro") as visited:
        page = visited.page
        page.goto(address(book, name, state))
        assert (status(page), table(page), page.locator(".explorer-link a").get_attribute("href")) == shown
        assert error(page) == ""


@pytest.mark.browser
@pytest.mark.parametrize("name", NAMES)
def test_input_writes_its_own_address(page_of, name):
    page = page_of(name)
    entries = page.evaluate("history.length")
    page.locator("input[type=range]:visible").first.press("ArrowRight")
    hash_now = page.evaluate("location.hash")
    assert re.match(f"#{name}:.+", hash_now)
    assert hash_now == page.locator(".explorer-link a").get_attribute("href")
    assert page.evaluate("history.length") == entries


@pytest.mark.browser
@pytest.mark.parametrize(
    ("name", "state", "message"),
    [
        ("occupancy", "arch=gfx1100", "“gfx1100” is not one of gfx90a, gfx942, gfx950, sm_80"),
        ("occupancy", "arch=toString", "“toString” is not one of"),
        ("occupancy", "arch=sm_90&registers=many", "“many” is not a whole number"),
        ("occupancy", "arch=gfx950&colour=3", "“colour=3” is no input"),
        ("mx-block", "f=FP7", "“f=FP7” is no choice of “Element format”"),
        ("mx-block", "r=ceiling&draw=9", "“r=ceiling” is no choice of “Scale rule”. The link's “draw=9” is no choice"),
        ("mx-block", "v=1,2,three", "“three” is not a number. 3 values: a block has 32."),
        ("mx-block", "by=21", "“by=21” is not a whole number from 0 to 20"),
        ("mx-block", "speed=1", "“speed=1” is no input"),
    ],
)
def test_a_wrong_link_is_explained_and_the_page_still_works(page_of, name, state, message):
    page = page_of(name)
    follow(page, f"{name}:{state}")
    assert message in error(page)
    assert re.search(r"per CU|per SM|signal to noise", status(page))


@pytest.mark.browser
@pytest.mark.parametrize("name", NAMES)
def test_an_address_of_the_page_itself_is_left_alone(page_of, name):
    page = page_of(name)
    before = status(page)
    follow(page, "prose")
    assert (status(page), error(page)) == (before, "")


@pytest.mark.browser
def test_block_by_keyboard_and_told(page_of):
    page = page_of("mx-block")
    assert re.fullmatch(r"Scale 2⁻⁷; signal to noise 32\.8 dB; 0 clipped, 0 flushed to zero\.", status(page))
    page.get_by_label("Element format").select_option("INT8")
    page.get_by_label("Value number").select_option("5")
    slider = page.get_by_label("Multiply it by a power of two")
    slider.focus()
    page.keyboard.press("End")
    assert "31 flushed to zero" in status(page)
    assert page.locator("output").inner_text() == "× 1,048,576"
    assert page.locator("[aria-current]").inner_text().startswith("5\t")
    assert "31 flushed to zero" in page.locator(".explorer-chart svg").get_attribute("aria-label")
    page.keyboard.press("Home")
    assert "0 flushed to zero" in status(page)


@pytest.mark.browser
def test_a_block_shows_bits_errors_and_what_is_lost(page_of):
    page = page_of("mx-block")
    values = ["480", "1.2", "-0.1", "1e-9", "0", "-0"] + ["1"] * 26
    page.get_by_label("Values").fill("  ".join(values))
    assert page.get_by_label("Draw from").input_value() == "typed"
    rows = [row.split("\t") for row in page.locator(".explorer-first tbody tr").all_inner_texts()]
    rows = [[cell.replace("\u00a0", " ") for cell in row] for row in rows]
    assert rows[0] == ["1", "480", "01111110", "0x7E", "448", "−32", "−6.7 %", "clipped"]
    assert rows[1] == ["2", "1.2", "00111010", "0x3A", "1.25", "+0.05", "+4.2 %", ""]
    assert rows[2] == ["3", "−0.1", "10011101", "0x9D", "−0.101563", "−0.0016", "−1.6 %", ""]
    assert rows[3] == ["4", "1e−9", "00000000", "0x00", "0", "−1e−9", "−100.0 %", "flushed"]
    assert rows[4] == ["5", "0", "00000000", "0x00", "0", "0", "0 %", ""]
    assert rows[5] == ["6", "−0", "10000000", "0x80", "−0", "0", "0 %", ""]
    code = page.locator(".explorer-first tbody .explorer-code").first.locator("span")
    assert code.all_inner_texts() == ["0", "1111", "110"]
    styles = code.evaluate_all("parts => parts.map((part) => getComputedStyle(part).borderBottomStyle)")
    assert styles == ["double", "solid", "dotted"]
    page.get_by_label("Scale rule").select_option("rceil")
    assert "0 clipped, 1 flushed" in status(page)


@pytest.mark.browser
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1"] * 31, "31 values: a block has 32."),
        (["1"] * 33, "33 values: a block has 32."),
        (["1"] * 31 + ["0x10"], "“0x10” is not a number."),
        (["1"] * 31 + ["1,5.2.1"], "“5.2.1” is not a number."),
        ([], "0 values: a block has 32."),
    ],
)
def test_a_bad_block_is_explained_and_kept(page_of, values, message):
    page = page_of("mx-block")
    before = status(page), table(page)
    field = page.get_by_label("Values")
    field.fill(" ".join(values))
    assert message in error(page)
    assert field.input_value() == " ".join(values)
    assert (status(page), table(page)) == before


@pytest.mark.browser
def test_infinity_makes_the_block_nan(page_of):
    page = page_of("mx-block")
    page.get_by_label("Values").fill(" ".join(["1"] * 31 + ["-inf"]))
    assert status(page) == "Scale NaN; signal to noise undefined; 0 clipped, 0 flushed to zero."
    last = page.locator(".explorer-first tbody tr").last.inner_text().replace("\u00a0", " ").split("\t")
    assert last == ["32", "−∞", "01111111", "0x7F", "NaN", "–", "–", ""]
    assert page.locator(".explorer-chart svg").get_attribute("aria-label").endswith("the block is NaN.")


@pytest.mark.browser
def test_a_value_can_be_dragged(page_of):
    page = page_of("mx-block")
    page.locator(".explorer-chart svg").scroll_into_view_if_needed()
    box = page.locator(".explorer-chart svg").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] - 60
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x, y - 120, steps=5)
    page.mouse.up()
    page.mouse.move(x, y)
    assert page.get_by_label("Value number").input_value() == "16"
    assert 9 <= int(page.get_by_label("Multiply it by a power of two").input_value()) <= 13


# --- weight -----------------------------------------------------------------------------------------------------------

COUNT_CHANGES = """act => {
    const root = document.querySelector(".explorer");
    const nodes = () => root.querySelectorAll("*").length;
    const before = nodes();
    const observer = new MutationObserver(() => {});
    observer.observe(root, {subtree: true, childList: true, attributes: true, characterData: true});
    for (const [name, value] of Object.entries(act)) {
        const field = root.querySelector(`[name=${name}]`);
        field.value = value;
        field.dispatchEvent(new Event(field.tagName === "SELECT" ? "change" : "input", {bubbles: true}));
    }
    return [observer.takeRecords().length, nodes() - before];
}"""


@pytest.mark.browser
@pytest.mark.parametrize(
    ("name", "act", "most"),
    [
        ("occupancy", {"registers": "97"}, 30),
        ("occupancy", {"threads": "64"}, 180),
        ("occupancy", {"arch": "sm_90"}, 260),
        ("mx-block", {"boost": "1"}, 60),
        ("mx-block", {"boost": "20"}, 400),
        ("mx-block", {"format": "E2M1"}, 420),
        ("mx-block", {"law": "heavy"}, 420),
    ],
)
def test_an_input_touches_few_nodes_and_makes_none(page_of, name, act, most):
    page = page_of(name)
    touched, made = page.evaluate(COUNT_CHANGES, act)
    assert 0 < touched <= most
    assert made == 0


def test_only_pages_with_an_explorer_load_it_and_it_is_small(book):
    assert "explorers/" not in book.html("page").split("</head>")[0]
    folder = book.root / "_build/html/_static/explorers"
    for name in NAMES:
        head = BeautifulSoup(book.html(name), "html.parser").find("head")
        loaded = [tag.get("src") or tag["href"] for tag in head.select("[src*='explorers/'], [href*='explorers/']")]
        files = [folder / re.search(r"explorers/([\w.-]+)", path)[1] for path in loaded]
        other = NAMES[1 - NAMES.index(name)]
        assert {file.name for file in files} == {"explorers.css", "explorer.js", f"{name}-data.js", f"{name}.js"}
        assert not [path for path in loaded if other in path]
        assert sum(len(gzip.compress(file.read_bytes())) for file in files) < 16_000
    assert len((folder / "occupancy-data.js").read_bytes()) < 26_000
    assert len((folder / "mx-block-data.js").read_bytes()) < 14_000


@pytest.mark.parametrize("name", NAMES)
def test_the_markup_is_labelled_and_its_ids_are_unique(book, name):
    soup = BeautifulSoup(book.html(name), "html.parser")
    ids = [tag["id"] for tag in soup(id=True)]
    assert len(ids) == len(set(ids))
    for control in soup.select(".explorer select, .explorer textarea, .explorer input"):
        labelled = soup.find("label", attrs={"for": control.get("id")}) if control.get("id") else None
        assert labelled or control.get("data-for"), control  # a slider takes its field's label from the script
    assert all(fieldset.find("legend") for fieldset in soup.select(".explorer fieldset"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n```{explorer} roofline\n```\n", "no explorer 'roofline'; there are occupancy, mx-block"),
        (2 * "\n```{explorer} occupancy\n```\n", "the occupancy explorer is on this page already"),
    ],
)
def test_a_wrong_directive_fails_the_build(toy_book, text, message):
    toy_book.page.write_text("# A page\n")
    toy_book.add(text)
    status_code, output = toy_book.build()
    assert status_code != 0
    assert message in output


def test_every_module_that_the_data_come_from_is_watched():
    code = (
        "import sys, explorers\n"
        "for name in explorers.NAMES: explorers._module(name).data(), explorers._module(name).first()\n"
        "print(*(name.partition('.')[2] for name in sys.modules if name.startswith('chipmath.')))"
    )
    path = os.pathsep.join(str(ROOT / folder) for folder in ("kernels", "_ext"))
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=True
    )
    assert sorted(done.stdout.split()) == sorted(MODEL)


def test_a_changed_model_reaches_the_form_and_the_scripts_data(book):
    """Last of this file: it changes the book."""
    devices = book.root / "kernels/chipmath/devices.py"
    data = book.root / "_build/html/_static/explorers/occupancy-data.js"
    before = devices.read_text()
    devices.write_text(before.replace("160 * KIB, 1280", "80 * KIB, 1280"))
    assert devices.read_text() != before
    limit = "of 163,840 bytes"
    assert limit in data.read_text()
    rows = BeautifulSoup(book.html("occupancy"), "html.parser").select(".explorer-first tbody tr")
    assert book.build()[0] == 0
    assert limit not in data.read_text()
    assert BeautifulSoup(book.html("occupancy"), "html.parser").select(".explorer-first tbody tr") != rows
