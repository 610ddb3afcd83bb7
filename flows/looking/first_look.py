"""A file of conversations, sampled, and read as the command line and its answers suggest."""

import argparse
from dataclasses import dataclass
from typing import Any

from flows.looking.options import checked_settings, given_settings
from flows.looking.proposal import Proposal, propose_task
from flows.looking.sample import Sample, read_again, take_sample
from tasks.curate.reading.files import split_files
from tasks.curate.reading.settings import ReadSettings


@dataclass(frozen=True)
class FirstLook:
    """A file and its sample.

    files: paths by setting of `curate/jsonl`.  settings: of the reader, a proposed task included.
    """

    files: dict[str, str]
    sample: Sample
    settings: dict[str, Any]
    proposal: Proposal | None

    @property
    def path(self) -> str:
        """The file that was looked at: the only one, or the first split."""
        return next(iter(self.files.values()))


def first_look(file: str, options: argparse.Namespace) -> FirstLook:
    """Sample a file or folder.

    options: of `add_reader_options`.
    Raises ConfigError for a wrong option, DataError for a file that is not a data set.
    """
    given = given_settings(options)
    settings = checked_settings(options, given)
    files = split_files(file) or {"path": file}
    sample = take_sample(next(iter(files.values())), settings)
    if (proposal := propose_task(sample)) is not None:
        given["task"] = {"type": proposal.type}
        read_again(sample, ReadSettings(**given))
    return FirstLook(files, sample, given, proposal)
