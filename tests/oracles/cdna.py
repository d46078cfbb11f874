"""Machine code of AMD's CDNA3 and CDNA4 chips (gfx942, gfx950), executed on the CPU from LLVM's assembly text.

`run` carries out a compiled kernel over a whole grid. All waves go in lockstep: scalar registers are arrays (waves,),
vector registers (waves, 64), a wave that branches elsewhere waits until the others come by. Nothing is skipped: an
opcode, a modifier, an operand or a mode that is not in here raises `NotImplementedError` with its line.

What the instructions do is AMD's: "CDNA3 Instruction Set Architecture" and "CDNA4 Instruction Set Architecture"
reference guides, sections as given below; "pseudocode" is that of their chapter 12. How a kernel starts is LLVM's
"User Guide for AMDGPU Backend" (initial kernel execution state, kernarg preload). Where the documents leave something
open, the choice is one that code must not rely on:

* registers and LDS start as noise; bits that a partial write leaves alone stay what they were
* of two NaN operands a negative one comes through; Inf * 0 is the positive quiet NaN
* a register that a load has not filled yet, by the counters of s_waitcnt (section 4.4), must not be touched
* bytes of LDS that another wave wrote, or read, since the last barrier must not be read, or written

An access to memory must be aligned to its own width, which is stricter than the chips are. Not checked, and so taken on
trust from LLVM: the wait states that some pairs of instructions need between them (section 4.5).
"""

from __future__ import annotations

import numpy as np
from oracles.cdna_arithmetic import DPP, DTYPES, F32, I32, SCALAR, U32, U64, VECTOR, Operation, as_words
from oracles.cdna_instructions import special
from oracles.cdna_text import EXEC, LANES, HazardError, Instruction, Operand, Program, operand, parse
from oracles.memory import Memory

SGPRS = 128
KERNARG = 1 << 20  # where the kernel's arguments lie, far below every array


def run(
    assembly: str,
    grid: tuple[int, ...],
    threads: int,
    arguments: list[int],
    memory: Memory,
    *,
    shared_bytes: int = 0,
) -> None:
    """Execute a kernel over ``grid`` groups of ``threads``.

    assembly      LLVM's text of one kernel, with its .amdhsa_ directives; code that converts to FP8 needs its
                  .amdgcn_target, too
    arguments     the kernel's parameters in order: addresses (`Memory.address`), 32-bit integers
    shared_bytes  LDS that the launch adds to what the descriptor asks for

    Code that wants its arguments preloaded into SGPRs is entered behind the part that loads them for old firmware.
    Raises AccessError, HazardError, or NotImplementedError for what is not modelled.
    """
    Machine(parse(assembly), grid, threads, arguments, memory, shared_bytes).run()


def kernarg_offsets(arguments: list[int]) -> list[int]:
    """Where each argument lies in the kernarg segment: an address is aligned to 8 bytes, an integer to 4."""
    offsets, end = [], 0
    for value in arguments:
        size = 8 if value >= 1 << 32 else 4
        offsets.append(-(-end // size) * size)
        end = offsets[-1] + size
    return offsets


def _lanes(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Bits of pairs of SGPRs (waves,) as bool (waves, 64)."""
    words = np.stack([low, high], 1)
    return np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").astype(bool)


class Machine:
    """The state of all waves of a launch.

    files              "v" and "a", VGPRs and AccVGPRs: uint32 (registers, waves, 64)
    scalars            uint32 (registers, waves)
    scc, pc, running   (waves,); barrier: the line of the barrier at which a wave waits, else -1
    here               waves that the current instruction is for
    filling            by file, (registers, waves): how many loads have yet to fill a register
    queues             by counter, oldest first: accesses that have not finished, as `load_later` takes them
    lds                uint8 (groups, bytes); last_writer, last_reader: the wave since the last barrier, -1: none, -2:
                       several; lds_filling: where a load to LDS has not finished
    saturate           MODE.FP16_OVFL (waves,)
    """

    def __init__(self, program: Program, grid, threads, arguments, memory, shared_bytes):
        """Set registers as the launch does (LLVM, "Initial Kernel Execution State")."""
        self.program, self.memory, self.descriptor = program, memory, program.descriptor
        if threads % LANES:
            raise NotImplementedError(f"{threads} threads are no whole number of waves")
        groups = int(np.prod(grid))
        self.waves_a_group = threads // LANES
        self.waves = groups * self.waves_a_group
        noise = np.random.default_rng(0)
        registers = max(self.descriptor["next_free_vgpr"], 1)
        self.files = {name: noise.integers(1 << 32, size=(registers, self.waves, LANES), dtype=U32) for name in "va"}
        self.scalars = noise.integers(1 << 32, size=(SGPRS, self.waves), dtype=U32)
        self.scc = noise.integers(2, size=self.waves).astype(bool)
        self.group = np.arange(self.waves) // self.waves_a_group
        size = self.descriptor["group_segment_fixed_size"] + shared_bytes
        self.lds = noise.integers(256, size=(groups, size), dtype=np.uint8)
        self.last_writer, self.last_reader = (np.full((groups, size), -1) for _ in range(2))
        self.lds_filling = np.zeros((groups, size), bool)
        self.filling = {name: np.zeros((registers, self.waves), int) for name in "va"}
        self.filling["s"] = np.zeros((SGPRS, self.waves), int)
        self.queues: dict[str, list] = {"vmcnt": [], "lgkmcnt": []}
        self.saturate = np.full(self.waves, bool(self.descriptor["fp16_overflow"]))
        self.pc, self.running = np.zeros(self.waves, int), np.ones(self.waves, bool)
        self.barrier = np.full(self.waves, -1)
        self.steps = 0
        self._check_modes()
        self._launch(grid, threads, arguments)

    def _check_modes(self) -> None:
        """MODE at the start: only what is modelled."""
        wanted = {"float_round_mode_32": 0, "float_denorm_mode_32": 3, "ieee_mode": 1, "dx10_clamp": 1, "tg_split": 0}
        wanted |= {"float_round_mode_16_64": 0, "float_denorm_mode_16_64": 3}
        wanted |= {"enable_private_segment": 0, "system_sgpr_workgroup_info": 0}
        wanted |= {"user_sgpr_private_segment_size": 0, "user_sgpr_kernarg_segment_ptr": 1}
        for name, value in wanted.items():
            if self.descriptor[name] != value:
                raise NotImplementedError(f".amdhsa_{name} {self.descriptor[name]}")

    def _launch(self, grid, threads: int, arguments: list[int]) -> None:
        """Kernarg segment, user SGPRs, the group's ids in the SGPRs that follow, v0 and EXEC."""
        size = self.descriptor["kernarg_size"]
        self.kernarg = np.zeros(size, np.uint8)
        for offset, value in zip(kernarg_offsets(arguments), arguments):
            data = np.array([value], U64).view(np.uint8)[: 8 if value >= 1 << 32 else 4]
            self.kernarg[offset : offset + data.size] = data
        counts = [*grid, 1, 1][:3]
        if size >= 256:  # hidden arguments, which begin with the grid's size and the group's
            hidden = np.concatenate([np.array(counts, U32).view(np.uint8), np.array([threads, 1, 1], "u2").view("u1")])
            self.kernarg[size - 256 : size - 256 + hidden.size] = hidden
        before = [self.descriptor[f"user_sgpr_{name}"] for name in ("dispatch_ptr", "queue_ptr")]
        at = 2 * sum(before)  # what those point to is not here: noise
        self.scalars[at], self.scalars[at + 1] = KERNARG, 0
        at += 2 + 2 * self.descriptor["user_sgpr_dispatch_id"]
        loaded = self.descriptor.get("user_sgpr_kernarg_preload_length", 0)
        if self.descriptor.get("user_sgpr_kernarg_preload_offset", 0):
            raise NotImplementedError("arguments that are preloaded from the second on")
        if loaded:
            self.scalars[at : at + loaded] = self.kernarg[: 4 * loaded].view(U32)[:, None]
            self.pc[:] = self.program.preloaded_entry
        at = self.descriptor["user_sgpr_count"]
        for axis, index in zip("xyz", np.unravel_index(self.group, counts, order="F")):
            if self.descriptor[f"system_sgpr_workgroup_id_{axis}"]:
                self.scalars[at] = index
                at += 1
        threads_of = np.arange(self.waves)[:, None] % self.waves_a_group * LANES + np.arange(LANES)
        self.files["v"][0] = threads_of  # y and z, in bits 10 and up where they are asked for, are 0
        self.scalars[EXEC : EXEC + 2] = 0xFFFFFFFF

    def run(self) -> None:
        """Step until all waves have ended; the wave that is furthest back goes first."""
        with np.errstate(all="ignore"):
            while self.running.any():
                ready = self.running & (self.barrier < 0)
                at = int(self.pc[ready].min())
                self.here = ready & (self.pc == at)
                self.step(self.program.instructions[at])

    def step(self, ins: Instruction) -> None:
        """Execute one instruction for the waves that are here."""
        self.pc[self.here] += 1
        self.steps += 1
        self._active = None
        self.execute(ins)

    def execute(self, ins: Instruction) -> None:
        """What an instruction does besides going on."""
        if ins.opcode in VECTOR:
            self._vector(ins, VECTOR[ins.opcode])
        elif ins.opcode in SCALAR:
            self._scalar(ins, SCALAR[ins.opcode])
        elif function := special(ins.opcode):
            function(self, ins)
        else:
            ins.refuse("unknown opcode")

    # --- registers

    @property
    def active(self) -> np.ndarray:
        """Lanes that EXEC enables, of the waves that are here."""
        if self._active is None:
            self._active = _lanes(self.scalars[EXEC], self.scalars[EXEC + 1]) & self.here[:, None]
        return self._active

    def touch(self, ins: Instruction, file: str, first: int, count: int) -> None:
        if (self.filling[file][first : first + count, self.here] > 0).any():
            raise HazardError(f"line {ins.line}: {ins.text}: {file}{first} is still being loaded")

    def registers(self, ins: Instruction, text: str, count: int) -> np.ndarray:
        """Words of a register operand, uint32 (count, waves, 64 or 1), for reading or writing in place."""
        op = operand(text)
        if op.file == "constant" or op.count != count or op.absolute or op.negative or op.signed:
            ins.refuse(f"operand {text}")
        self.touch(ins, op.file, op.index, count)
        if op.file == "s":
            return self.scalars[op.index : op.index + count, :, None]
        return self.files[op.file][op.index : op.index + count]

    def words(self, ins: Instruction, op: Operand, count: int) -> np.ndarray:
        """``count`` words of a source, uint32 (count, waves or 1, 64 or 1)."""
        if op.file != "constant":
            if op.count < count:
                ins.refuse(f"{count} words wanted of an operand that has {op.count}")
            self.touch(ins, op.file, op.index, count)
            if op.file == "s":
                return self.scalars[op.index : op.index + count, :, None]
            return self.files[op.file][op.index : op.index + count]
        if isinstance(op.value, float):  # inline constants are float32 for operands of 32 bits
            if count != 1:
                ins.refuse("a float constant of 64 bits")
            return np.array([op.value], F32).view(U32)[:, None, None]
        if count == 2 and not -16 <= op.value < 1 << 31:  # whether its sign is extended depends on the instruction
            ins.refuse("a literal of 64 bits")
        return np.array([op.value & (1 << 64) - 1], U64).view(U32)[:count, None, None]

    def source(self, ins: Instruction, text: str, kind: str, place: int) -> np.ndarray:
        """A source as its kind says, with modifiers, and sub-dword or cross-lane selection."""
        op = operand(text)
        if kind == "mask":
            self.touch(ins, "s", op.index, 2)
            return _lanes(self.scalars[op.index], self.scalars[op.index + 1])
        wide = kind.endswith("64")
        words = self.words(ins, op, 2 if wide else 1)
        if ins.encoding == "sdwa":
            words = self._selected(ins, words, ins.modifiers[f"src{place}_sel"], op.signed)
        elif op.signed:
            ins.refuse("sext outside of SDWA")
        if ins.encoding == "dpp" and place == 0:
            words = self._permuted(ins, words)
        if op.absolute or op.negative:
            if kind != "f32":
                ins.refuse("a float modifier on an integer")
            words = words & U32(0x7FFFFFFF) if op.absolute else words
            words = words ^ U32(0x80000000) if op.negative else words
        if wide:
            return (words[0].astype(U64) | words[1].astype(U64) << U64(32)).view(DTYPES[kind])
        if kind.endswith("16"):
            if op.file == "constant" and isinstance(op.value, float):
                ins.refuse("a float constant of 16 bits")
            return words[0].astype(np.uint16).view(DTYPES.get(kind, np.uint16))
        return np.ascontiguousarray(words[0]).view(DTYPES[kind])

    def _selected(self, ins: Instruction, words: np.ndarray, which: str, signed: bool) -> np.ndarray:
        """SDWA's source select (CDNA4 ISA, section 13.3.7): a byte or word, extended to 32 bits."""
        if which == "DWORD":
            return words
        part, _, number = which.partition("_")
        bits = {"BYTE": 8, "WORD": 16}[part]
        moved = words << U32(32 - bits * (int(number) + 1))
        return (moved.view(I32) >> I32(32 - bits)).view(U32) if signed else moved >> U32(32 - bits)

    def _permuted(self, ins: Instruction, words: np.ndarray) -> np.ndarray:
        """DPP (CDNA4 ISA, section 13.3.9): another lane's word of a row of 16; 0 from beyond it or a disabled lane."""
        modifiers = dict(ins.modifiers)
        *masks, bound = [modifiers.pop(name, None) for name in ("row_mask", "bank_mask", "bound_ctrl")]
        ((control, value),) = modifiers.items()
        if masks != ["0xf", "0xf"] or bound not in (None, "1") or control not in DPP:
            ins.refuse("DPP")
        lane = np.arange(LANES)
        source = DPP[control](lane % 16, value)
        lanes = lane // 16 * 16 + source % 16
        valid = self.active[:, lanes] & (source >= 0) & (source < 16)
        if bound is None and (self.active & ~valid).any():
            ins.refuse("DPP that leaves a lane as it was")
        return np.where(valid, np.broadcast_to(words, (1, self.waves, LANES))[..., lanes], 0).astype(U32)

    def put_mask(self, ins: Instruction, text: str, value: np.ndarray) -> None:
        """A bit a lane into a pair of SGPRs, 0 for lanes that are not active."""
        bits = np.broadcast_to(value, (self.waves, LANES)) & self.active
        words = np.packbits(bits, axis=1, bitorder="little").view(U32)
        self.put_scalar(ins, text, words.T, 2)

    def put_scalar(self, ins: Instruction, text: str, value: np.ndarray, count: int) -> None:
        """Words (count, waves) into SGPRs."""
        op = operand(text)
        if op.file != "s" or op.count != count:
            ins.refuse(f"destination {text}")
        self.touch(ins, "s", op.index, count)
        self._active = None  # this may be EXEC
        self.scalars[op.index : op.index + count, self.here] = np.broadcast_to(value, (count, self.waves))[:, self.here]

    def put_vector(self, ins: Instruction, text: str, words: np.ndarray) -> None:
        """Words (count, waves or 1, 64 or 1) into the active lanes of VGPRs or AccVGPRs."""
        if operand(text).file == "s":
            ins.refuse(f"destination {text}")
        np.copyto(self.registers(ins, text, len(words)), words, where=self.active)

    # --- ALU

    def _sources(self, ins: Instruction, operation: Operation) -> list[np.ndarray]:
        given = iter(ins.operands[len([kind for kind in operation.results if kind != "scc"]) :])
        values = []
        for place, kind in enumerate(operation.sources):
            if kind in ("scc", "zero"):
                values.append(self.scc[:, None] if kind == "scc" else np.zeros((1, 1), bool))
            else:
                values.append(self.source(ins, next(given, None) or ins.refuse("too few operands"), kind, place))
        if next(given, None):
            ins.refuse("too many operands")
        return values

    def _vector(self, ins: Instruction, operation: Operation) -> None:
        allowed = {
            "sdwa": {"dst_sel", "dst_unused", "src0_sel", "src1_sel"},
            "dpp": {"row_mask", "bank_mask", "bound_ctrl", *DPP},
        }.get(ins.encoding, set(operation.named))
        if set(ins.modifiers) - allowed:
            ins.refuse("modifier")
        numbers = {name: int(ins.modifiers[name], 0) for name in operation.named}
        results = operation.compute(*self._sources(ins, operation), **numbers)
        results = results if len(operation.results) > 1 else (results,)
        for kind, text, value in zip(operation.results, ins.operands, results, strict=False):
            if kind == "mask":
                self.put_mask(ins, text, value)
            elif kind == "b16":  # whether the upper half is cleared is not documented: noise
                self.put_vector(ins, text, (value.astype(U32) | U32(0xA5A5 << 16))[None])
            else:
                self.put_vector(ins, text, self._placed(ins, text, as_words(value, kind)))

    def _placed(self, ins: Instruction, text: str, words: np.ndarray) -> np.ndarray:
        """SDWA's destination select: a byte or word of the destination, the rest zeros or as it was."""
        if ins.encoding != "sdwa" or "dst_sel" not in ins.modifiers or ins.modifiers["dst_sel"] == "DWORD":
            return words
        part, _, number = ins.modifiers["dst_sel"].partition("_")
        bits = {"BYTE": 8, "WORD": 16}[part]
        mask = U32(((1 << bits) - 1) << bits * int(number))
        placed = (words << U32(bits * int(number))) & mask
        if ins.modifiers["dst_unused"] == "UNUSED_PAD":
            return placed
        if ins.modifiers["dst_unused"] == "UNUSED_PRESERVE":
            return placed | (self.registers(ins, text, 1) & ~mask)
        return ins.refuse("dst_unused")

    def _scalar(self, ins: Instruction, operation: Operation) -> None:
        if ins.modifiers:
            ins.refuse("modifier")
        results = operation.compute(*self._sources(ins, operation))
        results = results if len(operation.results) > 1 else (results,)
        for kind, value in zip(operation.results, results, strict=True):
            if kind == "scc":
                self.scc = np.where(self.here, np.broadcast_to(value, (self.waves, 1))[:, 0], self.scc)
            else:
                words = as_words(value, kind)
                self.put_scalar(ins, ins.operands[0], words[..., 0], len(words))

    # --- memory

    def load_later(self, ins: Instruction, counter: str, kind: str, registers=None, lds=()) -> None:
        """Count an access. What it fills must not be touched until a wait covers it.

        registers  file, first and count
        lds        (waves, groups, bytes) as index arrays, one for each wave of a group
        """
        if registers:
            file, first, count = registers
            self.filling[file][first : first + count, self.here] += 1
        self.queues[counter].append((self.here.copy(), kind, registers, lds))

    def wait(self, counter: str, most: int) -> None:
        """S_WAITCNT (section 4.4): the oldest finish until ``most`` are left; scalar loads finish in any order."""
        left = np.zeros(self.waves, int)
        kept = []
        for waves, kind, registers, lds in reversed(self.queues[counter]):
            left += waves
            done = waves & self.here & (left > most)
            if kind == "scalar" and most:
                done[:] = False
            if registers and done.any():
                file, first, count = registers
                self.filling[file][first : first + count, done] -= 1
            for owners, groups, at in lds:
                finished = np.broadcast_to(done[owners], at.shape)
                groups, owners = (np.broadcast_to(each, at.shape)[finished] for each in (groups, owners))
                self.lds_filling[groups, at[finished]] = False
                self.last_writer[groups, at[finished]] = owners
            waves = waves & ~done
            if waves.any():
                kept.append((waves, kind, registers, lds))
        self.queues[counter] = kept[::-1]

    def fetch(self, addresses: np.ndarray, width: int, active: np.ndarray) -> np.ndarray:
        """Words (words, waves, 64) of global memory; a byte or short is extended with zeros."""
        data = self.memory.load(addresses.ravel(), width, active.ravel()).reshape(self.waves, -1, width)
        padded = np.zeros((*data.shape[:2], max(width, 4)), np.uint8)
        padded[..., :width] = data
        return np.moveaxis(padded.view(U32), 2, 0)

    def scalar_bytes(self, ins: Instruction, addresses: np.ndarray, width: int) -> np.ndarray:
        """Words (words, waves) that S_LOAD reads: from the kernarg segment, or from global memory."""
        out = np.zeros((self.waves, width), np.uint8)
        argument = self.here & (addresses >= KERNARG) & (addresses + width <= KERNARG + self.kernarg.size)
        at = (addresses[argument] - KERNARG)[:, None] + np.arange(width)
        out[argument] = self.kernarg[at]
        for word in range(0, width, 4):
            out[:, word : word + 4] |= self.memory.load(addresses + word, 4, self.here & ~argument)
        return out.view(U32).T
