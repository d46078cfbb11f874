"""The experiments behind the book's recorded results, by name; `chipmath.bench` records them."""

from chipmath.experiments import (
    bytes_in_flight,
    copy_bandwidth,
    fp8_mma,
    gemm_routes,
    gemm_speed,
    hardware_counters,
    ilp_sweep,
    llvm_23,
    llvm_versions,
    matrix_chains,
    matrix_passes,
    mx_lanes,
    mx_step,
    mx_tiles,
    named_barriers,
    occupancy_price,
    one_equation,
    quantizer_code,
    quantizers,
    reference_quantizer,
    residency,
    residency_launches,
    training,
    training_cpu,
)
from chipmath.experiments.experiment import (
    AnyExperiment,
    CompiledExperiment,
    ComputedExperiment,
    Experiment,
    ExperimentError,
    MeasuredExperiment,
    Progress,
    Row,
    Run,
    compilers,
    describe,
)

__all__ = [
    "EXPERIMENTS",
    "AnyExperiment",
    "CompiledExperiment",
    "ComputedExperiment",
    "Experiment",
    "ExperimentError",
    "MeasuredExperiment",
    "Progress",
    "Row",
    "Run",
    "compilers",
    "describe",
]

COMPILED = (
    mx_tiles.EXPERIMENT,
    matrix_chains.EXPERIMENT,
    occupancy_price.EXPERIMENT,
    matrix_passes.EXPERIMENT,
    residency_launches.EXPERIMENT,
    one_equation.EXPERIMENT,
    llvm_versions.EXPERIMENT,
    llvm_23.EXPERIMENT,
    fp8_mma.EXPERIMENT,
    named_barriers.EXPERIMENT,
    mx_step.EXPERIMENT,
    mx_lanes.EXPERIMENT,
    quantizer_code.EXPERIMENT,
    gemm_routes.EXPERIMENT,
)
MEASURED = (  # in the order in which they run: what the book needs most comes before what a time limit may cut off
    copy_bandwidth.EXPERIMENT,
    quantizers.EXPERIMENT,
    gemm_speed.EXPERIMENT,
    ilp_sweep.EXPERIMENT,
    bytes_in_flight.EXPERIMENT,
    residency.EXPERIMENT,
    hardware_counters.EXPERIMENT,
    reference_quantizer.EXPERIMENT,
    training.EXPERIMENT,
)
COMPUTED = (training_cpu.EXPERIMENT,)
EXPERIMENTS: dict[str, AnyExperiment] = {
    experiment.name: experiment for experiment in (*COMPILED, *MEASURED, *COMPUTED)
}
