"""Result objects: how they format themselves, and what they refuse."""

import numpy as np
import pytest
import torch
from chipmath import recordings
from chipmath.evidence import METADATA_KEY, Cited, Compiled, Computed, Evidence, Measured, Table
from test_recordings import recording


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """A folder with one compiled and one measured recording, of older code both."""
    monkeypatch.setattr(recordings, "RECORDED", tmp_path)
    made = recording(
        experiment="mx_tiles", kind="compiled", device={"targets": ["gfx950"]}, software={"Triton": "3.9.0"}
    )
    for one in (made, recording()):
        (tmp_path / one.file_name).write_text(one.to_json())
    return made, recording()


@pytest.fixture
def today(monkeypatch):
    """No experiment's code has changed."""
    monkeypatch.setattr(recordings.Recording, "older_code", property(lambda self: False))


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (Computed(33 / 32, ".5f"), "1.03125"),
        (Computed(np.float32(0.5), ".1%"), "50.0%"),
        (Computed(torch.tensor(31.529), ".2f", "dB"), "31.53\u00a0dB"),
        (Computed(4, "d"), "4"),
        (Computed(-0.125, "+.1%"), "\u221212.5%"),
        (Computed(2**-24, ".2e"), "5.96e\u221208"),
        (Computed("VGPR and LDS"), "VGPR and LDS"),
        (Cited(27.6, ".1f", "dB", source="pandey2026grouped"), "27.6\u00a0dB"),
    ],
)
def test_numbers_format_themselves(result, text):
    data, metadata = result._repr_mimebundle_()
    assert data["text/plain"] == text
    assert data["text/html"].startswith(f'<span class="evidence-value">{text}<span class="evidence ')
    assert metadata[METADATA_KEY]["kind"] == result.kind


@pytest.mark.parametrize("number", [float("nan"), float("inf"), np.float64("nan"), torch.tensor(float("-inf"))])
def test_a_result_is_finite(number):
    with pytest.raises(ValueError, match=r"must be finite, got (nan|-?inf)"):
        Computed(number)
    with pytest.raises(ValueError, match="must be finite"):
        Table(["x"], [[number]])


def test_badges_say_their_kind_to_a_screen_reader():
    html = Cited(1.0, source="ocp2023mx").inline_html()
    assert 'aria-label="cited: ocp2023mx"' in html
    assert 'tabindex="0"' in html


def test_nested_kinds_show_one_badge_each():
    html = Cited(Computed(Table(["x"], [[1]])), source="ocp2023mx")._repr_mimebundle_()[0]["text/html"]
    assert html.index("evidence-computed") < html.index("evidence-cited")
    assert html.count('class="evidence ') == 2


def test_compiled_and_measured_name_their_recording(shelf, today):
    made, timed = shelf
    html = Compiled(106, "d", "registers", recording=made).inline_html()
    assert html.startswith('<span class="evidence-value">106\u00a0registers<span class="evidence evidence-compiled" ')
    assert 'data-recording="compiled-mx_tiles.json"' in html
    assert 'aria-label="compiled: recorded. Triton 3.9.0 for gfx950; nothing ran; commit bbbbbbb, 2026-11-20"' in html
    html = Measured(3.0, recording=timed).inline_html()
    assert f'data-recording="{timed.file_name}"' in html
    told = "measured: recorded. A Card 80GB (sm_90), driver 580.1, torch 2.11.0; commit bbbbbbb, 2026-11-20"
    assert f'aria-label="{told}"' in html


def test_a_long_computation_names_its_recording(shelf, today, tmp_path):
    done = recording(kind="computed", experiment="training_cpu", device={"name": "A CPU", "threads": 1})
    (tmp_path / done.file_name).write_text(done.to_json())
    result = Computed(3, "d", recording=done)
    html = result.inline_html()
    assert 'data-recording="computed-training_cpu.json"' in html
    assert 'aria-label="computed: recorded. A CPU, 1 thread, driver 580.1' in html
    assert result.badge(word=True).endswith(">computed, recorded</span>")
    assert "data-recording" not in Computed(3, "d").inline_html()
    with pytest.raises(ValueError, match="is a measured recording"):
        Computed(3, "d", recording=shelf[1])


@pytest.mark.parametrize(
    ("result", "word"), [(lambda made, timed: Compiled(1, recording=made), "compiled"),
                         (lambda made, timed: Measured(1, recording=timed), "measured, recorded"),
                         (lambda made, timed: Measured(1, recording=taken_here(), live=True), "measured, live")]
)  # fmt: skip
def test_badges_say_how_old_a_result_is(shelf, today, result, word):
    assert result(*shelf).badge(word=True).endswith(f">{word}</span>")


def test_older_code_is_said_in_badge_and_tooltip(shelf):
    made, timed = shelf
    for result in (Compiled(1, recording=made), Measured(1, recording=timed)):
        badge = result.badge(word=True)
        assert badge.endswith(f">{result.kind}, recorded, older code</span>")
        assert f'aria-label="{result.kind}: recorded: the experiment&#x27;s code has changed since.' in badge


def taken_here():
    taken = recording(taken="2026-11-21T00:00:00Z")
    recordings.note_taken(taken)
    return taken


def test_only_what_was_measured_in_this_process_is_live(shelf):
    made_up = recording(taken="2026-11-22T00:00:00Z")
    with pytest.raises(ValueError, match=r"Measured\('1.5'\): not live: chipmath.bench has not taken this copy_band"):
        Measured(1.5, recording=made_up, live=True)
    changed = taken_here()
    changed.rows[0][1] *= 2
    with pytest.raises(ValueError, match="not live"):
        Measured(1.5, recording=changed, live=True)


def test_a_live_result_names_no_file(shelf):
    html = Measured(1.0, recording=taken_here(), live=True).inline_html()
    assert 'data-live="copy_bandwidth"' in html
    assert "data-recording" not in html
    assert 'aria-label="measured: live: A Card 80GB (sm_90)' in html


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda made, timed: Compiled(1), TypeError, "missing 1 required keyword-only argument: 'recording'"),
        (lambda made, timed: Measured(1.5, ".2f"), TypeError, "missing 1 required keyword-only argument: 'recording'"),
        (lambda made, timed: Compiled(1, recording=None), TypeError, r"Compiled\('1'\) needs recording=, .*, not None"),
        (lambda made, timed: Compiled(1, recording="compiled-mx_tiles.json"), TypeError, "needs recording="),
        (lambda made, timed: Compiled(1, recording=timed), ValueError, "is a measured recording"),
        (lambda made, timed: Measured(1, recording=made), ValueError, r"compiled-mx_tiles\.json is a compiled"),
        (lambda made, timed: Measured(1, recording=made, live=True), ValueError, "is a compiled recording"),
        (lambda made, timed: Measured(1, recording=recording(rows=[["copy", 9e12]])), ValueError, "with this content"),
        (lambda made, timed: Measured(1, recording=recording(taken="2026-11-22T00:00:00Z")), ValueError,
         r"recorded/ has no 2026-11-22T0000-a-card-80gb-copy_bandwidth\.json"),
        (lambda made, timed: Compiled(float("nan"), recording=made), ValueError, "must be finite"),
    ],
)  # fmt: skip
def test_results_without_their_recording_are_refused(shelf, make, error, message):
    with pytest.raises(error, match=message):
        make(*shelf)


def test_table_is_readable_as_text():
    rows = [["E4M3", 31.529, Computed(3, "d")], ["none", None, 12]]
    table = Table(["format", "SQNR in dB", "n"], rows, ["", ".2f", "d"], caption="A caption")
    lines = ["A caption", "format  SQNR in dB   n", "------  ----------  --"]
    assert repr(table).splitlines() == [*lines, "E4M3         31.53   3", "none             –  12"]
    assert Computed(table)._repr_mimebundle_()[0]["text/plain"] == repr(table)


def test_table_formats_by_column_and_escapes():
    table = Table(["format", "SQNR in dB"], [["E4M3 <x>", 31.529], ["none", None]], ["", ".2f"], caption="A & B")
    html = table._repr_html_()
    assert '<th scope="row">E4M3 &lt;x&gt;</th>' in html
    assert '<td class="number">31.53</td>' in html
    assert '<td class="number">–</td>' in html
    assert "<caption>A &amp; B</caption>" in html


def test_a_column_is_of_numbers_only_where_no_cell_is_a_text():
    table = Table(["registers"], [[128], ["spills"]])
    assert 'class="number"' not in table._repr_html_()
    assert repr(table).splitlines()[2:] == ["128", "spills"]


def test_a_row_is_named_by_its_first_text():
    """A reader who hears the table hears the name with every cell; a first column of numbers names nothing."""
    html = Table(["chip", "card", "n"], [["gfx950", "MI355X", 1]])._repr_html_()
    assert '<tr><th scope="row">gfx950</th><td>MI355X</td><td class="number">1</td></tr>' in html
    assert 'scope="row"' not in Table(["n", "chip"], [[1, "gfx950"]])._repr_html_()


def test_a_column_of_several_words_keeps_room_for_them():
    html = Table(["recipe", "n"], [["one scale a tensor", 1], ["none", 2]])._repr_html_()
    assert html.count('<th scope="row" class="words">') == 2
    assert 'class="words"' not in Table(["chip"], [["MI 355X"], ["HGMMA.64x128x16"]])._repr_html_()


def test_a_long_name_may_break_and_is_otherwise_itself():
    html = Table(["instruction", "n"], [["HGMMA.64x128x16.F32.BF16 <x>", 1], ["a.b", 2]])._repr_html_()
    assert "HGMMA.<wbr>64x128x16.<wbr>F32.<wbr>BF16 &lt;x&gt;" in html
    assert '<th scope="row">a.b</th>' in html.replace(' class="words"', "")


def test_table_cells_may_carry_their_own_evidence():
    html = Table(["source", "dB"], [["book", Computed(28.48, ".2f")]])._repr_html_()
    assert '28.48<span class="evidence evidence-computed"' in html


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Table(["a", "b"], [[1]]), ValueError, r"1 cells \[1\] for 2 columns"),
        (lambda: Table(["a"], [[1]], ["", ""]), ValueError, "2 cells"),
        (lambda: Table(["a"], [[1.5]], ["d"]), ValueError, "format code 'd'"),
        (lambda: Computed(1.5, "d"), ValueError, "format code 'd'"),
        (lambda: Cited(1.0), ValueError, r"Cited\(1.0\) needs source="),
        (lambda: Evidence(1.0), TypeError, "four kinds"),
    ],
)
def test_bad_results_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
