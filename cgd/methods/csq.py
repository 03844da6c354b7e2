"""Central similarity quantisation: every image's code at the hash centre of its classes (CVPR 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cgd.config import CsqConfig
from cgd.methods import Fusion, Needs
from cgd.methods._hash_centres import centres_of, hash_centres
from cgd.registry import plugin
from cgd.types import Batch, Target

if TYPE_CHECKING:
    from torch import Tensor


@plugin
@dataclass(frozen=True)
class Csq:
    """Section 5.3 of methods.md; the student's dimensions are the bits of its codes. No teacher takes part."""

    config: CsqConfig
    fusion: Fusion
    codebook: None = None
    classes: np.ndarray | None = None  # (L, C) bool: the classes that each label names
    needs = Needs(batches="images", teachers=False, labels=True, classes=True)
    tells = ()

    def target(self, teachers: Sequence[np.ndarray], batch: Batch, generator: np.random.Generator) -> Target:
        """The classes of each image: `members` (B, C) of 0 and 1. Their centres depend on the student's bits."""
        assert self.classes is not None, "made with the table of classes"
        assert batch.labels is not None, "the batch has labels"
        return {"members": self.classes[batch.labels[:, 0]].astype(np.float32)}

    def loss(self, student: Tensor, target: dict[str, Tensor]) -> Tensor:
        """Cross-entropy of every bit with the centre's, and how far outputs are from +-1; means over all bits.

        With `v = tanh(u)`, `(v + 1) / 2` is the sigmoid of 2u: the cross-entropy is that of logits.
        """
        from torch import from_numpy
        from torch.nn.functional import binary_cross_entropy_with_logits

        outputs, members = student[:, 0], target["members"].cpu().numpy()  # (B, bits), (B, C)
        bits, classes = outputs.shape[1], members.shape[1]
        centres, seed = hash_centres(bits, classes, self.config.seed), self.config.seed
        ties = np.random.default_rng([seed, bits]).choice([-1, 1], bits)  # the same in the whole training
        signs = from_numpy(centres_of(members, centres, ties)).to(outputs)
        central = binary_cross_entropy_with_logits(2 * outputs, (signs + 1) / 2)
        quantisation = (outputs.tanh().abs() - 1).square().mean()
        return central + self.config.quantisation * quantisation
