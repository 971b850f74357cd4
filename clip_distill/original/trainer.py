"""Lightning 1's arguments of the Trainer as Lightning 2's, on the GPUs that are there."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field

from clip_distill.system.errors import InvalidValue

GPU = ("gpu", "cuda", "mps")
PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
RENAMED = {"distributed_backend": "strategy", "reload_dataloaders_every_epoch": "reload_dataloaders_every_n_epochs"}
# Arguments that no longer exist and have a plain meaning today; `translate` knows it
MAPPED = (*RENAMED, "progress_bar_refresh_rate", "weights_summary", "terminate_on_nan", "num_processes")
HANDLED_ELSEWHERE = ("gpus", "resume_from_checkpoint")
# Arguments that no longer exist, and what to do instead
GONE = {
    "amp_backend": "--precision 16 uses PyTorch's own mixed precision",
    "amp_level": "--precision 16 uses PyTorch's own mixed precision",
    "auto_lr_find": "Lightning 2 has no such argument; choose --lr",
    "auto_scale_batch_size": "Lightning 2 has no such argument; choose --batch_size",
    "auto_select_gpus": "name them, --gpus=0,1",
    "checkpoint_callback": "the best and the last checkpoint are always kept",
    "default_root_dir": "the run goes to --save_dir",
    "flush_logs_every_n_steps": "logs are flushed by themselves",
    "log_gpu_memory": "--callbacks DeviceStatsMonitor logs it, with psutil installed",
    "replace_sampler_ddp": "samples are always shared out among the processes",
    "stochastic_weight_avg": "--callbacks StochasticWeightAveraging does it",
    "tpu_cores": "use --accelerator tpu --devices N",
    "track_grad_norm": "Lightning 2 has no such argument",
    "truncated_bptt_steps": "Lightning 2 has no such argument",
    "use_distributed_sampler": "samples are always shared out among the processes",
    "weights_save_path": "the run goes to --save_dir",
}


@dataclass
class Modern:
    """What `translate` gives.

    Args:
        arguments: Of Lightning 2's Trainer, as written on a command line.
        notes: What a flag means today.
        warnings: Where the run differs from what was asked for.
    """

    arguments: dict[str, str]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def flags() -> list[str]:
    """Names of all Trainer arguments that the command line takes, or refuses with a reason."""
    from lightning.pytorch import Trainer

    names = {*inspect.signature(Trainer).parameters, *MAPPED, *GONE, *HANDLED_ELSEWHERE}
    return sorted(names)


def count_gpus() -> int:
    """GPUs that Lightning's accelerator "gpu" can use."""
    import torch

    return torch.cuda.device_count() or int(torch.backends.mps.is_available())


def translate(given: Mapping[str, str], gpus: list[int] | None, device: str, found: int) -> Modern:
    """Arguments for Lightning 2.

    Args:
        given: The Trainer's arguments as written.
        gpus: Numbers of GPUs; [-1] is all of them.
        device: "cpu", "cuda" or "cuda:N", the original's own flag.
        found: How many GPUs there are.

    Raises:
        ValueError: An argument no longer exists, two contradict each other, or a GPU is not there.
    """
    for name in given:
        if name in GONE:
            raise InvalidValue(f"--{name} no longer exists: {GONE[name]}")
    modern = Modern(dict(given))
    _rename(modern)
    _place(modern, gpus, device, found)
    _set_precision(modern, found)
    arguments = modern.arguments
    if "max_steps" in arguments and "max_epochs" not in arguments:
        arguments["max_epochs"] = "-1"
    elif "max_epochs" not in arguments and "fast_dev_run" not in arguments:
        modern.notes.append("neither --max_epochs nor --max_steps is given: 10 epochs")
    if "gradient_clip_val" not in arguments:
        modern.notes.append("gradients are clipped at norm 1 (--gradient_clip_val 0 for none)")
    return modern


def _rename(modern: Modern) -> None:
    """Arguments with another name or form today."""
    arguments = modern.arguments
    for old, new in RENAMED.items():
        if old in arguments:
            arguments[new] = arguments.pop(old)
    if arguments.get("accelerator", "").startswith("ddp"):
        arguments["strategy"] = arguments.pop("accelerator")
    if (rate := arguments.pop("progress_bar_refresh_rate", None)) is not None:
        arguments["enable_progress_bar"] = "false" if rate == "0" else "true"
    if (summary := arguments.pop("weights_summary", None)) is not None:
        arguments["enable_model_summary"] = "false" if summary.lower() in ("none", "null") else "true"
    if arguments.pop("terminate_on_nan", None) is not None:
        modern.notes.append("--terminate_on_nan: a loss that is not finite always ends the run")
    if (processes := arguments.pop("num_processes", None)) is not None:
        arguments |= {"accelerator": "cpu", "devices": processes}


def _place(modern: Modern, gpus: list[int] | None, device: str, found: int) -> None:
    """Where to run: the GPUs by number; the CPU, with a warning, where there is none."""
    arguments = modern.arguments
    accelerator = arguments.get("accelerator", "auto")
    if gpus is not None and "devices" in arguments:
        raise InvalidValue("--gpus and --devices both say where to run: expected one of them")
    if gpus is not None and (device == "cpu" or accelerator not in ("auto", *GPU)):
        other = "--device cpu" if device == "cpu" else f"--accelerator {accelerator}"
        raise InvalidValue(f"--gpus and {other} contradict each other: leave one out")
    if (gpus is not None or accelerator in GPU) and not found:
        asked = "--gpus" if gpus is not None else f"--accelerator {accelerator}"
        modern.warnings.append(f"{asked}: this machine has no GPU that PyTorch can use; training on the CPU instead")
        arguments |= {"accelerator": "cpu", "devices": "1"}
        for name in ("strategy", "num_nodes"):
            arguments.pop(name, None)
    elif gpus is not None:
        arguments["accelerator"] = "gpu"
        if gpus == [-1]:
            return
        if missing := [number for number in gpus if not 0 <= number < found]:
            raise InvalidValue(
                f"--gpus are the numbers of GPUs: expected 0 to {found - 1} on this machine, found {missing}"
            )
        arguments["devices"] = str(gpus)
        if len(gpus) == 1 and gpus[0] > 0:
            modern.notes.append(
                f"--gpus={gpus[0]} is GPU number {gpus[0]}; for any {gpus[0]} GPUs: --devices {gpus[0]}"
            )
    elif device == "cpu":
        arguments.setdefault("accelerator", "cpu")


def _set_precision(modern: Modern, found: int) -> None:
    arguments = modern.arguments
    if "precision" not in arguments:
        return
    precision = PRECISIONS.get(arguments["precision"], arguments["precision"])
    accelerator = arguments.get("accelerator", "auto")
    if precision == "16-mixed" and (accelerator == "cpu" or (accelerator == "auto" and not found)):
        modern.warnings.append(
            "--precision=16: the CPU trains in bf16-mixed instead, since PyTorch scales no fp16 there"
        )
        precision = "bf16-mixed"
    arguments["precision"] = precision
