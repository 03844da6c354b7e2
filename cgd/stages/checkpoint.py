"""What a training keeps beside its student to be, so that it continues where it was cut off."""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from cgd.errors import StoreError, WeightsError
from cgd.store.files import replace_file

STATE = "training.pt"


class Stateful(Protocol):
    """A network, an optimiser, or what else has a state."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> Any: ...


class Checkpoint:
    """The state of the unfinished training of `student`, by so many `processes`, in the folder `out`."""

    def __init__(self, out: Path, student: str, device: torch.device, processes: int = 1) -> None:
        self.path, self.student, self.device, self.processes = out / STATE, student, device, processes

    def keep(self, parts: Mapping[str, Stateful], progress: Mapping[str, Any]) -> None:
        """Write the state of `parts`, the random state, and `progress` (plain values and tensors)."""
        state = {
            "student": self.student,
            "processes": self.processes,
            **{name: part.state_dict() for name, part in parts.items()},
            **progress,
            "random": torch.get_rng_state(),
            "random_of_device": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        replace_file(self.path, buffer.getvalue())

    def read(self, needed: Iterable[str] = ()) -> dict[str, Any] | None:
        """What was kept of this very student, if anything was, with the entries `needed`."""
        if not self.path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            name = state["student"]
            for entry in needed:
                state[entry]
        except (pickle.UnpicklingError, RuntimeError, KeyError, ValueError, TypeError, EOFError) as error:
            raise self._damaged(error) from error
        if name != self.student:
            raise StoreError(
                f"{self.path.parent} holds the unfinished training of {name}, not of {self.student}: "
                f"continue that one with its own settings{self._count_of(state)}, or give another --out."
            )
        return state

    def restore(self, state: Mapping[str, Any], parts: Mapping[str, Stateful]) -> None:
        """Load the state of `parts` and the random state."""
        try:
            for name, part in parts.items():
                part.load_state_dict(state[name])
            torch.set_rng_state(state["random"])
            if state["random_of_device"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["random_of_device"], self.device)
        except (RuntimeError, KeyError, ValueError, TypeError) as error:
            raise self._damaged(error) from error

    def forget(self) -> None:
        """Remove the state of this student, now that it is finished."""
        with contextlib.suppress(WeightsError, StoreError):  # another student's, or of no use to anybody
            if self.read() is not None:
                self.path.unlink(missing_ok=True)  # another machine may have done so on a shared disk

    def _count_of(self, state: Mapping[str, Any]) -> str:
        count = state.get("processes", self.processes)
        if count == self.processes:
            return ""
        return (
            f" and with {count} processes (now there are {self.processes}, and their number is part of a student whose "
            "batch norm trains; with distill.batch_norm=freeze it is not)"
        )

    def _damaged(self, error: Exception) -> WeightsError:
        # What torch says of a foreign pickle includes the advice to run it.
        foreign = isinstance(error, pickle.UnpicklingError)
        reason = "it is no training state" if foreign else (str(error) or type(error).__name__).splitlines()[0]
        return WeightsError(f"{self.path} is damaged ({reason}): delete it to train from the start.")
