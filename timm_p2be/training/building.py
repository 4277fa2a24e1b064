"""Builds what a run computes with, from its flags: device, model, task, optimizer, precision."""

import argparse
import difflib
import logging
from functools import partial
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import is_model, list_models
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.utils import NativeScaler, is_primary
from torch import nn

from timm_p2be.checkpoints import read_checkpoint
from timm_p2be.encodings import PixelEmbedding
from timm_p2be.encodings.table_file import names_table
from timm_p2be.hub.run_folder import create_model
from timm_p2be.stem import learned_embedding
from timm_p2be.task import AdvTrainTask, ConTrainTask, P2BETask
from timm_p2be.training.conflicts import EMBEDDING_DEFAULTS, flag_name, has_learned_table
from timm_p2be.training.memory import keep_freed_memory
from timm_p2be.training.processes import join_processes

_logger = logging.getLogger('train')


def build_device(args: argparse.Namespace, explicit: set[str]) -> torch.device:
    """Return the device and join the other processes that torchrun or Slurm started."""
    try:
        kind = torch.device(args.device).type
    except RuntimeError as error:
        raise ValueError(f'--device {args.device}: {str(error).splitlines()[0]}') from error
    fallback = kind == 'cuda' and not torch.cuda.is_available()
    if fallback:
        if 'device' in explicit:
            raise ValueError(f'--device {args.device}, but this PyTorch finds no CUDA device; use --device cpu.')
        kind = args.device = 'cpu'
    if kind == 'cuda':  # as timm's train.py
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    elif 'pin_mem' not in explicit:
        args.pin_mem = False  # a recipe's, for GPUs
    if kind == 'cpu':
        keep_freed_memory()
    device = join_processes(args)
    if args.sync_bn and kind == 'cpu':
        raise ValueError('--sync-bn: PyTorch synchronizes BatchNorm on GPUs only; --dist-bn reduce works on the CPU.')
    if is_primary(args) and fallback:
        _logger.info('No CUDA device found, training on the CPU.')
    if is_primary(args) and args.amp and args.amp_dtype == 'float16' and kind == 'cpu':
        _logger.warning('float16 gradients underflow without the loss scaling of GPUs; use --amp-dtype bfloat16.')
    return device


def build_model(args: argparse.Namespace, device: torch.device) -> nn.Module:
    """Return the model on its device, its table drawn where none is loaded."""
    model = _create_model(args)
    embedding = learned_embedding(model)
    if embedding is not None:
        if not has_learned_table(args):
            raise ValueError(f'--model {args.model} has a learned table: let its name end in _p2be, or be "encoded".')
        _settle_table(args, embedding)
    args.num_classes = args.num_classes if args.num_classes is not None else model.num_classes
    if args.grad_checkpointing:
        try:
            model.set_grad_checkpointing(enable=True)  # type: ignore[operator]
        except (AttributeError, AssertionError, TypeError) as error:
            raise ValueError(f'{args.model} has no --grad-checkpointing ({error}).') from error
    model.to(device=device, dtype=getattr(torch, args.model_dtype) if args.model_dtype else None)
    if args.channels_last:
        model.to(memory_format=torch.channels_last)
    if args.distributed and args.sync_bn:
        args.dist_bn = ''
        model = convert_sync_batchnorm(model)
    return model


def _create_model(args: argparse.Namespace) -> nn.Module:
    """Return timm's model, with every way of failing as a ValueError."""
    if ':' not in args.model and not is_model(args.model):
        close = difflib.get_close_matches(args.model, list_models(), n=3)
        raise ValueError(f'--model {args.model}: unknown model; did you mean one of {close}? See timm.list_models().')
    for name in ('initial_checkpoint', 'pretrained_path'):
        if file := getattr(args, name):
            read_checkpoint(file, what=flag_name(name))  # timm reads it next, with fewer checks and other messages
    overlay = {}
    if args.pretrained_path:
        # as timm: the file goes before other sources, and -1 makes the head start afresh
        overlay = {'pretrained_cfg_overlay': {'file': args.pretrained_path, 'num_classes': -1}}
    table: dict[str, Any] = {}
    if args.p2be_freeze or names_table(args.model):  # which would be frozen by itself
        table['freeze_embedding'] = args.p2be_freeze
    if args.p2be_embedding and not args.resume:
        table['embedding'] = args.p2be_embedding
    where = {'pretrained': args.pretrained, 'checkpoint_path': args.initial_checkpoint}
    try:
        return create_model(vars(args), **where, **overlay, **table, **args.model_kwargs)
    except (TypeError, RuntimeError, OSError, EOFError, AssertionError, KeyError) as error:
        files = args.initial_checkpoint or args.pretrained_path
        advice = f' Does {files} hold weights of this model?' if files else ''
        if args.pretrained and not files:
            advice = ' Leave --pretrained out, or name a file by --pretrained-path.'
        raise ValueError(f'Cannot create {args.model}: {str(error) or type(error).__name__}{advice}') from error


def _settle_table(args: argparse.Namespace, embedding: PixelEmbedding) -> None:
    """Draw the table where none is loaded, record its size where one is, and log how it will be treated."""
    if args.p2be_embedding or (args.pretrained and names_table(args.model)):
        # with this, flags of a checkpoint create the model that its weights fit, without the table's source
        args.model_kwargs = {**args.model_kwargs, 'num_bits': embedding.num_bits}
    elif args.p2be_init is None:
        args.p2be_init = embedding.init
    elif embedding.init != args.p2be_init:
        embedding.init = args.p2be_init
        embedding.reset_parameters()
    if not is_primary(args):
        return
    if not (args.p2be_freeze or args.opt.lower().endswith('p2be')):
        _logger.warning(f'--opt {args.opt} will train the table like any weight; the paper uses --opt sgdp2be.')
    if args.p2be_freeze and not (args.p2be_embedding or args.pretrained or args.initial_checkpoint or args.resume):
        _logger.info(f'The table is frozen as it was drawn (--p2be-init {args.p2be_init}): nothing has been learned.')


def build_task(
    args: argparse.Namespace, model: nn.Module, device: torch.device, data_config: dict[str, Any]
) -> P2BETask:
    """Return the task that computes Eq. 10 on the views of a batch, or trains adversarially; images as the loader's."""
    common: dict[str, Any] = {
        'smoothness': args.p2be_smoothness or 0.0,
        'reduction': args.p2be_reduction or EMBEDDING_DEFAULTS['p2be_reduction'],
        'criterion': LabelSmoothingCrossEntropy(args.smoothing) if args.smoothing else nn.CrossEntropyLoss(),
        'device': device,
        'dtype': getattr(torch, args.model_dtype) if args.model_dtype else None,
        'verbose': is_primary(args),
    }
    if not args.p2be_adversarial:
        alpha = args.p2be_alpha if args.jsd_loss else 0.0
        return P2BETask(model, alpha, num_views=max(args.aug_splits, 1), **common)
    common |= {'eps': args.p2be_attack_eps, 'steps': args.p2be_attack_steps, 'step_size': args.p2be_attack_step_size}
    common |= {'mean': data_config['mean'], 'std': data_config['std'], 'seed': args.seed}
    if args.p2be_adversarial == 'advtrain':
        return AdvTrainTask(model, **common)
    return ConTrainTask(model, args.p2be_alpha, **common)


def compile_task(args: argparse.Namespace, task: P2BETask) -> None:
    """Compile network and objective, and the moving average."""
    backend, mode = args.torchcompile, args.torchcompile_mode
    backends, modes = torch.compiler.list_backends(exclude_tags=()), [*torch._inductor.list_mode_options()]
    if backend in modes and mode is None:
        backend, mode = 'inductor', backend
    if backend not in backends:
        raise ValueError(f'--torchcompile {args.torchcompile}: no backend {backends} and no mode {modes} of inductor.')
    task.compile(backend=backend, mode=mode)
    if task.has_ema():
        task.compile_ema(backend=backend, mode=mode)


def build_optimizer(args: argparse.Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer and settle the learning rate by timm's rule (--lr, or --lr-base by the total batch)."""
    if args.lr is None:
        ratio = args.batch_size * args.world_size * args.grad_accum_steps / args.lr_base_size
        adaptive = any(name in args.opt.lower() for name in ('ada', 'lamb'))
        args.lr_base_scale = args.lr_base_scale or ('sqrt' if adaptive else 'linear')
        args.lr = args.lr_base * (ratio**0.5 if args.lr_base_scale == 'sqrt' else ratio)
        if is_primary(args):
            _logger.info(f'Learning rate {args.lr:g}: --lr-base {args.lr_base:g}, {args.lr_base_scale} scaling.')
    embedding = {}
    if args.p2be_lr is not None:
        embedding = {
            'embedding_lr': args.p2be_lr,
            'embedding_betas': tuple(args.p2be_betas),
            'embedding_weight_decay': args.p2be_weight_decay,
            'embedding_sched': args.p2be_sched,
        }
    if double := embedding.keys() & args.opt_kwargs.keys():
        raise ValueError(f'--opt-kwargs sets {sorted(double)}, which here are set by the flags --p2be-*.')
    if args.p2be_smoothness and args.opt_kwargs.get('smoothness'):
        raise ValueError(
            f'--opt-kwargs smoothness={args.opt_kwargs["smoothness"]} would add the smoothness term a second time: the '
            f'loss has it by --p2be-smoothness {args.p2be_smoothness}. Leave one of them out, or set it to 0.'
        )
    kwargs = {name: value for name, value in args.opt_kwargs.items() if name != 'timm_recipe'}  # for other scripts
    try:
        return create_optimizer_v2(model, **{**optimizer_kwargs(cfg=args), **embedding, **kwargs})
    except TypeError as error:
        raise ValueError(f'--opt {args.opt} does not take these --opt-kwargs: {error}') from error


def build_precision(args: argparse.Namespace, device: torch.device) -> tuple[partial[torch.autocast], Any]:
    """Return a factory of autocast contexts and, for float16 on CUDA, timm's gradient scaler, else None."""
    dtype = getattr(torch, args.amp_dtype)
    autocast = partial(torch.autocast, device_type=device.type, dtype=dtype, enabled=args.amp)
    needs_scaler = args.amp and device.type == 'cuda' and dtype == torch.float16
    return autocast, NativeScaler(device=device.type) if needs_scaler else None
