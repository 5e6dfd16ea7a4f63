"""A model directory onto the Hub: what can be checked before any work is done, and the upload after it.

The token is the one of `hf auth login` or $HF_TOKEN, which huggingface_hub finds; it is never shown.
"""

from __future__ import annotations

import glob
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hyperclone.errors import DestinationError, reason, reason_with_class
from hyperclone.io import hub

_OPTION = "push_to_hub"
_LEAVE_OUT = "or leave --push-to-hub out, and upload afterwards with `hf upload`"


def check(repo: str) -> str:
    """Check, as far as it can be known without writing, that a model can be uploaded.

    Args:
        repo: its name on the Hub, with or without the user's or organization's.

    Returns:
        The whole name, NAMESPACE/MODEL.

    Raises:
        DestinationError: that is no name, there is no way to the Hub, or one may not write there.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # documented, but not in __all__

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise DestinationError(
            "this cannot be the name of a model on the Hub", field=_OPTION, found=repo,
            expected="NAMESPACE/MODEL, or MODEL for your own: letters, digits, -, _ and .; 96 at most",
        ) from None  # fmt: skip
    if constants.HF_HUB_OFFLINE:
        raise DestinationError("nothing can be uploaded in the Hub's offline mode", field=_OPTION,
                               found="HF_HUB_OFFLINE is set", cure=f"unset it, {_LEAVE_OUT}")  # fmt: skip
    try:
        hub.check_accessible()
        user = HfApi().whoami()
    except LocalTokenNotFoundError:
        raise DestinationError("uploading needs a login on the Hub", field=_OPTION, found="no token",
                               cure=f"`hf auth login`, or set HF_TOKEN, {_LEAVE_OUT}") from None  # fmt: skip
    except hub.unreachable() as error:
        if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
            raise DestinationError(
                "the Hub does not accept the token that it is asked with", field=_OPTION,
                found=_without_token(reason(error)), cure="`hf auth login` with another",
            ) from None  # fmt: skip
        raise DestinationError("the Hub is not accessible", field=_OPTION, found=_without_token(hub.why(error)),
                               cure=f"check the network, {_LEAVE_OUT}") from None  # fmt: skip
    return _writable(repo, user)


def _writable(repo: str, user: Mapping[str, Any]) -> str:
    """The whole name, if the user may write there, as far as `whoami` tells."""
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise DestinationError("this token may only read", field=_OPTION, found=f"logged in as {user['name']}",
                               expected="a token with write access", cure="`hf auth login` with another")  # fmt: skip
    namespace, slash, _ = repo.partition("/")
    if not slash:
        return f"{user['name']}/{repo}"
    own = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
    if namespace not in own and role != "fineGrained":  # which may not list its organizations
        raise DestinationError("you are not in this namespace of the Hub", field=_OPTION, found=namespace,
                               expected=", ".join(own), cure=f"--push-to-hub {user['name']}/MODEL")  # fmt: skip
    return repo


def upload(repo: str, directory: Path, files: Sequence[str]) -> str:
    """Upload a model; its repository is created, private, if there is none.

    Args:
        repo: its whole name, as `check` returns it.
        directory: the model's.
        files: of the directory, by their paths in it; no others are uploaded.

    Returns:
        Its address.

    Raises:
        DestinationError: it could not be uploaded. The directory is as it was.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = str(api.create_repo(repo, private=True, exist_ok=True))
        api.upload_folder(
            repo_id=repo,
            folder_path=directory,
            allow_patterns=[glob.escape(file) for file in files],
            commit_message="Upload by hyperclone",
        )
    except Exception as error:  # the network, the Hub and its client have their own errors
        by_hand = f"hf upload {repo} {shlex.quote(str(directory))} . --private --exclude 'checkpoint-*/*'"
        raise DestinationError(
            "the model is complete here, but it could not be uploaded",
            file=directory,
            found=_without_token(reason_with_class(error)),
            cure=by_hand,
        ) from None
    return address


def _without_token(text: str) -> str:
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "(token)") if token else text
