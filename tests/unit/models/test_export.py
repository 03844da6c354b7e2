"""Students as files for others: graphs are cgd's own path, the sample has cgd's own pixels, what differs is refused."""

import ast
import dataclasses
import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from cgd.data.images import read_image
from cgd.data.transforms import full_pixels, normalise
from cgd.errors import InputError
from cgd.models import deployed, export, sample
from cgd.models.checkpoints import locate, read_header
from cgd.models.deployed import Deployed
from cgd.models.encoder import Encoder
from cgd.models.layers import Descriptor, GeM
from cgd.models.load import student
from cgd.retrieval.vectors import combine_scales, l2
from cgd.types import InputSpec

ABOUT = {"name": "small", "dimensions": 32}
THREE = (1.0, 0.7, 0.35)


def small(**changes: object) -> Encoder:
    """Two convolutions, one of them padded as TensorFlow does, and a head: traced in seconds."""
    torch.manual_seed(0)
    trunk = nn.Sequential(Conv2dSame(3, 8, 3, stride=2), nn.ReLU6(inplace=True), nn.Conv2d(8, 8, 3, padding=1))
    spec = dataclasses.replace(InputSpec(size=64, resize="longest", scales=THREE), **changes)  # type: ignore[arg-type]
    return Encoder("small", Descriptor(trunk, 8, GeM(3.0), 32), spec, 32).eval()


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(height, width, 3) uint8, smooth enough that a shifted sample is a small difference and a wrong one is not."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def by_cgd(encoder: Encoder, pixels: np.ndarray) -> np.ndarray:
    """(D,): what extraction stores of an image of this size, combined and of length 1."""
    spec = dataclasses.replace(encoder.input_spec, resize="none", centre_crop=0)
    arrays = full_pixels(Image.fromarray(pixels), spec)
    with torch.inference_mode():
        vectors = encoder.embed([torch.from_numpy(a[None]) for a in arrays]).double().numpy()
    found: np.ndarray = l2(combine_scales(vectors, spec.combine))[0]
    return found


# the network with everything around it


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"channels": "BGR", "mean": (0.1, 0.2, 0.3), "std": (0.2, 0.3, 0.4)},
        {"combine": "gem3"},
        {"combine": "gem3", "scales": (1.0,)},
        {"scales": (0.5,)},
        {"scales": (1.0, 2**0.5, 0.5), "scale_rounding": "round"},
        {"scale_on": "image", "scales": (1.0,)},
    ],
)
@pytest.mark.parametrize("size", [(64, 64), (97, 131), (90, 33)])
def test_a_deployed_network_gives_what_extraction_and_evaluation_give(
    changes: dict[str, object], size: tuple[int, int]
) -> None:
    encoder, pixels = small(**changes), picture(*size)
    with torch.inference_mode():
        found = Deployed(encoder)(torch.from_numpy(pixels[None].copy())).numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found[0], by_cgd(encoder, pixels), atol=5e-6 if encoder.input_spec.combine == "gem3" else 5e-7
    )


def test_the_encoder_is_left_as_it_was() -> None:
    encoder = small()
    Deployed(encoder)
    assert isinstance(encoder.network.trunk[0], Conv2dSame)
    assert encoder.network.trunk[1].inplace


@pytest.mark.parametrize("scale", [0.5, 2**-0.5, 0.7, 0.35, 0.3535, 2**0.5, 2.0])
def test_scales_are_interpolates_own(scale: float) -> None:
    """In single precision 90 pixels at 0.7 would be 63, and 20 at 0.35 would be 6."""
    for height, width in ((90, 20), (31, 64), (180, 33)):
        x = torch.from_numpy(normalise(Image.fromarray(picture(height, width)), InputSpec(size=1, resize="none")))[None]
        floored = F.interpolate(x, scale_factor=scale, mode="bilinear", align_corners=False)
        torch.testing.assert_close(deployed._floored(x, scale), floored, atol=1e-5, rtol=0)
        size = [max(1, round(side * scale)) for side in (height, width)]
        rounded = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        assert torch.equal(deployed._rounded(x, scale), rounded)


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 2, 1), (1, 2, 1), (2, 3, 1), (3, 2, 2), (5, 3, 1)])
def test_a_convolution_that_takes_any_size_pads_as_timm_does(kernel: int, stride: int, dilation: int) -> None:
    convolution = Conv2dSame(2, 3, kernel, stride=stride, dilation=dilation).eval()
    for height, width in ((8, 9), (10, 11), (12, 7)):
        x = torch.rand(1, 2, height, width)
        assert torch.equal(deployed._Same(convolution)(x), convolution(x))


def test_pooling_that_rounds_up_is_torchs() -> None:
    network = nn.Sequential(
        nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), nn.AvgPool2d(2), nn.AvgPool2d(3, ceil_mode=True)
    )
    halved, *others = deployed._traceable(network)  # type: ignore[misc]
    assert [type(m) for m in (halved, *others)] == [deployed._Halved, nn.AvgPool2d, nn.AvgPool2d]
    for height, width in ((8, 9), (11, 10), (1, 7)):
        x = torch.rand(1, 2, height, width)
        torch.testing.assert_close(halved(x), F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False))


# files


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    """The small student in every format."""
    return {form: export.export(small(), ABOUT, form).data for form in export.FORMATS}


@pytest.mark.parametrize("form", export.FORMATS)
@pytest.mark.parametrize("size", [(90, 200), (7, 5)])
def test_a_file_describes_images_of_sizes_it_was_not_checked_on(
    made: dict[str, bytes], form: str, size: tuple[int, int]
) -> None:
    reopened = export.FORMATS[form][1](made[form], small())
    pixels = np.stack([picture(*size, seed) for seed in range(3)])
    expected = np.stack([by_cgd(small(), one) for one in pixels])
    np.testing.assert_allclose(reopened(pixels), expected, atol=2e-6)
    np.testing.assert_allclose(reopened(pixels[:1]), expected[:1], atol=2e-6)


@pytest.mark.parametrize("form", export.FORMATS)
def test_a_file_holds_no_path_of_the_machine_that_made_it(made: dict[str, bytes], form: str) -> None:
    assert str(Path(export.__file__).parent).encode() not in made[form]
    assert b"site-packages" not in made[form]
    assert b"stack_trace" not in made[form]
    assert b"class_hierarchy" not in made[form]  # a paragraph for every node


def test_files_say_what_they_are(made: dict[str, bytes], tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(made["onnx"], providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["cgd"]) == ABOUT
    assert [(i.name, i.type, i.shape[3]) for i in session.get_inputs()] == [("pixels", "tensor(uint8)", 3)]
    beside = {"cgd.json": ""}
    torch.export.load(io.BytesIO(made["pt2"]), extra_files=beside)
    assert json.loads(beside["cgd.json"]) == ABOUT
    (tmp_path / "s.safetensors").write_bytes(made["safetensors"])
    assert read_header(tmp_path / "s.safetensors") == ABOUT
    with safe_open(tmp_path / "s.safetensors", framework="pt") as handle:
        assert set(handle.keys()) == set(small().network.state_dict())


@pytest.mark.parametrize("form", ["onnx", "pt2"])
def test_a_file_that_differs_is_refused(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(x: Tensor, scale: float) -> Tensor:
        return F.interpolate(x, scale_factor=0.99 * scale, mode="bilinear", align_corners=False)

    monkeypatch.setattr(deployed, "_floored", shifted)
    with pytest.raises(InputError, match=r"small as \w+: its descriptors differ .* by \d\.\de-0[23], more than 1e-04"):
        export.export(small(scales=(1.0, 0.5)), ABOUT, form)


@pytest.mark.parametrize("module", ["onnxruntime", "onnxscript"])
def test_a_missing_extra_is_named(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == module] + [module]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"needs the extra 'onnx': pip install 'cgd\[onnx\]'"):
        export.export(small(), ABOUT, "onnx")


def test_a_network_that_branches_on_the_size_is_refused_with_what_can_be_done() -> None:
    with pytest.raises(InputError, match=r"timm:test_vit does other things for other sizes .* --format safetensors"):
        export.export(student("timm:test_vit?dim=8", None).build().eval(), ABOUT, "pt2")


def test_a_network_that_cannot_take_the_sizes_checked_is_one_sentence() -> None:
    encoder = small()
    encoder.network.trunk[2] = nn.Conv2d(8, 8, 99)
    with pytest.raises(InputError, match=r"exporting small as safetensors failed \(RuntimeError: .*--debug"):
        export.export(encoder, ABOUT, "safetensors")


@pytest.mark.shared
@pytest.mark.parametrize(("form", "scales"), [("onnx", "1,0.7071,0.5"), ("pt2", "1")])
def test_published_weights(form: str, scales: str, shared: Path) -> None:
    init = locate("mobilenetv1_025.safetensors", None, shared / "data/weights")
    encoder = student(f"mobilenet-v1?width=0.25&dim=0&scales={scales}", init).build().eval()
    assert export.export(encoder, ABOUT, form).worst < 5e-6


# the sample

SPECS = [
    {"resize": "longest"},
    {"resize": "longest", "enlarge": True, "filter": "lanczos", "query_crop": "integer"},
    {"resize": "shortest", "filter": "bicubic"},
    {"resize": "shortest", "enlarge": True, "centre_crop": 40},
    {"resize": "square", "filter": "bicubic", "query_crop": "none"},
    {"resize": "none", "centre_crop": 50},
    {"resize": "longest", "scale_on": "image", "scales": (1.0, 0.7, 1.4)},
    {"resize": "longest", "scale_on": "image", "scales": (0.7, 0.35), "scale_rounding": "round"},
]


@pytest.mark.parametrize("changes", SPECS, ids=str)
@pytest.mark.parametrize("size", [(48, 70), (100, 30), (64, 64), (30, 41)])
@pytest.mark.parametrize("box", [None, (3.4, 2.6, 25.5, 28.5), (5.0, 5.0, 5.2, 9.0)])
def test_the_sample_makes_the_pixels_that_extraction_makes(
    changes: dict[str, object], size: tuple[int, int], box: tuple[float, float, float, float] | None
) -> None:
    spec = InputSpec(size=64, **changes)  # type: ignore[arg-type]
    image = Image.fromarray(picture(*size))
    found = sample.prepared(image, box, export.rule_of(spec))
    expected = full_pixels(image, spec, box)
    assert len(found) == len(expected)
    for ours, cgds in zip(found, expected, strict=True):
        assert np.array_equal(normalise(Image.fromarray(ours[0]), spec), cgds)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "I;16", "I", "F"])
def test_the_sample_reads_files_as_extraction_does(mode: str, tmp_path: Path) -> None:
    grey = picture(20, 30)[..., 0]
    file, options = ("i.png", {"transparency": bytes(range(256))}) if mode == "P" else ("i.tif", {})
    image = {
        "I;16": lambda: Image.fromarray(grey.astype(np.uint16) * 250),
        "I": lambda: Image.fromarray(grey.astype(np.int32) * 250),
        "F": lambda: Image.fromarray(grey.astype(np.float32)),
    }.get(mode, lambda: Image.fromarray(picture(20, 30)).convert(mode))()
    image.save(tmp_path / file, **options)
    expected = read_image(tmp_path, file).image
    assert expected is not None
    assert np.array_equal(np.asarray(sample.read(tmp_path / file)), np.asarray(expected))


@pytest.mark.parametrize("combine", ["mean", "gem3"])
def test_the_sample_combines_scales_of_the_image_as_evaluation_does(combine: str) -> None:
    encoder = small(scale_on="image", combine=combine, scales=(1.0, 0.7, 1.4))
    image = Image.fromarray(picture(40, 60))
    graph = Deployed(encoder)

    def model(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = graph(torch.tensor(pixels)).numpy()
        return found

    found = sample.describe(model, image, None, export.rule_of(encoder.input_spec))
    np.testing.assert_allclose(found, by_cgd(encoder, picture(40, 60)), atol=5e-7)


def test_a_sample_is_filled_in_and_imports_nothing_of_ours() -> None:
    text = export.sample_for('a "b".onnx', small().input_spec)
    tree = ast.parse(text)
    values = {
        ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target): node.value
        for node in tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None
    }
    assert ast.literal_eval(values["MODEL"]) == 'a "b".onnx'
    assert ast.literal_eval(values["INPUT"]) == export.rule_of(small().input_spec)
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert imported - set(sys.stdlib_module_names) == {"numpy", "PIL", "onnxruntime", "torch"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "the longer side becomes 64 pixels by Pillow's bilinear (a smaller image keeps its size); "),
        ({"resize": "square", "filter": "bicubic", "centre_crop": 50}, "bicubic, then the middle 50 pixels square"),
        ({"resize": "none"}, "the image keeps its size; "),
        ({"resize": "shortest", "enlarge": True}, "the shorter side becomes 64 pixels by Pillow's bilinear; "),
        ({"scales": (1.0, 0.5)}, "the scales 1, 0.5 are inside too."),
        ({"scale_on": "image", "scales": (1.0, 0.5)}, "made of the resized image, a call each, and joined by mean"),
    ],
)
def test_the_preparation_is_told_in_words(changes: dict[str, object], words: str) -> None:
    assert words in export.in_words(small(**changes).input_spec)
