"""A student as one file for others: ONNX, torch's .pt2, or its tensors, compared with the student before it is kept."""

from __future__ import annotations

import copy
import inspect
import io
import json
import pprint
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from cgd import registry
from cgd.data.transforms import normalise
from cgd.errors import InputError
from cgd.models import sample
from cgd.models.checkpoints import HEADER
from cgd.models.deployed import Deployed, scales_inside
from cgd.models.encoder import Encoder
from cgd.models.selfcheck import difference
from cgd.retrieval.vectors import combine_scales, l2
from cgd.types import InputSpec

TOLERANCE = 1e-4
CHECKED = ((1, 64, 64), (1, 97, 131), (2, 160, 120))  # images, height, width
INPUT, OUTPUT = "pixels", "descriptor"
_UNFILLED = 'MODEL = "student.onnx"\nINPUT: dict[str, Any] = {}\n'  # in the sample
Describe = Callable[[np.ndarray], np.ndarray]
Write = Callable[[Encoder, str], bytes]
Reopen = Callable[[bytes, Encoder], Describe]


@dataclass(frozen=True)
class Exported:
    """The bytes of a file, and how far it was from the student on each of `CHECKED`.

    A difference is the largest one of a descriptor's values, relative to its largest value.
    """

    data: bytes
    differences: Mapping[str, float]

    @property
    def worst(self) -> float:
        return max(self.differences.values())


def export(encoder: Encoder, about: Mapping[str, Any], form: str) -> Exported:
    """The student as a file of the format `form`, one of `FORMATS`, that says `about` itself what it is.

    Refuses one that differs by more than `TOLERANCE` from the student.
    """
    what = f"exporting {encoder.name} as {form}"
    write, reopen = FORMATS[form]
    data = registry.foreign(what, write, encoder, json.dumps(about, sort_keys=True))  # torch may raise anything here
    found = registry.foreign(what, _differences, encoder, reopen, data)
    exported = Exported(data, found)
    if not exported.worst <= TOLERANCE:
        raise InputError(
            f"{what}: its descriptors differ from the student's by {exported.worst:.1e}, more than {TOLERANCE:.0e}; "
            "nothing is written: use another format."
        )
    return exported


def _differences(encoder: Encoder, reopen: Reopen, data: bytes) -> dict[str, float]:
    describe, found = reopen(data, encoder), {}
    for number, (count, height, width) in enumerate(CHECKED):
        coarse = np.random.default_rng(number).integers(0, 256, (count, 8, 8, 3), np.uint8)
        smooth = [Image.fromarray(one).resize((width, height), Image.Resampling.BICUBIC) for one in coarse]
        pixels = np.stack([np.asarray(image) for image in smooth])
        found[f"{height}x{width}"] = difference(describe(pixels), _expected(encoder, pixels))
    return found


@torch.inference_mode()
def _expected(encoder: Encoder, pixels: np.ndarray) -> np.ndarray:
    """(B, D): unit descriptors of resized images (B, H, W, 3) uint8, by the code that trains and scores."""
    spec = encoder.input_spec
    normalised = np.stack([normalise(Image.fromarray(image), spec) for image in pixels])
    vectors = encoder.embed([torch.from_numpy(normalised)]).double().numpy()  # (B, S, D)
    return l2(combine_scales(vectors, spec.combine))


def _program(encoder: Encoder) -> torch.export.ExportedProgram:
    """A graph for any number of images of any size."""
    try:
        from torch.fx.experimental.dynamic_spec import ParamsSpec, ShapesSpec, ShapeVar, TensorSpec
        from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
    except ImportError as error:  # earlier ones cannot leave a side of one pixel open
        raise InputError("exporting a network needs a newer torch: pip install 'torch>=2.14'.") from error

    sizes = [ShapeVar(name, min=1) for name in ("batch", "height", "width")]
    shapes = ShapesSpec(params=ParamsSpec({INPUT: TensorSpec([*sizes, 3])}))
    example = torch.zeros(2, 96, 128, 3, dtype=torch.uint8)
    try:
        program = torch.export.export(Deployed(encoder).eval(), (example,), dynamic_shapes=shapes)
    except GuardOnDataDependentSymNode as error:
        raise InputError(
            f"{encoder.name} does other things for other sizes of an image, as vision transformers do, and a graph is "
            "one for all: --format safetensors exports its tensors."
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _write_onnx(encoder: Encoder, about: str) -> bytes:
    try:
        import onnxruntime  # noqa: F401
        from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass
    except ImportError as error:
        raise InputError("--format onnx needs the extra 'onnx': pip install 'cgd[onnx]'.") from error

    made = torch.onnx.export(_program(encoder), dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT])
    assert made is not None
    ClearMetadataAndDocStringPass()(made.model)  # how it was made, node by node
    made.model.metadata_props[HEADER] = about
    data: bytes = made.model_proto.SerializeToString()
    return data


def _reopen_onnx(data: bytes, _: Encoder) -> Describe:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda pixels: np.asarray(session.run([OUTPUT], {INPUT: pixels})[0])


def _write_pt2(encoder: Encoder, about: str) -> bytes:
    buffer = io.BytesIO()
    torch.export.save(_program(encoder), buffer, extra_files={f"{HEADER}.json": about})
    return buffer.getvalue()


def _reopen_pt2(data: bytes, _: Encoder) -> Describe:
    module = torch.export.load(io.BytesIO(data)).module()

    def describe(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = module(torch.tensor(pixels)).numpy()
        return found

    return describe


def _write_safetensors(encoder: Encoder, about: str) -> bytes:
    tensors = {name: tensor.contiguous() for name, tensor in encoder.network.state_dict().items()}
    return safetensors.torch.save(tensors, metadata={HEADER: about})


def _reopen_safetensors(data: bytes, encoder: Encoder) -> Describe:
    again = copy.deepcopy(encoder)
    again.network.load_state_dict(safetensors.torch.load(data))
    return lambda pixels: _expected(again, pixels)


FORMATS: Mapping[str, tuple[Write, Reopen]] = {
    "onnx": (_write_onnx, _reopen_onnx),
    "safetensors": (_write_safetensors, _reopen_safetensors),
    "pt2": (_write_pt2, _reopen_pt2),
}


def rule_of(spec: InputSpec) -> dict[str, Any]:
    """What is left to do before an exported network, as `sample.py` takes it."""
    names = ("size", "resize", "enlarge", "filter", "centre_crop", "query_crop", "scale_rounding", "combine")
    return {name: getattr(spec, name) for name in names} | {
        "image_scales": spec.scales if spec.scale_on == "image" else (1.0,)
    }


def in_words(spec: InputSpec) -> str:
    """What is to be done before an exported network, and what is not, in a sentence."""
    sides = {
        "longest": f"the longer side becomes {spec.size} pixels",
        "shortest": f"the shorter side becomes {spec.size} pixels",
        "square": f"both sides become {spec.size} pixels",
        "none": "the image keeps its size",
    }[spec.resize]
    small = " (a smaller image keeps its size)" if spec.resize in ("longest", "shortest") and not spec.enlarge else ""
    crop = f", then the middle {spec.centre_crop} pixels square are kept" if spec.centre_crop else ""
    resampled = "" if spec.resize == "none" else f" by Pillow's {spec.filter}"
    scales = ", ".join(f"{scale:g}" for scale in spec.scales)
    where = "inside too"
    if scales_inside(spec) != spec.scales:
        where = f"made of the resized image, a call each, and joined by {spec.combine} of their descriptors"
    return (
        f"{sides}{resampled}{small}{crop}; the network takes RGB uint8 (batch, height, width, 3), normalisation and l2 "
        f"are inside, the scales {scales} are {where}."
    )


def sample_for(model: str, spec: InputSpec) -> str:
    """A script that describes images with the file `model` beside it, and needs nothing of this package."""
    head, _, tail = inspect.getsource(sample).partition(_UNFILLED)
    rule = pprint.pformat(rule_of(spec), width=110, compact=True, sort_dicts=False)
    return f"{head}MODEL = {json.dumps(model)}\nINPUT: dict[str, Any] = {rule}\n{tail}"
