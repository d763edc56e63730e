"""Run an ONNX file with ONNX Runtime on the CPU, and quantise it to eight bits."""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meco_timm.common import UserError, first_line, require_extra, unfinished


class OnnxNetwork:
    """An ONNX file with one input and one output in ONNX Runtime.

    threads: of one call; by default as many as there are cores.
    """

    def __init__(self, file: Path, threads: int = 0):
        require_extra("export", "onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def __call__(self, image: Tensor) -> Tensor:
        """image: float B×C×H×W, as the file wants it → output B×K."""
        (output,) = self.session.run(None, {self.input: image.float().contiguous().numpy()})
        return torch.from_numpy(output)


class _Calibration:
    """Batches of images for onnxruntime's calibration."""

    def __init__(self, name: str, batches: Iterable[Tensor]):
        self.batches: Iterator[dict[str, np.ndarray]] = ({name: batch.float().numpy()} for batch in batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def quantise(file: Path, target: Path, batches: Iterable[Tensor]) -> None:
    """Write the file with weights and activations of eight bits: static quantisation, weights per channel.

    batches: calibration images as the file wants them; they set the range of each activation.

    Raises:
        UserError: onnxruntime cannot quantise this network.
    """
    require_extra("export", "onnx", "onnxruntime")
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # onnxruntime logs to it
    options: dict[str, Any] = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    try:
        with tempfile.TemporaryDirectory() as folder:
            prepared = Path(folder) / "prepared.onnx"
            quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
            reader: Any = _Calibration(OnnxNetwork(file).input, batches)
            beside = unfinished(target)
            quantize_static(
                str(prepared), str(beside), reader, quant_format=QuantFormat.QDQ, per_channel=True, **options
            )
        beside.replace(target)
    except Exception as error:
        raise UserError(f"export: onnxruntime cannot quantise {file.name}: {first_line(error)}") from error
    finally:
        root.setLevel(level)
