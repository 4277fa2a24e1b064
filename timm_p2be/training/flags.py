"""The flags of train.py: those of timm's train.py that our recipes and a fine-tuner need, and `--p2be-*`.

Flags shared with timm (huggingface/pytorch-image-models, train.py) keep its names, meanings and defaults.
"""

import argparse

from timm.utils import ParseKwargs

from timm_p2be.encodings.codes import INITS

DATASETS = ('torch', 'hfds', 'hfids', 'wds')  # readers of timm's that --dataset may name; an image folder has no name
# timm's, without 'plateau', whose state is in no checkpoint
SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'constant', 'poly', 'wsd', 'rsqrt', 'none')


def _data_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('data')
    group.add_argument('--data-dir', metavar='DIR', help='folder of the data set')
    group.add_argument(
        '--dataset',
        default='',
        metavar='NAME',
        help="timm's <type>/<name>: torch/cifar10, hfds/<folder or Hub id>, hfids/..., wds/...; empty: image folder",
    )
    group.add_argument('--train-split', default='train', metavar='NAME', help='default: %(default)s')
    group.add_argument('--val-split', default='validation', metavar='NAME', help='default: %(default)s; empty: none')
    group.add_argument('--train-num-samples', type=int, metavar='N', help='size of a streamed training split')
    group.add_argument('--val-num-samples', type=int, metavar='N', help='size of a streamed validation split')
    group.add_argument('--dataset-download', action='store_true', help='let torch/ data sets download themselves')
    group.add_argument('--class-map', default='', metavar='FILE', help='class-to-index file')
    group.add_argument('--input-img-mode', help='PIL mode of the images (default: RGB, or L for one channel)')
    group.add_argument('--input-key', help='column of the images in hfds/ and wds/ data sets')
    group.add_argument('--target-key', help='column of the labels in hfds/ and wds/ data sets')
    group.add_argument('-j', '--workers', type=int, default=4, metavar='N', help='loader processes (default: 4)')
    group.add_argument('--pin-mem', action='store_true', help='pin memory of batches for transfer to a GPU')
    group.add_argument('--worker-seeding', default='all', choices=['all', 'part'], help='default: %(default)s')


def _model_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('model')
    group.add_argument('--model', default='resnet50', metavar='NAME', help='any timm model (default: resnet50)')
    group.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE')
    group.add_argument('--pretrained', action='store_true', help='start from pretrained weights')
    group.add_argument('--pretrained-path', metavar='FILE', help='with --pretrained: use these, under a new head')
    group.add_argument('--initial-checkpoint', default='', metavar='FILE', help='load these weights first')
    group.add_argument('--resume', default='', metavar='FILE', help='continue the run of this checkpoint')
    group.add_argument('--no-resume-opt', action='store_true', help='resume without the optimizer')
    group.add_argument('--num-classes', type=int, metavar='N', help="default: the model's")
    group.add_argument('--img-size', type=int, metavar='N', help="default: the model's")
    group.add_argument('--in-chans', type=int, metavar='N', help='image channels (default: 3)')
    group.add_argument('--input-size', nargs=3, type=int, metavar='N', help='channels, height, width')
    group.add_argument('--crop-pct', type=float, help='validation: side of the center crop over the resized side')
    group.add_argument('--mean', type=float, nargs='+', help='mean to subtract; encoded models want 0')
    group.add_argument('--std', type=float, nargs='+', help='standard deviation to divide by; encoded models want 1')
    group.add_argument('--interpolation', default='', help='resize interpolation in validation')
    group.add_argument('--drop', type=float, default=0.0, help='dropout rate (default: 0)')
    group.add_argument('--drop-path', type=float, help='stochastic depth rate')
    group.add_argument('--grad-checkpointing', action='store_true', help='recompute activations in backward')
    group.add_argument('--sync-bn', action='store_true', help='synchronized BatchNorm (GPU)')
    group.add_argument(
        '--dist-bn', default='reduce', choices=['reduce', 'broadcast', ''], help='BatchNorm statistics after an epoch'
    )
    ema = parser.add_argument_group('moving average of the weights')
    ema.add_argument('--model-ema', action='store_true', help='keep one; bits are taken from the averaged latents')
    ema.add_argument('--model-ema-decay', type=float, default=0.9998, help='default: %(default)s')
    ema.add_argument('--model-ema-warmup', action='store_true', help='warm the decay up')


def _optimizer_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('optimizer and schedule')
    group.add_argument(
        '--opt', default='sgd', help='any timm optimizer; sgdp2be and adamwp2be train the table by AdamW (default: sgd)'
    )
    group.add_argument('--opt-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='KEY=VALUE')
    group.add_argument('--opt-eps', type=float)
    group.add_argument('--opt-betas', type=float, nargs='+')
    group.add_argument('--momentum', type=float, default=0.9, help='default: %(default)s')
    group.add_argument('--weight-decay', type=float, default=2e-5, help='default: %(default)s')
    group.add_argument('--layer-decay', type=float, metavar='RATE', help='layer-wise decay of the learning rate')
    group.add_argument('--clip-grad', type=float, metavar='NORM', help='default: no clipping')
    group.add_argument('--clip-mode', default='norm', choices=['norm', 'value', 'agc'])
    group.add_argument('-b', '--batch-size', type=int, default=128, metavar='N', help='per process (default: 128)')
    group.add_argument('-vb', '--validation-batch-size', type=int, metavar='N')
    group.add_argument('--grad-accum-steps', type=int, default=1, metavar='N', help='batches to an update')
    group.add_argument('--epochs', type=int, default=300, metavar='N', help='default: %(default)s')
    group.add_argument('--start-epoch', type=int, metavar='N', help="default: 0, or the checkpoint's next")
    group.add_argument('--sched', default='cosine', choices=SCHEDULES, help='default: %(default)s')
    group.add_argument('--sched-on-updates', action='store_true', help='step the schedule on updates, not on epochs')
    group.add_argument('--lr', type=float, help='learning rate; overrides --lr-base')
    group.add_argument('--lr-base', type=float, default=0.1, help='lr = lr_base * global batch / lr_base_size')
    group.add_argument('--lr-base-size', type=int, default=256)
    group.add_argument('--lr-base-scale', default='', choices=['', 'linear', 'sqrt'])
    group.add_argument('--min-lr', type=float, default=0.0, help='floor of cyclic schedules (default: 0)')
    group.add_argument('--warmup-lr', type=float, default=1e-5)
    group.add_argument('--warmup-epochs', type=int, default=5, metavar='N', help='default: %(default)s')
    group.add_argument('--warmup-prefix', action='store_true', help='count warm-up before, not within, the epochs')
    group.add_argument('--cooldown-epochs', type=int, default=0, metavar='N')
    group.add_argument('--decay-milestones', type=int, nargs='+', default=[90, 180, 270], metavar='N')
    group.add_argument('--decay-epochs', type=float, default=90, metavar='N')
    group.add_argument('--decay-rate', '--dr', type=float, default=0.1)


def _augmentation_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('augmentation and loss')
    group.add_argument('--no-aug', action='store_true', help='train on validation transforms')
    group.add_argument('--train-crop-mode', choices=['rrc', 'rkrc', 'rkrr'], help="timm's crop in training")
    group.add_argument('--scale', type=float, nargs=2, default=[0.08, 1.0], help='area of the random crop')
    group.add_argument('--ratio', type=float, nargs=2, default=[3.0 / 4.0, 4.0 / 3.0])
    group.add_argument('--hflip', type=float, default=0.5, help='probability (default: 0.5)')
    group.add_argument('--vflip', type=float, default=0.0, help='probability (default: 0)')
    group.add_argument('--color-jitter', type=float, default=0.4, help='default: %(default)s; off under --aa')
    group.add_argument('--aa', metavar='NAME', help="timm's AutoAugment, RandAugment or AugMix policy")
    group.add_argument('--aug-splits', type=int, default=0, metavar='N', help='views of an image: a clean one, N - 1')
    group.add_argument('--jsd-loss', action='store_true', help='Jensen-Shannon term over --aug-splits views (Eq. 3)')
    group.add_argument('--reprob', type=float, default=0.0, help='probability of random erasing (default: 0)')
    group.add_argument(
        '--remode', default='pixel', choices=['const', 'rand', 'pixel'], help='filling; codes want const'
    )
    group.add_argument('--recount', type=int, default=1, metavar='N', help='erased areas of an image')
    group.add_argument('--smoothing', type=float, default=0.1, help='label smoothing (default: 0.1)')
    group.add_argument('--train-interpolation', default='random')


def _device_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('device and precision')
    group.add_argument('--device', default='cuda', help='default: cuda, or cpu where there is no cuda')
    group.add_argument('--amp', action='store_true', help='mixed precision')
    group.add_argument('--amp-dtype', default='float16', choices=['float16', 'bfloat16'], help='CPUs want bfloat16')
    group.add_argument('--model-dtype', choices=['float32', 'float16', 'bfloat16'], help='of weights, without --amp')
    group.add_argument('--channels-last', action='store_true')
    group.add_argument('--torchcompile', nargs='?', const='inductor', metavar='BACKEND')
    group.add_argument('--torchcompile-mode')
    group.add_argument('--no-ddp-bb', action='store_true', help="do not broadcast buffers in DDP's forward")


def _run_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('run')
    group.add_argument('--seed', type=int, default=42, help='default: %(default)s')
    group.add_argument('--output', default='', metavar='DIR', help='default: ./output/train')
    group.add_argument('--experiment', default='', metavar='NAME', help='sub-folder (default: time, model, size)')
    group.add_argument(
        '--eval-metric', default='top1', choices=['top1', 'top5', 'loss'], help='picks model_best (default: top1)'
    )
    group.add_argument('--log-interval', type=int, default=50, metavar='N', help='updates between log lines')
    group.add_argument('--val-interval', type=int, default=1, metavar='N', help='epochs between validations')
    group.add_argument('--recovery-interval', type=int, default=0, metavar='N', help='updates between recovery files')
    group.add_argument('--checkpoint-hist', type=int, default=10, metavar='N', help='checkpoints to keep')


def _p2be_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        'pixel codes',
        'Flags of the learned table need a P2BE model on the command line; from a recipe they apply where they can.',
    )
    group.add_argument('--p2be-augmix', type=float, metavar='SEVERITY', help="the paper's AugMix: 3 CIFAR, 1 ImageNet")
    group.add_argument('--p2be-crop-padding', type=int, metavar='PIXELS', help='flip, pad by zeros, crop: 4 for CIFAR')
    group.add_argument('--p2be-alpha', type=float, default=12.0, help='weight of the JSD term (default: 12, Eq. 10)')
    group.add_argument('--p2be-smoothness', type=float, metavar='LAMBDA', help='weight of Eq. 9 (default: 1)')
    group.add_argument('--p2be-reduction', choices=['mean', 'sum'], help='of the smoothness loss (default: mean)')
    group.add_argument('--p2be-init', choices=INITS, help='start of the table (default: normal)')
    group.add_argument(
        '--p2be-embedding', metavar='ID_OR_FOLDER', help='start from this table: org/name[@revision] or a folder'
    )
    group.add_argument('--p2be-freeze', action='store_true', help='keep the table as it is')
    group.add_argument('--p2be-lr', type=float, help='AdamW on the table: learning rate (default: 1e-4)')
    group.add_argument('--p2be-betas', type=float, nargs=2, help='default: 0.999 0.999')
    group.add_argument('--p2be-weight-decay', type=float, help='default: 1e-4')
    group.add_argument(
        '--p2be-sched', choices=['cosine', 'constant', 'follow'], help="cosine (default), or the network's schedule"
    )
    group.add_argument('--p2be-min-lr', type=float, help='floor of the cosine (default: 1e-6)')


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add all flags but `--config` to `parser`, in groups."""
    for add_group in (
        _data_flags,
        _model_flags,
        _optimizer_flags,
        _augmentation_flags,
        _device_flags,
        _run_flags,
        _p2be_flags,
    ):
        add_group(parser)
