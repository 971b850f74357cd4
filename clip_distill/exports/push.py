"""An exported folder, onto the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError

from clip_distill.system.errors import InvalidValue


def push(folders: Mapping[str, Path], repository: str) -> str:
    """Upload folders as one private repository of models, which its owner may then make public.

    Args:
        folders: Place in the repository, empty for its root → folder.
        repository: ORG/NAME; made where it isn't there.

    Returns:
        Its address.

    Raises:
        InvalidValue: The name is none, or the hub refuses: nobody is logged in, or may not write there.
    """
    if repository.count("/") != 1 or not all(repository.split("/")):
        raise InvalidValue(f"--push: expected ORG/NAME, found {repository!r}")
    api = HfApi()
    try:
        address = api.create_repo(repository, private=True, exist_ok=True)
        for place, folder in folders.items():
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                path_in_repo=place or None,
                commit_message=f"Add {place or 'the export'}",
            )
    except (HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError) as error:
        message = str(error).strip().splitlines()[0]
        raise InvalidValue(f"--push {repository}: the hub refused: {message}. Log in with: hf auth login") from error
    return str(address)
