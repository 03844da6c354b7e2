"""R101-DELG's global descriptor, `r101_delg_s512` of feymanpriv/DELG (after Cao et al., ECCV 2020)."""

from __future__ import annotations

from math import sqrt

from cgd.models.checkpoints import Checkpoint, fill
from cgd.models.encoder import Encoder
from cgd.models.layers import Descriptor
from cgd.models.published import Layout, Publication, facts_of, published
from cgd.models.teachers._inputs import Form, stored_exponent, whiten_mtd_input
from cgd.models.trunks import pycls_names, torchvision_resnet
from cgd.registry import plugin
from cgd.types import InputSpec

# The local branch and the classifiers of its training; any number of classes, and perhaps left out.
_DROPPED = {
    "desc_cls.weight": (None, 512),
    "desc_cls.t": (1,),
    "localmodel.conv1.weight": (512, 1024, 1, 1),
    "localmodel.conv1.bias": (512,),
    "localmodel.bn.weight": (512,),
    "localmodel.bn.bias": (512,),
    "localmodel.bn.running_mean": (512,),
    "localmodel.bn.running_var": (512,),
    "localmodel.bn.num_batches_tracked": (),
    "localmodel.conv2.weight": (1, 512, 1, 1),
    "localmodel.conv2.bias": (1,),
    "att_cls.fc.weight": (None, 512),
    "att_cls.fc.bias": (None,),
}


@plugin
@published(
    Publication(
        file="r101_delg_s512.pyth",
        where="https://github.com/feymanpriv/DELG (r101-delg)",
        layouts=(
            Layout(
                ("model_state", None),
                (
                    *pycls_names("globalmodel."),
                    ("globalmodel.head.pool.", "pool."),
                    ("globalmodel.head.fc.", "head."),
                ),
                dropped=_DROPPED,
                absent=("desc_cls.", "att_cls.", "localmodel."),
            ),
        ),
    )
)
def delg(
    argument: str | None, checkpoint: Checkpoint | None, *, weights: str = "delg.safetensors", form: Form = "faithful"
) -> Encoder:
    """512 values, not normalised: GeM with the stored exponent, linear.

    BGR, unresized; scales 1/sqrt 2, 1, sqrt 2 without antialias, sides rounded; queries cut at whole pixels.
    `form=whiten-mtd`: exponent 3, scales 1, 1/sqrt 2, 1/2.
    """
    facts_of(checkpoint, "delg")
    pool, unused = stored_exponent(checkpoint, form)
    trunk, channels = torchvision_resnet("resnet101", None)
    network = Descriptor(trunk, channels, pool, 512, before=None)
    if checkpoint is not None:
        fill(network, checkpoint, drop=unused)
    return Encoder("delg", network, feymanpriv_input(form, (1 / sqrt(2), 1.0, sqrt(2))), 512)


def feymanpriv_input(form: str, scales: tuple[float, ...]) -> InputSpec:
    """The pixels of DELG and DOLG: BGR, resized per scale to rounded sides as OpenCV's bilinear does."""
    if form != "faithful":
        return whiten_mtd_input(channels="BGR")
    return InputSpec(
        size=1024, resize="none", channels="BGR", scales=scales, scale_rounding="round", query_crop="integer"
    )
