"""The MX block explorer: every value that a code stands for, the constants of the scale rules, and the first block."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from chipmath.evidence import NO_BREAK_SPACE, Computed
from chipmath.formats import E8M0, FORMATS, ElementFormat
from chipmath.quantize import SCALE_RULES, clipped, flushed, quantize, scale_constant, sqnr_db

from explorers.options import options

BLOCK = 32
FORMAT, RULE, LAW, DRAW = "E4M3", "floor", "gaussian", 1
DRAWS = 8  # of each law
DIGITS = 4  # significant, so that a block stays short enough to read and to link

LAWS = {
    "gaussian": ("Gaussian", lambda rng: rng.standard_normal(BLOCK)),
    "uniform": ("uniform", lambda rng: rng.uniform(-1, 1, BLOCK)),
    "heavy": ("heavy-tailed (Student t, 2 degrees of freedom)", lambda rng: rng.standard_t(2, BLOCK)),
}
RULE_LABELS = {
    "floor": "floor (OCP MX 6.3)",
    "ceil": "ceil",
    "rceil": "rceil (never clips)",
    "even": "even",
}


def draws() -> dict[str, list[list[float]]]:
    """Return the blocks that the explorer offers: for each law, one a seed from 1 on.

    NumPy keeps RandomState's numbers the same for ever, so that a link shows the block that it was made for.
    """
    return {
        law: [[float(f"{x:.{DIGITS}g}") for x in draw(np.random.RandomState(seed))] for seed in range(1, DRAWS + 1)]
        for law, (_, draw) in LAWS.items()
    }


def data() -> dict:
    """Return everything that the MX block explorer's script needs."""
    return {
        "block": BLOCK,
        "formats": {name: _format(fmt) for name, fmt in FORMATS.items()},
        "scale": {"bias": E8M0.bias, "max": E8M0.max_code, "nan": E8M0.nan_code},
        "draws": draws(),
        "start": {"format": FORMAT, "rule": RULE, "law": LAW, "draw": DRAW},
    }


def _format(fmt: ElementFormat) -> dict:
    codes = torch.arange(fmt.max_code + 1, dtype=torch.uint8)
    return {
        "bits": fmt.bits,
        "fields": _fields(fmt),
        "float": bool(fmt.exponent_bits),
        "emax": fmt.emax,
        "min_normal": fmt.min_normal,
        "sign": fmt.sign_code,
        "nan": fmt.nan_code if fmt.has_nan else 0,
        "values": [_short(value) for value in fmt.decode(codes).tolist()],
        "constants": {rule: scale_constant(fmt, rule) for rule in SCALE_RULES},
    }


def _fields(fmt: ElementFormat) -> list[int]:
    """Return the widths of sign, exponent and fraction; INT8 has one bit before the point in the exponent's place."""
    return [1, fmt.exponent_bits or 1, fmt.mantissa_bits]


def _short(value: float) -> int | float:
    return int(value) if value.is_integer() else value


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
COLUMNS = "".join(
    f'<th scope="col"{attributes}>{name}</th>'
    for name, attributes in {
        "no.": "",
        "value": ' class="number"',
        "code": "",
        "hex": ' class="wide"',  # left out on a phone, like the absolute error
        "decoded": ' class="number"',
        "error": ' class="number wide"',
        "relative": ' class="number"',
        "note": "",
    }.items()
)


@dataclass
class Block:
    """A quantized block as a table, which the script later fills with other results."""

    x: list[float]
    fmt: ElementFormat
    rule: str

    def _repr_html_(self) -> str:
        x = torch.tensor([self.x], dtype=torch.float32)
        got = quantize(x, self.fmt, self.rule)
        values = got.dequantize()
        columns = (x, got.elements, values, clipped(x, got), flushed(x, got))
        cells = zip(*(column[0].tolist() for column in columns))
        body = "".join(self._row(number, *row) for number, row in enumerate(cells, 1))
        byte = int(got.scales[0, 0])
        scale = "2" + str(byte - E8M0.bias).translate(SUPERSCRIPTS)
        ratio = f"{sqnr_db(x, values):.1f}{NO_BREAK_SPACE}dB"
        return (
            '<div class="result-table" tabindex="0" role="group" aria-label="The block, value by value">'
            f'<table class="result"><caption>{self.fmt}, {self.rule}: scale byte 0x{byte:02X} is {scale}; '
            f"signal to noise {ratio}</caption><thead><tr>{COLUMNS}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def _row(self, number, x, code, value, is_clipped, is_flushed) -> str:
        error = value - x
        relative = f"{100 * error / abs(x):+.1f}" if error else "0"
        note = "clipped" if is_clipped else "flushed" if is_flushed else ""
        texts = (f"{x:.6g}", f"{value:.6g}", f"{error:+.2g}" if error else "0", f"{relative}{NO_BREAK_SPACE}%")
        x, value, error, relative = (text.replace("-", "−") for text in texts)
        return (
            f'<tr><th scope="row">{number}</th><td class="number">{x}</td>'
            f'<td class="explorer-code">{self._bits(code)}</td><td class="wide">0x{code:02X}</td>'
            f'<td class="number">{value}</td><td class="number wide">{error}</td>'
            f'<td class="number">{relative}</td><td>{note}</td></tr>'
        )

    def _bits(self, code: int) -> str:
        digits = iter(f"{code:0{self.fmt.bits}b}")
        fields = zip(("sign", "exponent", "fraction"), _fields(self.fmt))
        return "".join(f'<span class="{name}">{"".join(islice(digits, width))}</span>' for name, width in fields)


def first() -> dict[str, str | Computed]:
    """Return what the explorer shows without JavaScript: its first block."""
    x = draws()[LAW][DRAW - 1]
    return {
        "first": Computed(Block(x, FORMATS[FORMAT], RULE)),
        "values": ", ".join(f"{value:g}" for value in x),
        "formats": options({name: name for name in FORMATS}, FORMAT),
        "rules": options(RULE_LABELS, RULE),
        "laws": options({law: label for law, (label, _) in LAWS.items()}, LAW),
        "draws": options({str(draw): str(draw) for draw in range(1, DRAWS + 1)}, str(DRAW)),
        "places": options({str(place): str(place) for place in range(1, BLOCK + 1)}, "1"),
    }
