# ruff: noqa: D100, D103, E402, UP036  the lines below become a cell of every notebook
# Makes the code behind this article importable, without network: it is packed into this cell.
# It goes into a folder beside the notebook, yours to read and change; a folder that is there already is used as it is.
import base64
import json
import lzma
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from IPython.display import HTML, display

PACKED = """@PACKED@"""
FOLDER = Path("@FOLDER@").resolve()

if sys.version_info < (3, 10):
    raise ImportError(f"this notebook needs Python 3.10 or later; this kernel is {sys.version.split()[0]}")
missing = [name for name in ("numpy", "torch", "matplotlib") if find_spec(name) is None]
if missing:
    raise ImportError(f"this notebook also needs {', '.join(missing)}: pip install {' '.join(missing)}")


def write_missing(folder, texts):
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(text, encoding="utf-8")


packed = json.loads(lzma.decompress(base64.b64decode(PACKED)))
if not FOLDER.exists():
    unfinished = FOLDER.with_name(FOLDER.name + ".part")
    write_missing(unfinished, packed["package"])
    unfinished.rename(FOLDER)
write_missing(Path(), packed["data"])
if str(FOLDER) not in sys.path:
    sys.path.insert(0, str(FOLDER))

# The book keeps results for its sentences with MyST-NB, for which a notebook has no use; run again, this finds its own.
if "myst_nb" not in sys.modules and find_spec("myst_nb") is None:
    sys.modules["myst_nb"] = ModuleType("myst_nb")
    sys.modules["myst_nb"].glue = lambda name, value, display=True: None

import chipmath

if Path(chipmath.__file__).resolve().parents[1] != FOLDER:
    raise ImportError(
        f"another chipmath was imported before, {chipmath.__file__}; restart the kernel and run all cells"
    )
display(HTML(f"<style>{packed['style']}</style>Using chipmath in {FOLDER.name}/"))
