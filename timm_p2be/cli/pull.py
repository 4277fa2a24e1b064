"""`timm-p2be pull`: a model or an embedding from the Hub, at one commit and verified."""

import argparse
from collections.abc import Callable
from pathlib import Path

from timm_p2be.cli.interruption import run_long
from timm_p2be.hub.pulling import Pulled, pull

_EPILOG = """\
The files of one commit are downloaded and verified: an embedding completely, a model's weights against the sha256 that
its config.json states. Only config.json, model.safetensors, README.md and results.json are taken, never a pickle.
Without --output they stay in the Hub cache, where timm and timm-p2be find them, offline too; --output writes plain
files, all of them or none. The line 'pinned' names these files for ever: keep it in a paper's lock file. HF_TOKEN or
`hf auth login` opens private repositories, HF_ENDPOINT names another Hub.

examples:
  timm-p2be pull org/wrn40_2_p2be.cifar10@v1
  timm-p2be pull org/p2be-cifar10-m64 --output tables/cifar10
"""


def declare(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """Add the flags of `pull` and return the command."""
    parser.epilog = _EPILOG
    parser.add_argument('repository', metavar='ID[@REVISION]', help='on the Hub; REVISION: branch, tag or commit')
    parser.add_argument('--output', type=Path, metavar='FOLDER', help='write plain files there (default: Hub cache)')
    parser.add_argument('--overwrite', action='store_true', help='replace what an earlier pull wrote to FOLDER')

    return lambda args: run_long(parser, lambda: _run(args), 'Nothing was written to --output.')


def _run(args: argparse.Namespace) -> int:
    if args.overwrite and args.output is None:
        raise ValueError('--overwrite needs --output FOLDER.')
    pulled = pull(args.repository, args.output, args.overwrite)
    found = pulled.contents
    lines = [('what', found.describe()), ('commit', pulled.commit), ('pinned', pulled.pinned)]
    lines += [('sha256', f'{digest}  {name}') for name, digest in pulled.sha256.items()]
    if found.codes_sha256 is not None:
        lines.append(('sha256', f'{found.codes_sha256}  the codes'))
    elif found.weights_sha256 is None:
        lines.append(('note', 'config.json states no sha256 of the weights: they are readable and finite, no more'))
    lines.append(('folder', f'{pulled.folder}{"" if pulled.is_new else "  (there already, identical)"}'))
    lines += [('use', line) for line in _usage(pulled)]
    print('\n'.join(f'{label:<8}{text}' for label, text in lines))
    return 0


def _usage(pulled: Pulled) -> list[str]:
    """Return the lines of Python that load what was pulled."""
    from_cache = pulled.commit in pulled.folder.parts
    if pulled.contents.kind == 'embedding':
        name = pulled.repo_id if from_cache else str(pulled.folder)
        revision = f', revision={pulled.commit!r}' if from_cache else ''
        return ['import timm_p2be', f'embedding = timm_p2be.PixelEmbedding.from_pretrained({name!r}{revision})']
    name = f'hf-hub:{pulled.pinned}' if from_cache else f'local-dir:{pulled.folder}'
    return ['import timm_p2be, timm', f'model = timm.create_model({name!r}, pretrained=True)']
