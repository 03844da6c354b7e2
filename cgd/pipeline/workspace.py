"""What a working directory remembers: where each data set's images are on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from cgd.data.datasets import default_name, open_benchmark, open_dataset
from cgd.errors import InputError, unknown
from cgd.store.files import replace_file
from cgd.store.keys import ids_digest
from cgd.types import Benchmark, ImageList

ROOTS = Path(".cgd/roots.yaml")


class Workspace:
    """Opens data sets by `KIND:PATH`, which is remembered, or afterwards by `NAME` and `NAME@SPLIT`."""

    def __init__(self, file: Path = ROOTS) -> None:
        self.file = file

    def images(self, text: str, name: str | None = None, split: str | None = None) -> ImageList:
        """The images `text` names."""
        spec, known, part = self._resolve(text, name)
        images = open_dataset(spec, known, split or part)
        self._remember(images, spec)
        return images

    def benchmark(self, text: str, name: str | None = None) -> Benchmark:
        """The queries and the gallery `text` names."""
        spec, known, _ = self._resolve(text, name)
        benchmark = open_benchmark(spec, known)
        self._remember(benchmark.gallery, spec)
        return benchmark

    def kind(self, name: str) -> str:
        """The kind of data set a known name stands for."""
        return self._resolve(name, None)[0].partition(":")[0]

    def label_of(self, picture: Path) -> str | None:
        """The label of an image file, where it belongs to a data set that is known here."""
        wanted = os.path.abspath(picture)
        for entry in self._entries().values():
            kind, _, path = entry["spec"].partition(":")
            there = kind in ("folder", "manifest") and os.path.exists(path)
            if not there or not wanted.startswith(os.path.dirname(path)):
                continue
            images = open_dataset(entry["spec"], entry["name"])
            for label, relative in zip(images.labels or (), images.paths, strict=False):
                if os.path.abspath(os.path.join(images.root or "", relative)) == wanted:
                    return label
        return None

    def introduce(self, name: str, spec: str) -> None:
        """Remember that `name` means `KIND:PATH`."""
        self._remember(open_dataset(spec, name), spec)

    def _resolve(self, text: str, name: str | None) -> tuple[str, str, str | None]:
        """`KIND:PATH`, the data set's name and the split."""
        if name is not None and (not name or set(name) & set(":@/")):
            raise InputError(f"--name {name}: a name has no ':', '@' or '/', because NAME@SPLIT stands for it later.")
        if ":" in text:
            return text, name or default_name(text), None
        known, _, split = text.partition("@")
        for entry in self._entries().values():
            if entry["name"] == known:
                return entry["spec"], known, split or None
        names = {entry["name"] for entry in self._entries().values()}
        raise InputError(
            f"{unknown('data set', known, names)} Name it once as KIND:PATH, e.g. folder:photos with --name {known}."
        )

    def _entries(self) -> dict[str, dict[str, Any]]:
        if not self.file.is_file():
            return {}
        try:
            entries = yaml.safe_load(self.file.read_text()) or {}
            known = {digest: {k: e[k] for k in ("name", "split", "spec")} for digest, e in entries.items()}
        except (yaml.YAMLError, UnicodeDecodeError, AttributeError, TypeError, KeyError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{self.file} is damaged ({reason}): delete it, and name data sets as KIND:PATH again."
            ) from error
        return known

    def _remember(self, images: ImageList, spec: str) -> None:
        kind, _, path = spec.partition(":")
        absolute = spec if kind == "synthetic" else f"{kind}:{os.path.abspath(path)}"
        entry = {"name": images.name, "split": images.split, "spec": absolute}
        entries = self._entries()
        digest = ids_digest(images)
        if entries.get(digest) == entry:
            return
        # The newest place of a name is the one that counts.
        entries = {k: v for k, v in entries.items() if v["name"] != images.name or v["spec"] == absolute}
        replace_file(self.file, yaml.safe_dump({digest: entry, **entries}, sort_keys=False).encode(), shared=True)
