"""What goes wrong between the client and the Hub, in words, with what to do about it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from json import JSONDecodeError

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

LOGIN = 'log in with `hf auth login` or set HF_TOKEN'

_TRANSPORT_ERROR = HfHubHTTPError.__bases__[0]  # of the client's HTTP library, httpx or httpx2 by its version


class FetchError(ValueError):
    """What cannot be fetched or sent. The message says what to do next and never shows a token."""


class UnreachableError(FetchError):
    """The Hub did not answer, or not now: a copy in the cache will do."""


@contextmanager
def asking(what: str, token: str | bool | None = None) -> Iterator[None]:
    """Turn errors of huggingface_hub into a FetchError that says what to do next; other errors pass.

    Put only calls of the client inside: an OSError is taken for one of its own.

    Args:
        what: what is asked for, such as 'org/name@v1'; it is the subject of the message.
        token: that is sent; None is the stored one, False is none.
    """
    # the HTTP library would show a token that does not fit into a header
    sent = token if isinstance(token, str) else None if token is False else get_token()
    if sent is not None and not re.fullmatch(r'[!-~]+', sent):
        raise FetchError(f'The token contains spaces, line breaks or other characters no token has; {LOGIN} again.')
    try:
        yield
    except Exception as error:
        causes = [*_causes(error)]  # the client wraps some errors in others of any kind
        if not any(isinstance(cause, OSError | JSONDecodeError | _TRANSPORT_ERROR) for cause in causes):
            raise
        raise _explained(causes, what) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _explained(causes: Sequence[BaseException], what: str) -> FetchError:
    hub, kind = constants.ENDPOINT, type(causes[0]).__name__
    for cause in causes:
        if isinstance(cause, LocalEntryNotFoundError):  # says only that the cache has no copy either
            continue
        kind = type(cause).__name__
        if isinstance(cause, HfHubHTTPError):
            return _refused(cause, cause.response.status_code, cause.response.headers, what)
        if isinstance(cause, OfflineModeIsEnabled):
            return FetchError(f'The Hub is switched off (HF_HUB_OFFLINE=1); unset it for {what}.')
        if isinstance(cause, JSONDecodeError):
            return FetchError(f'{hub} does not answer as a Hub, asked for {what}. Check HF_ENDPOINT and the proxy.')
        if 'Timeout' in kind:
            return UnreachableError(f'{hub} did not answer in time for {what}; try again later.')
        if isinstance(cause, ConnectionError) or 'Connect' in kind:
            return UnreachableError(
                f'{hub} cannot be reached for {what} ({kind}). Check the connection, the proxy and HF_ENDPOINT, and '
                'try again.'
            )
        if isinstance(cause, OSError) and cause.errno is not None:
            return FetchError(
                f'{what}: {cause.strerror}: {cause.filename}. If that is in the cache of the Hub, make room there, or '
                'name another cache with HF_HOME.'
            )
    return UnreachableError(f'The transfer of {what} broke off ({kind}); nothing incomplete was kept. Run it again.')


def _refused(error: HfHubHTTPError, status: int, headers: Mapping[str, str], what: str) -> FetchError:
    """What an HTTP status means for the user."""
    hub = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        return FetchError(f'{what} is gated ({status}). Accept its terms on its page at {hub}, then {LOGIN}.')
    if isinstance(error, RepositoryNotFoundError) and status == 404:
        return FetchError(
            f'There is no {what} on {hub} (404), or your token may not see it. Check the spelling, or {LOGIN} of '
            'someone who may. (A local folder counts as one only if it has a config.json.)'
        )
    if isinstance(error, RevisionNotFoundError):
        return FetchError(f'{what} has no such revision (404). Name a tag, a branch or a whole commit.')
    if status in (401, 403):
        return FetchError(
            f'The Hub refused {what} ({status}): it does not exist, or it is private and the token is missing, wrong '
            f'or not allowed to. Check the spelling, then {LOGIN}.'
        )
    if status in (409, 412):
        return FetchError(f'Somebody changed {what} meanwhile ({status}), and nothing was overwritten. Run it again.')
    if status == 429:
        wait = re.search(r'^\d+$|(?<=t=)\d+', headers.get('retry-after') or headers.get('ratelimit') or '')
        seconds = f'{wait[0]} seconds' if wait else 'some minutes'
        return UnreachableError(f'Too many requests for {what} (429). Wait {seconds} and try again, or {LOGIN}.')
    if status >= 500 or status == 408:
        return UnreachableError(
            f'The Hub is out of order for {what} ({status}). Try again in some minutes; see https://status.huggingface.co.'
        )
    return FetchError(f'The Hub answered {status} for {what}. Check the name and HF_ENDPOINT.')
