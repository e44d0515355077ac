"""The library `huggingface_hub`: loaded when it is used, and its errors in our words.

Tokens, the address of the Hub, its cache folder and offline mode are the library's own: its login (`hf auth login`),
`HF_TOKEN`, `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE`. Nothing of them is read, kept or shown here.
"""

from __future__ import annotations

import logging as log
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from p4q_edge.runtime.errors import EnvironmentNotAbleError, InputError, P4QEdgeError, UsageError
from p4q_edge.runtime.hub.address import HubAddress
from p4q_edge.runtime.hub.network import (
    NotTheHubError,
    answer_of,
    guarded_answers,
    is_hub_trouble,
    network_cause,
    strange_answer,
)
from p4q_edge.runtime.storage import one_line, printable

OFFLINE = "HF_HUB_OFFLINE"
_INSTALL = "pip install 'p4q-edge-runtime[hub]'"
_LOGIN = "Log in with `hf auth login`, or set HF_TOKEN"
_NO_LOGIN, _NOT_PERMITTED, _ABSENT, _CHANGED, _TOO_OFTEN = 401, 403, 404, (409, 412), 429

logger = log.getLogger(__name__)


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


def not_here(address: HubAddress) -> EnvironmentNotAbleError:
    """Return that offline a bundle cannot be had."""
    return EnvironmentNotAbleError(
        f"{address} is not in this user's cache, and {OFFLINE} is set. Unset it once to download it."
    )


@contextmanager
def asked_hub(address: HubAddress, *, writing: bool = False) -> Iterator[None]:
    """Turn what goes wrong while the Hub is asked into errors that say what to do.

    Args:
        address: what is asked for.
        writing: whether something is to be changed there.
    """
    library = hub_library()
    with _quiet(library), guarded_answers(library), _in_our_words(address, writing=writing):
        yield


@contextmanager
def _quiet(library: ModuleType) -> Iterator[None]:
    """Silence the library: what it warns of, such as every attempt to go on with a download, ends in an error."""
    messages, bars = library.utils.logging, library.utils
    before = messages.get_verbosity()
    wanted = sys.stderr is not None and sys.stderr.isatty() and logger.isEnabledFor(log.INFO)
    silence_bars = not wanted and not bars.are_progress_bars_disabled()
    messages.set_verbosity_error()
    if silence_bars:
        bars.disable_progress_bars()
    try:
        yield
    finally:
        messages.set_verbosity(before)
        if silence_bars:
            bars.enable_progress_bars()


@contextmanager
def _in_our_words(address: HubAddress, *, writing: bool) -> Iterator[None]:
    errors = hub_library().errors
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
        raise _refused(address, error, writing=writing) from error
    except Exception as error:
        missing = isinstance(error, (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError))
        if missing and is_offline():
            raise not_here(address) from error
        strange = strange_answer(error)
        if strange is None and (cause := network_cause(error)) is not None:
            raise _unreachable(address, cause) from error
        if answer_of(error) is not None:
            raise _refused(address, error, writing=writing) from error
        if strange is None and not _is_of_library(error):
            raise
        if isinstance(error, OSError) and error.errno is not None:
            if writing:  # of the bundle's own file
                raise
            raise P4QEdgeError(
                f"{address} cannot be kept in the cache of huggingface_hub ({printable(one_line(error))}). Make room "
                "or permit it, or set HF_HOME to another folder."
            ) from error
        raise _no_answer(address, strange or error) from error


def is_absent(error: Exception) -> bool:
    """Return whether the Hub says that there is no such repository; it says so of private ones of others too."""
    errors = hub_library().errors
    if isinstance(error, errors.GatedRepoError):
        return False
    wrong_login = "invalid" in (_said(error) or "").lower()
    return isinstance(error, errors.RepositoryNotFoundError) or (answer_of(error) == _NO_LOGIN and not wrong_login)


def _said(error: Exception) -> str | None:
    return getattr(error, "server_message", None)


def _refused(address: HubAddress, error: Exception, *, writing: bool) -> P4QEdgeError:
    status = answer_of(error)
    said = printable(one_line(_said(error) or ""))
    why = f" ({said})" if said else ""
    if status == _NO_LOGIN:
        return UsageError(
            f"the Hub does not accept this login for hf:{address.repo}{why}. {_LOGIN} with a valid token."
        )
    if status == _NOT_PERMITTED and not writing:
        return UsageError(f"this login may not read hf:{address.repo}{why}. {_LOGIN}, with a token that may.")
    if status == _NOT_PERMITTED:
        return UsageError(
            f"this login may not do that with hf:{address.repo}{why}. Name a repository of your own, or use a token "
            "that may write."
        )
    if status in _CHANGED:
        return P4QEdgeError(f"hf:{address.repo} was changed by somebody else meanwhile{why}. Run this again.")
    if status == _TOO_OFTEN:
        return P4QEdgeError(
            f"the Hub takes no more requests from here for now{why}. Wait some minutes and run this again; who is "
            "logged in may ask more often."
        )
    answers = f"the Hub answers with error {status} for {address}{why}"
    if status is None or is_hub_trouble(status):
        return P4QEdgeError(f"{answers}. Try again later.")
    if status == _ABSENT:
        return P4QEdgeError(
            f"{answers}: it is not there, or no longer. Check the name and HF_ENDPOINT, and run this again."
        )
    return P4QEdgeError(
        f"{answers}, and will do so again. Look at the page of hf:{address.repo}; -vv shows what was asked."
    )


def _no_answer(address: HubAddress, error: BaseException) -> P4QEdgeError:
    said = str(error) if isinstance(error, NotTheHubError) else f"{type(error).__name__}: {error}"
    what = printable(one_line(said))
    return P4QEdgeError(
        f"what was answered for {address} is no answer of the Hub ({what}). Is it a page of the network that asks for "
        "a login? Open the Hub in a browser, check HF_ENDPOINT and HF_TOKEN, and run this again."
    )


def _is_of_library(error: BaseException) -> bool:
    """Return whether an error was raised by the library, or by what it called."""
    modules = (str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(module.partition(".")[0] == "huggingface_hub" for module in modules)


def _unreachable(address: HubAddress, cause: BaseException) -> EnvironmentNotAbleError:
    """Return that the Hub cannot be reached, or the connection broke."""
    what = printable(one_line(f"{type(cause).__name__}: {cause}"))
    return EnvironmentNotAbleError(
        f"the Hub cannot be reached for {address}, or the connection broke ({what}). Try again: what is complete is "
        f"kept. Without a network {OFFLINE}=1 takes what was downloaded before."
    )
