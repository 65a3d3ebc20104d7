"""The steps of PyTorch and Opacus that `launch.bench` sets beside its own.

Started by the bench with an interpreter that has torch and opacus (an environment of
its own; neither is needed by trustml). The first line of standard input is the JSON of
an entry of `config.models`; every further line names a method, which makes one step and
answers with an empty line. The model is that of `trustml.models` by size and structure,
built of layers that Opacus supports.

    non_private   the plain SGD step
    ghost         norms first, then a second backward pass of the reweighted loss
    hooks         a gradient of every example
    loop          one example after the other, without Opacus

Noise is left out, as in the bench.
"""

import json
import math
import sys

import torch
from opacus import GradSampleModule
from opacus.grad_sample import GradSampleModuleFastGradientClipping
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """A pre-layer-norm block, [B, T, D] -> [B, T, D]."""

    def __init__(self, width, heads):
        """Layers for D = `width`."""
        super().__init__()
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        """New states."""
        split = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        parts = self.qkv(self.norm_attention(x)).chunk(3, dim=2)
        query, key, value = (part.reshape(split).transpose(1, 2) for part in parts)
        scores = query @ key.transpose(2, 3) / math.sqrt(split[3])
        h = (scores.softmax(dim=3) @ value).transpose(1, 2).reshape(x.shape)
        x = x + self.out(h)
        h = functional.gelu(self.up(self.norm_mlp(x)), approximate="tanh")
        return x + self.down(h)


class Transformer(nn.Module):
    """The classifier of `trustml.models.transformer`."""

    def __init__(self, spec):
        """Layers of the sizes of `spec`."""
        super().__init__()
        width, length = spec["width"], spec["length"]
        self.table = nn.Embedding(spec["vocabulary_size"], width)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(
            Block(width, spec["heads"]) for _ in range(spec["depth"])
        )
        self.norm, self.label = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, tokens):
        """Logits, [B, 10]."""
        at = torch.arange(tokens.shape[1]).repeat(len(tokens), 1)
        x = self.table(tokens) + self.positions(at)
        for block in self.blocks:
            x = block(x)
        return self.label(self.norm(x).mean(dim=1))


def build(spec):
    """The model of one entry and a random batch (inputs, labels) for it."""
    size = spec["batch_size"]
    if spec["kind"] == "transformer":
        shape = (size, spec["length"])
        inputs = torch.randint(1, spec["vocabulary_size"], shape)
        return Transformer(spec), inputs, torch.randint(10, (size,))
    if spec["kind"] == "mlp":
        widths = [spec["features"], *spec["hidden"], spec["classes"]]
        layers = []
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(before, after), nn.ReLU()]
        labels = torch.randint(spec["classes"], (size,))
        return nn.Sequential(*layers[:-1]), torch.randn(size, widths[0]), labels
    raise ValueError(f"kind={spec['kind']!r} is not one of transformer, mlp.")


def steps(spec, l2_clip_norm=1.0, rate=0.1):
    """Method -> a function that makes one step."""
    size, loss = spec["batch_size"], nn.CrossEntropyLoss()
    options = dict(noise_multiplier=0.0, expected_batch_size=size)

    def plain():
        model, inputs, labels = build(spec)
        optimizer = torch.optim.SGD(model.parameters(), rate)

        def step():
            optimizer.zero_grad()
            loss(model(inputs), labels).backward()
            optimizer.step()

        return step

    def hooks():
        model, inputs, labels = build(spec)
        model = GradSampleModule(model)
        optimizer = torch.optim.SGD(model.parameters(), rate)
        private = DPOptimizer(optimizer, max_grad_norm=l2_clip_norm, **options)

        def step():
            private.zero_grad()
            loss(model(inputs), labels).backward()
            private.step()

        return step

    def ghost():
        model, inputs, labels = build(spec)
        model = GradSampleModuleFastGradientClipping(
            model, max_grad_norm=l2_clip_norm, use_ghost_clipping=True
        )
        optimizer = torch.optim.SGD(model.parameters(), rate)
        private = DPOptimizerFastGradientClipping(
            optimizer, max_grad_norm=l2_clip_norm, **options
        )
        clipped = DPLossFastGradientClipping(model, private, loss)

        def step():
            private.zero_grad()
            clipped(model(inputs), labels).backward()
            private.step()

        return step

    def loop():
        model, inputs, labels = build(spec)
        params = list(model.parameters())
        optimizer = torch.optim.SGD(params, rate)

        def step():
            sums = [torch.zeros_like(p) for p in params]
            for row in range(size):
                optimizer.zero_grad()
                loss(model(inputs[row : row + 1]), labels[row : row + 1]).backward()
                norm = torch.nn.utils.get_total_norm([p.grad for p in params])
                factor = l2_clip_norm / torch.clamp(norm, min=l2_clip_norm)
                for p, s in zip(params, sums, strict=True):
                    s.add_(p.grad, alpha=float(factor))
            for p, s in zip(params, sums, strict=True):
                p.grad = s / size
            optimizer.step()

        return step

    made = {"non_private": plain, "ghost": ghost, "hooks": hooks, "loop": loop}
    return {name: make() for name, make in made.items()}


def main():
    """Serves steps to the bench."""
    found = steps(json.loads(sys.stdin.readline()))
    print(json.dumps({"torch": torch.__version__, "methods": list(found)}), flush=True)
    for line in sys.stdin:
        found[line.strip()]()
        print(flush=True)


if __name__ == "__main__":
    main()
