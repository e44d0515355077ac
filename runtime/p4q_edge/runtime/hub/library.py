"""The library `huggingface_hub`: loaded when it is used, and its errors in our words.

Tokens, the address of the Hub, its cache folder and offline mode are the library's own: its login (`hf auth login`),
`HF_TOKEN`, `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE`. Nothing of them is read, kept or shown here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from p4q_edge.runtime.errors import EnvironmentNotAbleError, InputError, P4QEdgeError, UsageError
from p4q_edge.runtime.hub.address import HubAddress
from p4q_edge.runtime.hub.network import answer_of, network_cause
from p4q_edge.runtime.storage import printable

OFFLINE = "HF_HUB_OFFLINE"
_INSTALL = "pip install 'p4q-edge-runtime[hub]'"
_LOGIN = "Log in with `hf auth login`, or set HF_TOKEN"
_NO_LOGIN, _NOT_PERMITTED, _CHANGED = 401, 403, (409, 412)
_SHOWN = 300


def hub_library() -> ModuleType:
    """Return the library.

    Raises:
        EnvironmentNotAbleError: it is not installed.
    """
    try:
        # Its parts are not attributes until they are imported.
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise EnvironmentNotAbleError(
            f"addresses that begin with hf: need the package huggingface_hub, which is not installed. Run: {_INSTALL}"
        ) from error
    return huggingface_hub


def is_offline() -> bool:
    """Return whether the library was told not to use the network, with `HF_HUB_OFFLINE=1`."""
    return bool(hub_library().constants.HF_HUB_OFFLINE)


@contextmanager
def asked_hub(address: HubAddress) -> Iterator[None]:
    """Turn what goes wrong while the Hub is asked into errors that say what to do."""
    library = hub_library()
    logging, errors = library.utils.logging, library.errors
    before = logging.get_verbosity()
    # What it would warn of, such as every attempt to go on with a download, ends in one of the errors below.
    logging.set_verbosity_error()
    try:
        yield
    except P4QEdgeError:
        raise
    except errors.GatedRepoError as error:
        raise UsageError(
            f"{address} is given only to those who accept its terms. Accept them on its page, and log in. {_LOGIN}."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"hf:{address.repo} has no revision {address.revision!r}. Name a branch, a tag or a commit of it."
        ) from error
    except errors.HfHubHTTPError as error:
        if is_absent(error):
            raise InputError(
                f"{address} is not there, or is private and this login may not see it. Check the name. {_LOGIN} for a "
                "private one."
            ) from error
        raise _refused(address, error) from error
    except Exception as error:
        missing = isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError))
        if missing and is_offline():
            raise EnvironmentNotAbleError(
                f"{address} is not in this user's cache, and {OFFLINE} is set. Unset it once to download it."
            ) from error
        cause = network_cause(error)
        if cause is not None:
            raise _unreachable(address, cause) from error
        if answer_of(error) is None:
            raise
        raise _refused(address, error) from error
    finally:
        logging.set_verbosity(before)


def is_absent(error: Exception) -> bool:
    """Return whether the Hub says that there is no such repository; it says so of private ones of others too."""
    errors = hub_library().errors
    if isinstance(error, errors.GatedRepoError):
        return False
    wrong_login = "invalid" in (_said(error) or "").lower()
    return isinstance(error, errors.RepositoryNotFoundError) or (answer_of(error) == _NO_LOGIN and not wrong_login)


def _said(error: Exception) -> str | None:
    return getattr(error, "server_message", None)


def _refused(address: HubAddress, error: Exception) -> P4QEdgeError:
    status = answer_of(error)
    said = printable(" ".join((_said(error) or "").split())[:_SHOWN])
    why = f" ({said})" if said else ""
    if status == _NO_LOGIN:
        return UsageError(
            f"the Hub does not accept this login for hf:{address.repo}{why}. {_LOGIN} with a valid token."
        )
    if status == _NOT_PERMITTED:
        return UsageError(
            f"this login may not do that with hf:{address.repo}{why}. Name a repository of your own, or use a token "
            "that may write."
        )
    if status in _CHANGED:
        return P4QEdgeError(f"hf:{address.repo} was changed by somebody else meanwhile{why}. Run this again.")
    return P4QEdgeError(f"the Hub answers with error {status} for {address}{why}. Try again later.")


def _unreachable(address: HubAddress, cause: BaseException) -> EnvironmentNotAbleError:
    """Return that the Hub cannot be reached, or the connection broke."""
    what = printable(" ".join(f"{type(cause).__name__}: {cause}".split())[:_SHOWN])
    return EnvironmentNotAbleError(
        f"the Hub cannot be reached for {address}, or the connection broke ({what}). Try again: what is complete is "
        f"kept. Without a network {OFFLINE}=1 takes what was downloaded before."
    )
