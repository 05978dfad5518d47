"""A name on the hub → a folder of its plain files; files → a repository there. What fails is one line.

The place is `HF_ENDPOINT` or huggingface.co, the token `HF_TOKEN` or the stored login: `huggingface_hub`
finds both. Nothing of them is kept or shown.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from slam.errors import InputError, reason_of

PLAIN_FILES = ("*.json", "*.safetensors")
PICKLES = ("pytorch_model*.bin",)


def fetched(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Download the files of a model that fit `patterns`, or find them in the hub's cache.

    Raises:
        InputError: there is no such model, it is not open to you, or there is no network.
    """
    from huggingface_hub import snapshot_download

    with _one_line(name):
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))


def sent(files: Mapping[str, Path | bytes], name: str, *, private: bool, message: str) -> str:
    """Make the repository `name` if it is not there and commit `files` to it, all or none.

    Args:
        files: name in the repository → file here, or content.
        name: owner/name.
        private: for its owner's eyes only, if it is made now.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        InputError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    added = [CommitOperationAdd(place, content) for place, content in files.items()]
    api = HfApi()
    with _one_line(name):
        api.create_repo(name, repo_type="model", private=private, exist_ok=True)
        try:
            return api.create_commit(name, added, repo_type="model", commit_message=message).commit_url
        except ValueError as error:  # what it finds wrong with a card
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{name}: the hub does not take what is sent ({reason})") from None


def silence_retries() -> None:
    """Let `huggingface_hub` try again without a line for each time: what fails in the end is one line."""
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn what `huggingface_hub` raises into an InputError."""
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    silence_retries()
    try:
        yield
    except HFValidationError as error:
        raise InputError(f"{name}: is no name on the hub, owner/name ({reason_of(error)})") from None
    except LocalTokenNotFoundError:
        raise InputError(f"{name}: the hub wants a token; set HF_TOKEN, or run hf auth login") from None
    except GatedRepoError:
        raise InputError(
            f"{name}: the hub gives it only to those who asked for it; ask on its page, then set HF_TOKEN"
        ) from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{name}: the hub has no such model, or it is private and HF_TOKEN does not open it"
        ) from None
    except RevisionNotFoundError as error:
        raise InputError(f"{name}: the hub has no such revision ({reason_of(error)})") from None
    except OfflineModeIsEnabled:
        raise InputError(f"{name}: the hub cannot be reached, for HF_HUB_OFFLINE is set") from None
    except LocalEntryNotFoundError:
        raise InputError(
            f"{name}: the hub cannot be reached and no copy is kept here; give a folder, or try again"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        hint = "; is HF_TOKEN set, and may it write there?" if status in (401, 403) else ""
        raise InputError(f"{name}: the hub answers HTTP {status} ({reason_of(error)}){hint}") from None
    except HTTPError as error:
        raise InputError(f"{name}: the hub cannot be reached ({reason_of(error)})") from None
