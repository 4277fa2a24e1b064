"""What went wrong between the client and the Hub, in words, with what to do about it."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import JSONDecodeError

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from timm_p2be.hub.sources.names import SourceError, UnreachableError

# the base class of all errors of the client's HTTP library, which has been requests, httpx and httpx2
_HTTP_ERRORS: tuple[type[Exception], ...] = tuple(
    kind
    for kind in HfHubHTTPError.__mro__
    if issubclass(kind, Exception) and re.match('requests|httpx', kind.__module__)
)
LOGIN = 'log in with `hf auth login` or set HF_TOKEN'


@contextmanager
def clear_errors(what: str) -> Iterator[None]:
    """Turn errors of huggingface_hub into a SourceError that says what to do next.

    Other errors pass, but put only calls of the client inside: an OSError is taken for one of its own.

    Args:
        what: what is asked for, such as 'organization/name@v1'; it is the subject of the message.

    Raises:
        SourceError: the Hub cannot be reached, refused, or broke off.
    """
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        # the client wraps some errors in others of any kind: RuntimeError around a failed upload, for one
        if not any(isinstance(cause, (OSError, JSONDecodeError, *_HTTP_ERRORS)) for cause in _causes(error)):
            raise
        raise _explained(error, what) from error


@contextmanager
def sound_answers(what: str) -> Iterator[None]:
    """Like `clear_errors`, for calls whose arguments are right: then errors of types and keys are those of the answer.

    Args:
        what: what is asked for.

    Raises:
        SourceError: as `clear_errors`, or the answer is JSON that no Hub sends.
    """
    try:
        with clear_errors(what):
            yield
    except (AttributeError, KeyError, TypeError) as error:
        raise no_hub(what) from error


def no_hub(what: str) -> SourceError:
    """Return the error for an answer that makes no sense, such as the login page of a network."""
    return SourceError(
        f'{constants.ENDPOINT} does not answer as a Hub, asked for {what}. Check HF_ENDPOINT and the proxy.'
    )


def _explained(error: Exception, what: str) -> SourceError:
    for cause in _causes(error):
        if isinstance(cause, LocalEntryNotFoundError):  # says only that the cache has no copy either
            continue
        kind = type(cause).__name__
        response = getattr(cause, 'response', None)
        if response is not None:
            return _refused(cause, response.status_code, response.headers, what)
        if isinstance(cause, OfflineModeIsEnabled):
            return SourceError(f'The Hub is switched off (HF_HUB_OFFLINE=1); unset it for {what}.')
        if 'Timeout' in kind:
            return UnreachableError(f'{constants.ENDPOINT} did not answer in time for {what}; try again later.')
        if isinstance(cause, ConnectionError) or 'Connect' in kind:
            return UnreachableError(
                f'{constants.ENDPOINT} cannot be reached for {what} ({kind}). Check the connection, the proxy and '
                'HF_ENDPOINT, and try again.'
            )
        if isinstance(cause, JSONDecodeError):
            return no_hub(what)
        if isinstance(cause, _HTTP_ERRORS):
            return _broken_off(what, kind)
        if isinstance(cause, OSError) and cause.errno is not None:
            return SourceError(
                f'{what}: {cause.strerror}: {cause.filename}. If that is in the cache of the Hub, make room there, or '
                'name another cache with HF_HOME.'
            )
    return _broken_off(what, type(error).__name__)  # a bare OSError: the size is not what was announced


def _broken_off(what: str, kind: str) -> SourceError:
    return UnreachableError(f'The transfer of {what} broke off ({kind}); nothing incomplete was kept. Run it again.')


def _refused(error: BaseException, status: int, headers: Mapping[str, str], what: str) -> SourceError:
    """What an HTTP status means for the user."""
    hub = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        return SourceError(f'{what} is gated ({status}). Accept its terms on its page at {hub}, then {LOGIN}.')
    if isinstance(error, RepositoryNotFoundError) and status == 404:
        return SourceError(
            f'There is no {what} on {hub} (404), or your token may not see it. Check the spelling, or {LOGIN} of '
            'someone who may. (A local folder counts as one only if it has a config.json.)'
        )
    if isinstance(error, RevisionNotFoundError):
        return SourceError(
            f'{what} has no such revision (404). Leave it out for main, or name a tag, a branch or a whole commit.'
        )
    if status in (401, 403):
        return SourceError(
            f'The Hub refused {what} ({status}): it does not exist, or it is private and the token is missing, wrong '
            f'or not allowed to. Check the spelling, then {LOGIN}.'
        )
    if status in (409, 412):
        return SourceError(f'Somebody changed {what} meanwhile ({status}), and nothing was overwritten. Run it again.')
    if status == 429:
        wait = re.search(r'^\d+$|(?<=t=)\d+', headers.get('retry-after') or headers.get('ratelimit') or '')
        seconds = f'{wait[0]} seconds' if wait else 'some minutes'
        return UnreachableError(
            f'Too many requests to the Hub, asked for {what} (429). Wait {seconds} and try again, or {LOGIN}.'
        )
    if status >= 500 or status == 408:
        return UnreachableError(
            f'The Hub is out of order for {what} ({status}). Try again in some minutes; see https://status.huggingface.co.'
        )
    return SourceError(f'The Hub answered {status} for {what}. Check the name and HF_ENDPOINT.')


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
