"""The command line: parse, call, print."""

from __future__ import annotations

from collections.abc import Sequence

import click

from cgd.cli import demonstrations, main_job, plan, reports, scores, search, store, students, teachers
from cgd.cli.options import Group


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="cgd")
def cli() -> None:
    """Distil heavy image-retrieval networks into one light network, offline.

    \b
    Every teacher looks at every training image once; its embeddings go into a feature store;
    students train against the store with no teacher in memory; mAP is scored exactly.

    \b
    cgd demo                                             the whole path on drawn images
    cgd run recipes/grocery.yaml --data grocery=manifest:photos/manifest.csv --weights weights
    """


for _command in (
    main_job.extract_teachers,
    main_job.fit_whitening,
    main_job.distill,
    main_job.evaluate,
    main_job.run,
    plan.plan,
    search.search,
    search.index,
    demonstrations.prove,
    demonstrations.demo,
    demonstrations.reproduce,
    reports.report,
    scores.compare,
    scores.scores_group,
    store.store_group,
    teachers.teachers_group,
    students.students_group,
):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `cgd` command."""
    cli.main(args=arguments, prog_name="cgd")
