"""The legal levels of every pixel under an L-infinity bound, and mixtures of their codes."""

import torch
from torch import Tensor

from timm_p2be.encodings import LEVELS


class Windows:
    """The levels within `eps` of each value of uint8 images (B, 3, H, W), as entries of one table of fixed width.

    Candidate j of a value x is the level `start + j`; `start` is x - eps, moved inside 0..255 where that is outside.
    Values are kept sorted by `start`. On the CPU those with the same candidates form one block, and mixing or comparing
    codes is one small matrix product a block. Elsewhere up to 240 small products would wait for one another, and it is
    one product over all 256 levels, most of them with share 0.

    Args:
        blocks: form of the products; None chooses by the device.

    Attributes:
        width: K = min(2 eps + 1, 256), candidates of a value.
        legal: (P, K) bool in sorted order, P = 3 B H W; candidates more than `eps` away are not.
    """

    def __init__(self, levels: Tensor, eps: int, blocks: bool | None = None) -> None:
        self.width = min(2 * eps + 1, LEVELS)
        self._shape = levels.permute(0, 2, 3, 1).shape  # (B, H, W, 3), the order of code planes
        flat = levels.permute(0, 2, 3, 1).reshape(-1).long()
        start = (flat - eps).clamp(0, LEVELS - self.width)
        self._start, self._order = start.sort(stable=True)
        self.legal = (self._candidates() - flat[self._order].unsqueeze(1)).abs() <= eps
        self._blocks: list[tuple[int, int, int]] | None = None
        if levels.device.type == 'cpu' if blocks is None else blocks:
            starts, counts = self._start.unique_consecutive(return_counts=True)
            ends = counts.cumsum(0).tolist()
            self._blocks = list(zip(starts.tolist(), [0, *ends[:-1]], ends, strict=True))

    def _candidates(self) -> Tensor:
        return self._start.unsqueeze(1) + torch.arange(self.width, device=self._start.device)

    def mix(self, shares: Tensor, table: Tensor) -> Tensor:
        """Return sum_j shares_j e_j, the code planes (B, H, W, 3, M), of (P, K) shares and a (256, M) table."""
        if self._blocks is None:
            with torch.autocast(shares.device.type, enabled=False):
                mixed = shares.new_zeros(len(shares), LEVELS).scatter_(1, self._candidates(), shares) @ table
        else:
            mixed = shares.new_empty(len(shares), table.shape[1])
            for start, begin, end in self._blocks:
                torch.mm(shares[begin:end], table[start : start + self.width], out=mixed[begin:end])
        planes = torch.empty_like(mixed).index_copy_(0, self._order, mixed)
        return planes.view(*self._shape, table.shape[1])

    def compare(self, planes: Tensor, table: Tensor) -> Tensor:
        """Return the products <plane, e_j> of (B, H, W, 3, M) planes with every candidate's code, (P, K)."""
        flat = planes.reshape(-1, table.shape[1]).index_select(0, self._order)
        if self._blocks is None:
            with torch.autocast(flat.device.type, enabled=False):
                return (flat @ table.T).gather(1, self._candidates())
        products = flat.new_empty(len(flat), self.width)
        for start, begin, end in self._blocks:
            torch.mm(flat[begin:end], table[start : start + self.width].T, out=products[begin:end])
        return products

    def pick(self, choice: Tensor) -> Tensor:
        """Return the images, uint8 (B, 3, H, W), in which every value has its candidate number `choice`, (P,)."""
        return self.unsort((self._start + choice).to(torch.uint8))

    def position(self, levels: Tensor) -> Tensor:
        """Return the number of the candidate that each value of legal images (B, 3, H, W) is, int64 (P,)."""
        return self.sort(levels).long() - self._start

    def unsort(self, values: Tensor) -> Tensor:
        """Return per-value data in the sorted order, (P,) or (P, K), as an image, (B, 3, H, W) or (B, 3, H, W, K)."""
        image = torch.empty_like(values).index_copy_(0, self._order, values)
        return image.unflatten(0, self._shape).movedim(3, 1)

    def sort(self, values: Tensor) -> Tensor:
        """Return per-value data, (B, 3, H, W) or (B, 3, H, W, K), in the sorted order, (P,) or (P, K)."""
        return values.permute(0, 2, 3, 1, *range(4, values.ndim)).flatten(0, 3).index_select(0, self._order)
