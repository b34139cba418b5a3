"""A bundle to a model hub, as it is: it has its model card, and every file its hash.

Bundle, org/name  --upload-->  the address of the commit
"""

from __future__ import annotations

import re

from huggingface_hub import HfApi

from quorum_client.errors import InvalidRequest, QuorumError
from quorum_model.bundle.read import Bundle

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


class PublishFailed(QuorumError):
    """The bundle is on disk, whole; the hub did not take it, and why."""

    code = "publish_failed"


def check_repository(name: str) -> None:
    """Refuse what cannot be a hub repository, before anything is trained.

    Raises:
        InvalidRequest: not of the form org/name.
    """
    if not _REPOSITORY.fullmatch(name):
        raise InvalidRequest(f"--push {name}: a hub repository is org/name")


def push_bundle(bundle: Bundle, repository: str) -> str:
    """Upload a bundle to a hub repository, which is made (private) where it is not there.

    The hub and the token are those of `huggingface_hub`: HF_ENDPOINT, HF_TOKEN.

    Returns:
        The address of the commit.

    Raises:
        PublishFailed: no token, no network, no permission.
    """
    api = HfApi()
    try:
        api.create_repo(repository, private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=bundle.path,
            commit_message=f"{bundle.manifest.name} {bundle.version}",
        )
    except Exception as error:  # the hub's client also lets through its HTTP library's, whichever that is
        raise PublishFailed(f"{repository}: {error} (the bundle is in {bundle.path})") from error
    return str(commit.commit_url)
