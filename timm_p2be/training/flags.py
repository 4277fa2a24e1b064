"""The flags of train.py: those of timm's train.py that our recipes and a fine-tuner need, and `--p2be-*`.

Flags shared with timm (huggingface/pytorch-image-models, train.py) keep its names, meanings and defaults.
"""

import argparse
from typing import Any

from timm.utils import ParseKwargs

from timm_p2be.encodings.codes import INITS
from timm_p2be.training.live import TRACKERS

DATASETS = ('torch', 'hfds', 'hfids', 'wds')  # readers of timm's that --dataset may name; an image folder has no name
# timm's, without 'plateau', whose state is in no checkpoint
SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'constant', 'poly', 'wsd', 'rsqrt', 'none')


class _KeyValues(ParseKwargs):
    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *flag: Any) -> None:
        if bad := [word for word in values if word and '=' not in word]:
            parser.error(f'{self.option_strings[0]}: got {bad[0]!r}; write KEY=VALUE.')
        super().__call__(parser, namespace, values, *flag)


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say where images are."""
    add = parser.add_argument_group('data').add_argument
    add('--data-dir', metavar='DIR', help='folder of the data set')
    add(
        '--dataset',
        default='',
        metavar='NAME',
        help="timm's <type>/<name>: torch/cifar10, hfds/<folder or Hub id>, hfids/..., wds/...; empty: image folder",
    )
    add('--train-split', default='train', metavar='NAME', help='default: %(default)s')
    add('--val-split', default='validation', metavar='NAME', help='default: %(default)s; empty: none')
    add(
        '--train-num-samples',
        type=int,
        metavar='N',
        help='size of a streamed split; else train on so many, evenly spaced',
    )
    add('--val-num-samples', type=int, metavar='N', help='likewise, of validation')
    add(
        '--max-bad-samples',
        type=int,
        default=10,
        metavar='N',
        help='unreadable training images that are passed over, each named in the log (default: 10); in validation none',
    )
    add('--dataset-download', action='store_true', help='let torch/ data sets download themselves')
    add('--class-map', default='', metavar='FILE', help='class-to-index file')
    add('--input-img-mode', help='PIL mode of the images (default: RGB, or L for one channel)')
    add('--input-key', help='column of the images in hfds/ and wds/ data sets')
    add('--target-key', help='column of the labels in hfds/ and wds/ data sets')
    add('-j', '--workers', type=int, default=4, metavar='N', help='loader processes (default: 4)')
    add('--pin-mem', action='store_true', help='pin memory of batches for transfer to a GPU')
    add('--data-on-device', action='store_true', help="hold training images, all of the network's size, on the device")
    add('--worker-seeding', default='all', choices=['all', 'part'], help='default: %(default)s')


def _model_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('model').add_argument
    add('--model', default='resnet50', metavar='NAME', help='any timm model (default: resnet50)')
    add('--model-kwargs', nargs='*', default={}, action=_KeyValues, metavar='KEY=VALUE')
    add('--pretrained', action='store_true', help='start from pretrained weights')
    add('--pretrained-path', metavar='FILE', help='with --pretrained: use these, under a new head')
    add('--initial-checkpoint', default='', metavar='FILE', help='load these weights first')
    add(
        '--resume',
        default='',
        metavar='FILE|auto',
        help='continue the run of this checkpoint; auto: of the newest sound one of --experiment, if there is one',
    )
    add('--no-resume-opt', action='store_true', help='resume without the optimizer')
    add('--num-classes', type=int, metavar='N', help="default: the data's, or else the model's")
    add('--img-size', type=int, metavar='N', help="default: the model's")
    add('--in-chans', type=int, metavar='N', help='image channels (default: 3)')
    add('--input-size', nargs=3, type=int, metavar='N', help='channels, height, width')
    add('--crop-pct', type=float, help='validation: side of the center crop over the resized side')
    add('--mean', type=float, nargs='+', help='mean to subtract; encoded models want 0')
    add('--std', type=float, nargs='+', help='standard deviation to divide by; encoded models want 1')
    add('--interpolation', default='', help='resize interpolation in validation')
    add('--drop', type=float, default=0.0, help='dropout rate (default: 0)')
    add('--drop-path', type=float, help='stochastic depth rate')
    add('--grad-checkpointing', action='store_true', help='recompute activations in backward')
    add('--sync-bn', action='store_true', help='synchronized BatchNorm (GPU)')
    add('--dist-bn', default='reduce', choices=['reduce', 'broadcast', ''], help='BatchNorm statistics after an epoch')
    add = parser.add_argument_group('moving average of the weights').add_argument
    add('--model-ema', action='store_true', help='keep one; bits are taken from the averaged latents')
    add('--model-ema-decay', type=float, default=0.9998, help='default: %(default)s')
    add('--model-ema-warmup', action='store_true', help='warm the decay up')


def _optimizer_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('optimizer and schedule').add_argument
    add('--opt', default='sgd', help='any of timm; sgdp2be and adamwp2be train the table by AdamW (default: sgd)')
    add('--opt-kwargs', nargs='*', default={}, action=_KeyValues, metavar='KEY=VALUE')
    add('--opt-eps', type=float)
    add('--opt-betas', type=float, nargs='+')
    add('--momentum', type=float, default=0.9, help='default: %(default)s')
    add('--weight-decay', type=float, default=2e-5, help='default: %(default)s')
    add('--layer-decay', type=float, metavar='RATE', help='layer-wise decay of the learning rate')
    add('--clip-grad', type=float, metavar='NORM', help='default: no clipping')
    add('--clip-mode', default='norm', choices=['norm', 'value', 'agc'])
    add('-b', '--batch-size', type=int, default=128, metavar='N', help='per process (default: 128)')
    add('-vb', '--validation-batch-size', type=int, metavar='N')
    add('--grad-accum-steps', type=int, default=1, metavar='N', help='batches to an update')
    add('--epochs', type=int, default=300, metavar='N', help='default: %(default)s')
    add('--start-epoch', type=int, metavar='N', help="default: 0, or the checkpoint's next")
    add('--sched', default='cosine', choices=SCHEDULES, help='default: %(default)s')
    add('--sched-on-updates', action='store_true', help='step the schedule on updates, not on epochs')
    add('--lr', type=float, help='learning rate; overrides --lr-base')
    add('--lr-base', type=float, default=0.1, help='lr = lr_base * global batch / lr_base_size')
    add('--lr-base-size', type=int, default=256)
    add('--lr-base-scale', default='', choices=['', 'linear', 'sqrt'])
    add('--min-lr', type=float, default=0.0, help='floor of cyclic schedules (default: 0)')
    add('--warmup-lr', type=float, default=1e-5)
    add('--warmup-epochs', type=int, default=5, metavar='N', help='default: %(default)s')
    add('--warmup-prefix', action='store_true', help='count warm-up before, not within, the epochs')
    add('--cooldown-epochs', type=int, default=0, metavar='N')
    add('--decay-milestones', type=int, nargs='+', default=[90, 180, 270], metavar='N')
    add('--decay-epochs', type=float, default=90, metavar='N')
    add('--decay-rate', '--dr', type=float, default=0.1)


def _augmentation_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('augmentation and loss').add_argument
    add('--no-aug', action='store_true', help='train on validation transforms')
    add('--train-crop-mode', choices=['rrc', 'rkrc', 'rkrr'], help="timm's crop in training")
    add('--scale', type=float, nargs=2, default=[0.08, 1.0], help='area of the random crop')
    add('--ratio', type=float, nargs=2, default=[3.0 / 4.0, 4.0 / 3.0])
    add('--hflip', type=float, default=0.5, help='probability (default: 0.5)')
    add('--vflip', type=float, default=0.0, help='probability (default: 0)')
    add('--color-jitter', type=float, default=0.4, help='default: %(default)s; off under --aa')
    add('--aa', metavar='NAME', help="timm's AutoAugment, RandAugment or AugMix policy")
    add('--aug-splits', type=int, default=0, metavar='N', help='views of an image: a clean one, N - 1')
    add('--jsd-loss', action='store_true', help='Jensen-Shannon term over --aug-splits views (Eq. 3)')
    add('--reprob', type=float, default=0.0, help='probability of random erasing (default: 0)')
    add('--remode', default='pixel', choices=['const', 'rand', 'pixel'], help='filling; codes want const')
    add('--recount', type=int, default=1, metavar='N', help='erased areas of an image')
    add('--smoothing', type=float, default=0.1, help='label smoothing (default: 0.1)')
    add('--train-interpolation', default='random')


def _run_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group('device and precision').add_argument
    add('--device', default='cuda', help='default: cuda, or cpu where there is no cuda')
    add('--amp', action='store_true', help='mixed precision')
    add('--amp-dtype', default='float16', choices=['float16', 'bfloat16'], help='CPUs want bfloat16')
    add('--model-dtype', choices=['float32', 'float16', 'bfloat16'], help='of weights, without --amp')
    add('--channels-last', action='store_true')
    add(
        '--torchcompile',
        nargs='?',
        const='inductor',
        metavar='BACKEND|MODE',
        help='reduce-overhead: network and objective as one CUDA graph',
    )
    add('--torchcompile-mode', help='of inductor; or give it to --torchcompile')
    add('--no-ddp-bb', action='store_true', help="do not broadcast buffers in DDP's forward")
    add = parser.add_argument_group('run').add_argument
    add('--seed', type=int, default=42, help='default: %(default)s')
    add('--output', default='', metavar='DIR', help='default: ./output/train')
    add('--experiment', default='', metavar='NAME', help='sub-folder (default: time, model, size)')
    add('--eval-metric', default='top1', choices=['top1', 'top5', 'loss'], help='picks model_best (default: top1)')
    add('--log-interval', type=int, default=50, metavar='N', help='updates between log lines')
    add('--val-interval', type=int, default=1, metavar='N', help='epochs between validations')
    add('--overwrite', action='store_true', help='delete the checkpoints in the folder of --experiment and start anew')
    add('--recovery-interval', type=int, default=0, metavar='N', help='updates between recovery files')
    add('--recovery-minutes', type=float, default=0.0, metavar='MIN', help='minutes between them; the newest two stay')
    add('--log', nargs='*', default=[], choices=TRACKERS, metavar='TRACKER', help=f'draw live: {", ".join(TRACKERS)}')
    add('--log-project', default='timm-p2be', metavar='NAME', help='of wandb and trackio (default: timm-p2be)')
    add('--checkpoint-hist', type=int, default=10, metavar='N', help='checkpoints to keep')
    waits = 'how long processes of a run wait for one that is lost or frozen, before they end (default: 600)'
    add('--dist-timeout', type=int, default=600, metavar='SECONDS', help=waits)


def _p2be_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        'pixel codes',
        'Flags of the learned table need a P2BE model on the command line; from a recipe they apply where they can.',
    ).add_argument
    add('--p2be-augmix', type=float, metavar='SEVERITY', help="the paper's AugMix: 3 CIFAR, 1 ImageNet")
    where = 'a batch at once on the device, or in workers image by image (default: auto, batch on CUDA)'
    add('--p2be-augmix-device', default='auto', choices=['auto', 'batch', 'workers'], help=where)
    add('--p2be-crop-padding', type=int, metavar='PIXELS', help='flip, pad by zeros, crop: 4 for CIFAR')
    add('--p2be-alpha', type=float, default=12.0, help='weight of the JSD term (default: 12, Eq. 10 and 12)')
    add('--p2be-smoothness', type=float, metavar='LAMBDA', help='weight of Eq. 9 (default: 1)')
    add('--p2be-reduction', choices=['mean', 'sum'], help='of the smoothness loss (default: mean)')
    add('--p2be-init', choices=INITS, help='start of the table (default: normal)')
    add('--p2be-embedding', metavar='ID_OR_FOLDER', help='start from this table: org/name[@revision] or a folder')
    add('--p2be-freeze', action='store_true', help='keep the table as it is')
    add('--p2be-lr', type=float, help='AdamW on the table: learning rate (default: 1e-4)')
    add('--p2be-betas', type=float, nargs=2, help='default: 0.999 0.999')
    add('--p2be-weight-decay', type=float, help='default: 1e-4')
    add('--p2be-sched', choices=['cosine', 'constant', 'follow'], help="cosine (default), or the network's schedule")
    add('--p2be-min-lr', type=float, help='floor of the cosine (default: 1e-6)')


def _adversarial_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        'adversarial training', 'On one view of the images, without AugMix; LS-PGA attacks codes, PGD pixel values.'
    ).add_argument
    add(
        '--p2be-adversarial',
        choices=['contrain', 'advtrain'],
        help='contrain: CE(clean) + alpha JSD(clean, adversarial) (Eq. 11, 12); advtrain: CE(adversarial)',
    )
    add('--p2be-attack-eps', type=int, default=8, metavar='LEVELS', help='bound of a change (default: 8 of 255)')
    add('--p2be-attack-steps', type=int, default=7, metavar='N', help='default: %(default)s')
    add(
        '--p2be-attack-step-size',
        type=float,
        metavar='SIZE',
        help='default: xi = 1.0 in the logits of LS-PGA, 2.5 eps / steps levels for PGD',
    )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add all flags but `--config` to `parser`, in groups."""
    add_data_flags(parser)
    _model_flags(parser)
    _optimizer_flags(parser)
    _augmentation_flags(parser)
    _run_flags(parser)
    _p2be_flags(parser)
    _adversarial_flags(parser)
