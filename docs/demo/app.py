"""A picture, its codes, a corruption and an attack, as an RGB and a P2BE network see them; `python app.py`, or a Space.

Both networks ship with timm-p2be, trained on CIFAR-10 for a few epochs without any defense, the P2BE one with AugMix.
"""

from pathlib import Path

import gradio as gr
import numpy as np
import skimage.data
import timm
import torch
from PIL import Image, ImageOps
from torch import Tensor

import timm_p2be
from timm_p2be.robustness.attacks import PGD
from timm_p2be.robustness.corruptions import CORRUPTIONS, EXTRA_CORRUPTIONS, corrupt
from timm_p2be.robustness.pixel_model import as_pixel_model

NAMES = ('wrn16_2', 'wrn16_2_p2be')
CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
NETWORKS = {name: as_pixel_model(timm.create_model(name, pretrained=True).eval()) for name in NAMES}
ATTACKS = {'wrn16_2': lambda model, eps: PGD(model, eps, steps=7), 'wrn16_2_p2be': timm_p2be.LSPGA}
EXAMPLES = [str(Path(skimage.data.__file__).with_name(name)) for name in ('chelsea.png', 'horse.png', 'rocket.jpg')]


def look(picture: Image.Image | None, corruption: str, severity: int, eps: int) -> list[object]:
    """Return the picture as the networks get it, its codes, and for each network class and picture after the attack."""
    if picture is None:
        raise gr.Error('Choose a picture first.')
    pixels = np.asarray(ImageOps.fit(picture.convert('RGB'), (32, 32)))
    if corruption != 'none':
        pixels = corrupt(pixels, corruption, int(severity))
    levels = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    seen: list[object] = [_enlarged(levels[0]), _codes(levels[0])]
    for name, network in NETWORKS.items():
        before = _probabilities(network, levels)
        attacked = levels
        if eps:
            attacked = ATTACKS[name](network, int(eps))(levels, before.argmax(1))
        seen += [_named(before), _enlarged(attacked[0]), _named(_probabilities(network, attacked))]
    return seen


def _probabilities(network: torch.nn.Module, levels: Tensor) -> Tensor:
    with torch.no_grad():
        return network(levels).softmax(1)


def _named(probabilities: Tensor) -> dict[str, float]:
    return dict(zip(CLASSES, probabilities[0].tolist(), strict=True))


def _enlarged(levels: Tensor) -> Image.Image:
    return Image.fromarray(levels.permute(1, 2, 0).numpy()).resize((256, 256), Image.Resampling.NEAREST)


def _codes(levels: Tensor) -> Image.Image:
    """Return the 64 bits of every pixel as 8 x 8 pictures, in the colors of the channels in which they are on."""
    bits = timm_p2be.find_embedding(NETWORKS['wrn16_2_p2be']).codes().detach()[levels.long()]  # (3, 32, 32, 64)
    mosaic = bits.unflatten(-1, (8, 8)).permute(3, 1, 4, 2, 0).reshape(256, 256, 3)
    return Image.fromarray((mosaic * 255).byte().numpy())


def build() -> gr.Blocks:
    """Return the page."""
    with gr.Blocks(title='Binary pixel codes') as page:
        gr.Markdown(f'# Binary pixel codes\n{__doc__.splitlines()[0].split(";")[0]}. {__doc__.splitlines()[2]}')
        with gr.Row():
            with gr.Column():
                picture = gr.Image(type='pil', label='picture', height=256)
                gr.Examples(EXAMPLES, picture)
                corruption = gr.Dropdown(['none', *CORRUPTIONS, *EXTRA_CORRUPTIONS], value='none', label='corruption')
                severity = gr.Slider(1, 5, 3, step=1, label='severity')
                eps = gr.Slider(0, 16, 0, step=1, label='attack: largest change of a value, in levels of 255')
                button = gr.Button('Look', variant='primary')
            with gr.Column():
                outputs: list[gr.components.Component] = [gr.Image(label='what the networks get', height=256)]
                outputs.append(gr.Image(label='its codes, a tile a bit', height=256))
        with gr.Row():
            for name in NAMES:
                with gr.Column():
                    outputs.append(gr.Label(label=name, num_top_classes=3))
                    outputs.append(gr.Image(label=f'attacked, for {name}', height=256))
                    outputs.append(gr.Label(label=f'{name}, attacked', num_top_classes=3))
        button.click(look, [picture, corruption, severity, eps], outputs)
    return page


if __name__ == '__main__':
    build().launch()
