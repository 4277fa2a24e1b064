"""`PixelEmbedding`, the 256 x M table of pixel codes as a module: learned or fixed, saved, published and pulled."""

import copy
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from torch import Tensor, nn

from timm_p2be.encodings.codes import (
    ENCODINGS,
    INITS,
    LEVELS,
    binarize,
    check_num_bits,
    fixed_codes,
    linear_codes,
    smooth_latents,
    thermometer_codes,
)
from timm_p2be.encodings.table_file import TableFile

_LATENT = 0.5  # magnitude of latents that start from codes: the bit flips at 0, the gradient ends at 1
_NOISE = {'normal': 1.0, 'thermometer': 0.05, 'linear': 0.0}  # standard deviation round that start


class EmbeddingParameter(nn.Parameter):
    """Learned latent table of a `PixelEmbedding`; its type tells optimizers which parameter the table is.

    A type survives `copy.deepcopy` and pickling, an attribute set on a parameter does not.
    """

    def __reduce_ex__(self, protocol: Any) -> Any:
        return EmbeddingParameter, (self.detach(), self.requires_grad)


def _hub_side() -> ModuleType:
    from timm_p2be.hub import embedding

    return embedding


class PixelEmbedding(nn.Module, ModelHubMixin):
    """Table of binary codes, one for each of the 256 pixel levels.

    `save_pretrained(folder)` writes it, `push_to_hub('org/name')` publishes it and `from_pretrained` gets it back: as
    safetensors and JSON, with a card, see `timm_p2be.encodings.table_file`.

    Args:
        encoding: 'p2be' (learned), 'onehot' or 'thermometer' (fixed).
        num_bits: code length M, at least 1.
        init: how P2BE's latents start. 'normal' is N(0, 1) as in the paper (Algorithm 1). The others are this project's
            (docs/protocol.md, section 2): 'thermometer' is +-0.5 by the thermometer code, plus noise of standard
            deviation 0.05, so that neighboring levels share their bits from the first step, which short runs need;
            'smooth' is N(0, 1) filtered over 64 levels, whose neighbors share bits without a thermometer's order;
            'linear' is +-0.5 by `linear_codes`, without noise: the table with which `timm_p2be.convert` preserves a
            function, M at least 9.

    Attributes:
        weight: latent table, `EmbeddingParameter` (256, num_bits) float32, or None for a fixed encoding. It stays
            float32 when the module is cast: float16 would turn -1e-9 into -0 and so a 0 into a 1, and a bfloat16
            latent does not move at the learning rates used here.
        provenance: training record, see `timm_p2be.hub.training_record`; None if unknown. It is saved with the table
            and describes it as it was loaded: set it anew after training.

    Example:
        >>> PixelEmbedding('thermometer', num_bits=4).codes().shape
        torch.Size([256, 4])
    """

    def __init__(self, encoding: str = 'p2be', num_bits: int = 64, init: str = 'normal') -> None:
        super().__init__()
        if encoding not in ENCODINGS:
            raise ValueError(f'Unknown encoding {encoding!r}; choose one of {list(ENCODINGS)}.')
        if init not in INITS:
            raise ValueError(f'Unknown init {init!r}; choose one of {list(INITS)}.')
        if encoding != 'p2be' and init != 'normal':
            raise ValueError(f"init={init!r} needs a learned table; encoding {encoding!r} is fixed. Use 'p2be'.")
        check_num_bits(num_bits)
        self.encoding = encoding
        self.num_bits = num_bits
        self.init = init
        self.provenance: dict[str, Any] | None = None
        self.weight: EmbeddingParameter | None = None
        self.table: Tensor | None
        if encoding == 'p2be':
            self.weight = EmbeddingParameter(torch.empty(LEVELS, num_bits, dtype=torch.float32))
        # a fixed table is code, not state: rebuilt from its name, absent from checkpoints
        fixed = None if encoding == 'p2be' else torch.empty(LEVELS, num_bits, dtype=torch.float32)
        self.register_buffer('table', fixed, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the latents anew as `init` says, or fill the fixed table."""
        self.provenance = None
        if self.weight is None:
            self.init_non_persistent_buffers()
            return
        with torch.no_grad():
            if self.init == 'smooth':
                self.weight.copy_(smooth_latents(self.num_bits, device=self.weight.device))
                return
            self.weight.normal_(std=_NOISE[self.init])
            if self.init != 'normal':
                start = thermometer_codes if self.init == 'thermometer' else linear_codes
                self.weight.add_((start(self.num_bits).to(self.weight.device) * 2 - 1) * _LATENT)

    def init_non_persistent_buffers(self) -> None:
        """Fill the fixed table, which `to_empty` leaves blank; timm's reinit_non_persistent_buffers calls this."""
        if self.table is not None:
            self.table.copy_(fixed_codes(self.encoding, self.num_bits))

    def codes(self) -> Tensor:
        """Return the (256, num_bits) float32 table of 0 and 1; differentiable in `weight` (Eq. 5 and 6)."""
        if self.weight is not None:
            return binarize(self.weight)
        assert self.table is not None
        return self.table

    def freeze(self) -> 'PixelEmbedding':
        """Exclude the learned table from training and return the module."""
        if self.weight is None:
            raise ValueError(f'Encoding {self.encoding!r} is fixed already; only a p2be table can be frozen.')
        self.weight.requires_grad_(False)
        return self

    def forward(self, levels: Tensor) -> Tensor:
        """Return the codes of uint8 `levels` of shape (...), as (..., num_bits)."""
        return nn.functional.embedding(levels.long(), self.codes())

    @classmethod
    def from_pretrained(  # type: ignore[override]  # no `model_kwargs`: the table is what its file says
        cls, path_or_id: str | Path, revision: str | None = None, **options: Any
    ) -> 'PixelEmbedding':
        """Return a saved or published embedding, every part of which has been checked.

        Args:
            path_or_id: a folder, or 'org/name' or 'org/name@revision' on the Hub.
            revision: branch, tag or commit; pin a tag or commit for results to be repeatable.
            **options: `cache_dir`, `token`, `local_files_only`, `force_download`, as in huggingface_hub.
        """
        file = _hub_side().fetch_table(path_or_id, revision, **options)
        embedding = cls(file.encoding, file.codes.shape[1], file.init)
        embedding.load_table_file(file)
        return embedding

    def load_table_file(self, file: TableFile) -> None:
        """Take over latents, `init` and provenance; the parameter stays the same object."""
        got, allowed = (file.encoding, file.codes.shape[1]), (self.encoding, self.num_bits)
        if got != allowed:
            raise ValueError(
                f'Got a table of encoding {got[0]!r} and {got[1]} bits; allowed here is {allowed[0]!r} and '
                f'{allowed[1]} bits. Create the model with encoding {got[0]!r} and num_bits={got[1]}, or choose '
                'another table.'
            )
        if self.weight is not None and file.latents is not None:
            if self.weight.is_meta:
                raise ValueError('The table is on the meta device, which holds no values. Load it after to_empty().')
            with torch.no_grad():
                self.weight.copy_(file.latents)
        self.init = file.init
        self.provenance = copy.deepcopy(file.provenance)

    def table_file(self) -> TableFile:
        """Return the table as it would be saved."""
        return TableFile(self.encoding, self.init, self.codes().detach(), self.weight, self.provenance)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        model_card_kwargs: dict[str, Any] | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """Write the table and its card; all of it is checked before anything is written.

        An older table in the folder is replaced, other files stay, and so does a README.md that is no card of this
        package (with a warning). The arguments are those of huggingface_hub's mixin; with `push_to_hub` the table is
        published as well, as `repo_id`, and the commit's URL returned.
        """
        card = self.generate_model_card(**(model_card_kwargs or {})).content
        self.table_file().write(save_directory, card=card)
        return self.push_to_hub(repo_id or Path(save_directory).name, **push_to_hub_kwargs) if push_to_hub else None

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Publish the table in one commit and return the commit's URL.

        Args:
            repo_id: 'org/name', created if it does not exist.
            **kwargs: of `huggingface_hub.ModelHubMixin.push_to_hub`, such as `private`, `token` and `commit_message`.
        """
        if repo_id.count('/') != 1:
            raise ValueError(f"Got repo_id={repo_id!r}; the card shows how to load it, so write 'org/name'.")
        card = {'name': repo_id}
        with TemporaryDirectory() as folder:  # what cannot be saved fails before the mixin creates the repository
            self.save_pretrained(folder, model_card_kwargs=card)
        with _hub_side().asking(repo_id, kwargs.get('token')):
            return super().push_to_hub(repo_id, model_card_kwargs=card, **kwargs)

    def generate_model_card(self, name: str | None = None) -> ModelCard:
        """Return the card, README.md; `name` is 'org/name' of its Hub repository, None for a folder."""
        return ModelCard(_hub_side().render_card(self.table_file().config(), name))

    def extra_repr(self) -> str:
        return f'{self.encoding!r}, num_bits={self.num_bits}'

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'PixelEmbedding':
        """Move the table as asked, but never change its dtype (float64 for gradient checks excepted)."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            if applied.dtype in (torch.float32, torch.float64):
                return applied
            return tensor.to(applied.device, torch.float32)

        super()._apply(keep_dtype, recurse)
        self._restore_type()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.provenance = None  # a state dict does not say
        self._restore_type()

    def _restore_type(self) -> None:
        """torch hands back a plain parameter after materializing or assigning one; mark the table again."""
        weight = self.weight
        if weight is not None and not isinstance(weight, EmbeddingParameter):
            latents = weight.detach() if weight.dtype == torch.float64 else weight.detach().float()
            self.weight = EmbeddingParameter(latents, requires_grad=weight.requires_grad)
