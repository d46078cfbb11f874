"""Train a small GPT in one or more recipes: PYTHONPATH=kernels python -m chipmath.training --help

  python -m chipmath.training --recipe fp32 mxfp8_rceil --seeds 5 --steps 400
  python -m chipmath.training --setting base --recipe bf16 mxfp8_rceil          (on a GPU)
  torchrun --standalone --nproc-per-node 2 -m chipmath.training --recipe mxfp8_rceil
  torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:PORT \\
           -m chipmath.training --setting base                                  (on two machines)

Under torchrun the ranks share each batch and average gradients (DDP): by gloo on CPUs, by NCCL or RCCL on GPUs.
--out FILE keeps every curve as JSON, rewritten after each run: an interrupted command loses only the run under way.
What the book shows is recorded by chipmath.bench: training_cpu without a GPU, training with one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import torch
from torch import distributed

from chipmath.training.progress import TerminalLines
from chipmath.training.recipes import RECIPES
from chipmath.training.run import SETTINGS, Curve, Setting, train_all
from chipmath.training.torch_settings import torch_settings

LARGEST_DIAL = 126  # powers of two to here, and their reciprocals, are normal float32 numbers


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 if no run diverged, 3 if one did."""
    parser = _parser()
    options = parser.parse_args(arguments)
    setting = SETTINGS[options.setting]
    device = _device(parser, options)
    _check_ranks(parser, setting)
    if options.out:
        _make_writable(parser, options.out)  # now, and not after an hour of training
    rank = _join(device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    jobs = [(RECIPES[name], seed) for seed in range(options.seeds) for name in options.recipe]
    if rank == 0:
        entropy = setting.language().nats_per_byte()
        print(setting.describe(options.steps or setting.steps))
        print(f"{device}, products in {dtype}; the text's entropy is {entropy:.4f} nats a byte")
        print(f"{'recipe':16} {'seed':>4} {'steps':>5} {'last loss':>10} {'held out':>10}  diverged", flush=True)
    curves: list[Curve] = []
    report = TerminalLines("training") if rank == 0 else lambda done, total, text: None
    runs = train_all(jobs, setting, steps=options.steps, device=device, dtype=dtype, dial=options.dial, report=report)
    try:
        with torch_settings():
            for curve, _ in runs:
                curves.append(curve)
                if rank == 0:
                    _show(curve)
                    if options.out:
                        _keep(curves, options.out)
    except KeyboardInterrupt:
        if rank == 0:
            print(f"interrupted: {len(curves)} of {len(jobs)} runs are complete", file=sys.stderr)
        return 130
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
    return 3 if any(curve.stopped for curve in curves) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chipmath.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", nargs="+", choices=RECIPES, default=["fp32", "mxfp8_rceil"], metavar="NAME",
                        help=", ".join(RECIPES))  # fmt: skip
    parser.add_argument("--setting", choices=SETTINGS, default="toy", help="sizes of model and text")
    parser.add_argument("--seeds", type=_positive, default=1, help="0 to N - 1, each for every recipe")
    parser.add_argument("--steps", type=_positive, help="a run; without it the setting's")
    parser.add_argument("--dial", type=_exponent, default=0, help="exponent of the outlier dial")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="cuda is also ROCm's; without it what is here")
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the curves as JSON")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a positive whole number, got {text}")
    return int(text)


def _exponent(text: str) -> int:
    if not text.removeprefix("-").isdecimal() or abs(int(text)) > LARGEST_DIAL:
        raise argparse.ArgumentTypeError(f"must be a whole number from -{LARGEST_DIAL} to {LARGEST_DIAL}, got {text}")
    return int(text)


def _device(parser: argparse.ArgumentParser, options: argparse.Namespace) -> torch.device:
    """What this process computes on; under torchrun each process of a machine has a GPU of its own."""
    gpus = torch.cuda.device_count()
    if (options.device or ("cuda" if gpus else "cpu")) == "cpu":
        return torch.device("cpu")
    if not gpus:
        parser.error("--device cuda: torch sees no GPU here")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if local_rank >= gpus:
        parser.error(f"process {local_rank + 1} of this machine finds {gpus} GPUs: start fewer, or take --device cpu")
    return torch.device("cuda", local_rank)


def _check_ranks(parser: argparse.ArgumentParser, setting: Setting) -> None:
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if setting.sequences % ranks:
        parser.error(f"{setting.sequences} sequences a step cannot be shared evenly by {ranks} ranks")


def _make_writable(parser: argparse.ArgumentParser, path: Path) -> None:
    if path.is_dir():
        parser.error(f"--out {path}: is a folder, a file is wanted")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        parser.error(f"--out {path}: {error.strerror}")


def _join(device: torch.device) -> int:
    """This process's rank; under torchrun it joins the others."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:  # torchrun sets it
        return 0
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return distributed.get_rank()


def _show(curve: Curve) -> None:
    last = f"{curve.losses[-1]:10.6f}" if curve.losses else f"{'–':>10}"
    held_out = f"{curve.held_out:10.6f}" if curve.held_out is not None else f"{'–':>10}"
    line = f"{curve.recipe.name:16} {curve.seed:4} {len(curve.losses):5} {last} {held_out}"
    print(f"{line}  {curve.stopped or ''}".rstrip(), flush=True)


def _keep(curves: list[Curve], path: Path) -> None:
    """Rewrite the file in one step: it always holds whole runs."""
    entries = [
        {
            "recipe": curve.recipe.name,
            "seed": curve.seed,
            "dial": curve.dial,
            "losses": curve.losses,
            "held_out": curve.held_out,
            "stopped": str(curve.stopped) if curve.stopped else None,
        }
        for curve in curves
    ]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(entries), encoding="utf-8")
    os.replace(partial, path)
