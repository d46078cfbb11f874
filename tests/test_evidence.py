"""Result objects: how they format themselves, and what they refuse."""

import numpy as np
import pytest
import torch
from chipmath.evidence import METADATA_KEY, Cited, Computed, Evidence, Table


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (Computed(33 / 32, ".5f"), "1.03125"),
        (Computed(np.float32(0.5), ".1%"), "50.0%"),
        (Computed(torch.tensor(31.529), ".2f", "dB"), "31.53\u00a0dB"),
        (Computed(4, "d"), "4"),
        (Computed("VGPR and LDS"), "VGPR and LDS"),
        (Cited(27.6, ".1f", "dB", source="pandey2026grouped"), "27.6\u00a0dB"),
    ],
)
def test_numbers_format_themselves(result, text):
    data, metadata = result._repr_mimebundle_()
    assert data["text/plain"] == text
    assert data["text/html"].startswith(f'<span class="evidence-value">{text}<span class="evidence ')
    assert metadata == {METADATA_KEY: {"kind": result.kind}}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), np.float64("nan"), torch.tensor(float("-inf"))])
def test_a_result_is_finite(number):
    with pytest.raises(ValueError, match=r"must be finite, got (nan|-?inf)"):
        Computed(number)
    with pytest.raises(ValueError, match="must be finite"):
        Table(["x"], [[number]])._repr_html_()


def test_badges_say_their_kind_to_a_screen_reader():
    html = Cited(1.0, source="ocp2023mx").inline_html()
    assert 'aria-label="cited: ocp2023mx"' in html
    assert 'tabindex="0"' in html


def test_nested_kinds_show_one_badge_each():
    html = Cited(Computed(Table(["x"], [[1]])), source="ocp2023mx")._repr_mimebundle_()[0]["text/html"]
    assert html.index("evidence-computed") < html.index("evidence-cited")
    assert html.count('class="evidence ') == 2


def test_table_formats_by_column_and_escapes():
    table = Table(["format", "SQNR in dB"], [["E4M3 <x>", 31.529], ["none", None]], ["", ".2f"], caption="A & B")
    html = table._repr_html_()
    assert "<td>E4M3 &lt;x&gt;</td>" in html
    assert '<td class="number">31.53</td>' in html
    assert '<td class="number">–</td>' in html
    assert "<caption>A &amp; B</caption>" in html


def test_table_cells_may_carry_their_own_evidence():
    html = Table(["source", "dB"], [["book", Computed(28.48, ".2f")]])._repr_html_()
    assert '28.48<span class="evidence evidence-computed"' in html


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Table(["a", "b"], [[1]]), ValueError, r"1 cells \[1\] for 2 columns"),
        (lambda: Table(["a"], [[1]], ["", ""]), ValueError, "2 cells"),
        (lambda: Cited(1.0), ValueError, r"Cited\(1.0\) needs source="),
        (lambda: Evidence(1.0), TypeError, "four kinds"),
    ],
)
def test_bad_results_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
