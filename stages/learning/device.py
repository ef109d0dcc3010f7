"""Where a lab computes, and how, as far as torch must be told before it begins."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

import torch

from stages.learning.recipe import Compute
from stages.program.options import OptionError, UserError

TF32_CAPABILITY = (8, 0)  # of a GPU that has it
# Of glibc's mallopt: its numbers stand in a header of C, and what they are set to.
_MALLOC_OPTIONS = {
    "M_MMAP_MAX": (-4, 0),  # no tensor has pages of its own, which go back to the kernel with it
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),  # bytes free at the end of the heap before some of it goes back
    "M_TOP_PAD": (-2, 1 << 26),  # bytes got at once
}


def choose_device(compute: Compute) -> torch.device:
    """Set threads and determinism for `compute`, and choose the device by LABDAG_DEVICE (auto, cpu, cuda).

    `auto`, the default, takes a GPU that is there.

    Raises:
        UserError: LABDAG_DEVICE is none of the three, or asks for a GPU that is not there.
        OptionError: the precision is tf32, on a CPU or on a GPU older than those that have it.
    """
    choice = os.environ.get("LABDAG_DEVICE", "auto")
    if choice not in ("auto", "cpu", "cuda"):
        raise UserError(f"LABDAG_DEVICE is {choice!r}, but should be auto, cpu or cuda.")
    there = torch.cuda.is_available()
    if choice == "cuda" and not there:
        raise UserError("LABDAG_DEVICE is 'cuda', but torch finds no usable GPU; set it to auto or cpu.")
    torch.set_num_threads(compute.threads)
    _keep_freed_memory()
    # fp32 means fp32: on a GPU torch's default is to let convolutions round to TF32, and products not.
    is_tf32 = compute.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = is_tf32
    # And bf16 means products in it: torch's default is to let parts of a sum be added in it, too.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    if choice == "cpu" or not there:
        if is_tf32:
            raise OptionError(
                "compute.precision",
                "is tf32, which only GPUs compute in, but "
                f"{'LABDAG_DEVICE is cpu' if there else 'torch finds none'}; write fp32 or bf16.",
            )
        return torch.device("cpu")
    if is_tf32 and torch.cuda.get_device_capability() < TF32_CAPABILITY:
        raise OptionError(
            "compute.precision", f"is tf32, which {torch.cuda.get_device_name()} does not compute in; write fp32."
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(compute.deterministic)
    # Memory that is got is written before it is read: to fill it first is a kernel more each time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = not compute.deterministic
    return torch.device("cuda")


def emulates_bf16(compute: Compute, device: torch.device) -> bool:
    """Whether `compute` is in bf16 and the processor is to compute it without instructions for that.

    LeNet-5 takes 2.2 times as long then as in fp32, and a convolution of the VGG 16 times (AMD EPYC with AVX2).
    """
    return compute.precision == "bf16" and device.type == "cpu" and not _knows_bf16()


def _knows_bf16() -> bool:
    with suppress(AttributeError):  # torch was built without oneDNN: there is nobody to ask
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return True


def memory_format(compute: Compute) -> torch.memory_format:
    """The layout that images and weights have."""
    return torch.channels_last if compute.channels_last else torch.contiguous_format


def _keep_freed_memory() -> None:
    """Have the C library keep what torch frees for its next tensors, where it would give it back to the kernel.

    It would have to be got again, and cleared, page by page, at every step. A step of LeNet-5 takes up to 1.4 times as
    long then, as the heap of the process happens to lie (64 images, fp32, 1 CPU thread), one of the slim VGG 1.02 to
    1.24 times (128 images, 2 threads); LeNet-5 with two threads gains nothing (0.9 to 1.0).
    """
    with suppress(AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        for number, value in _MALLOC_OPTIONS.values():
            mallopt(number, value)
