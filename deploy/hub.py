"""Pushes an export to the hub: what can go wrong is asked before the export, and a push that fails leaves it whole."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.console import tell
from utils.errors import RunError, UserError, first_line, shortened


@dataclass(frozen=True)
class Repository:
    """A model of the hub that the user may write to, there already or not."""

    name: str  # OWNER/NAME
    public: bool
    held: tuple[str, ...] = ()  # files that it has already

    def push(self, folder: Path, files: Sequence[str]) -> None:
        """Make the repository where it is not there, and commit these files of `folder`.

        Raises:
            RunError: the hub refused or is gone; says the command that pushes the folder again.
        """
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi()
        try:
            api.create_repo(self.name, private=not self.public, exist_ok=True)
            operations = [CommitOperationAdd(name, folder / name) for name in files]
            commit = api.create_commit(self.name, operations, commit_message="Model of export.py")
        except Exception as error:  # of the HTTP client, of the uploads' processes, of the hub
            place = "" if self.public else " --private"
            again = f"hf upload {self.name} {shlex.quote(str(folder))} .{place}"
            raise RunError(
                f"-push_to_hub {self.name}: {first_line(error)}; {folder} is whole, and this pushes it: {again}"
            ) from error
        tell(f"pushed ({'public' if self.public else 'private'}): {commit.repo_url}")
        others = [name for name in self.held if name not in {*files, ".gitattributes"}]
        if others:
            tell(f"it still holds files that this export has not; delete those of an earlier one: {shortened(others)}")


def repository(name: str, public: bool) -> Repository:
    """The repository that -push_to_hub names, of the user whose token there is.

    Raises:
        UserError: no such name can be, the hub is switched off or does not answer, there is no login, or a public
            repository stands there without -public, or a private one with it.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    place = f"-push_to_hub {name}"
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{place}: {first_line(error)}") from None
    if constants.is_offline_mode():
        raise UserError(f"{place}: HF_HUB_OFFLINE is set; unset it to push, or give -model_card alone")
    if not get_token():
        raise UserError(f"{place}: no login at the hub; log in with `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    try:
        owner = api.whoami()["name"]
        full = name if "/" in name else f"{owner}/{name}"
        there = api.model_info(full)
    except RepositoryNotFoundError:
        return Repository(full, public)
    except Exception as error:  # of the HTTP client, which is another one in every version
        raise UserError(f"{place}: asking {constants.ENDPOINT} failed: {first_line(error)}") from None
    if not public and not there.private:
        raise UserError(f"{place}: {full} is there and public; give -public to push there, or choose another name")
    if public and there.private:
        raise UserError(f"{place}: {full} is there and private; leave -public out, or open it on the hub first")
    return Repository(full, public, tuple(file.rfilename for file in there.siblings or ()))
