"""Every problem a user can cause or solve, under one root."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CgdError(Exception):
    """Base class: one clear sentence saying what, where, and what to do next."""


class InputError(CgdError, ValueError):
    """A setting, a name or a file given by the user cannot be used."""


class MissingError(CgdError, LookupError):
    """Something asked for does not exist yet; the message names the command that makes it."""


class WeightsError(CgdError, ValueError):
    """A weights file is damaged, unsafe or belongs to another network."""


class StoreError(CgdError, RuntimeError):
    """The feature store refuses: wrong version, wrong settings, unsealed artifact, full disk."""


class DamageError(StoreError):
    """Stored bytes differ from what was sealed."""


class EngineError(CgdError, RuntimeError):
    """The processes or the cluster that were to do the work cannot, or are gone."""


class ElsewhereError(CgdError, RuntimeError):
    """Another process of the same command failed and says why; this one only ends."""


def unknown(what: str, name: str, known: Iterable[str]) -> InputError:
    """An `InputError` for a misspelt name that offers the nearest known ones."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names) or 'none'}."
    return InputError(f"unknown {what} '{name}': {hint}")
