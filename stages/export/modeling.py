"""The code that travels with an exported model: a class of transformers, and an adapter behind each layer.

It is written out and read by whoever loads the folder with `trust_remote_code=True`, so it is short, and stands alone.
"""

from string import Template

FILE = "modeling_chainctl.py"

HEADER = Template('''"""$base with bottleneck adapters, as exported by chainctl.

An adapter stands on the output of a layer: A(h) = h + W_up f(W_down h).  The base model and the adapters are in this
folder; this file and torch and transformers are all it takes.
"""

import torch.nn.functional as F
from torch import nn
from transformers import $base
''')

ADAPTER = '''

class Bottleneck(nn.Module):
    """h + W_up f(W_down h), for hidden states (..., D)."""

    def __init__(self, width, bottleneck, activation):
        super().__init__()
        self.down = nn.Linear(width, bottleneck)
        self.up = nn.Linear(bottleneck, width)
        self.activation = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu}[activation]

    def forward(self, hidden):
        down, up, dtype = self.down, self.up, hidden.dtype
        inner = F.linear(hidden, down.weight.to(dtype), down.bias.to(dtype))
        return hidden + F.linear(self.activation(inner), up.weight.to(dtype), up.bias.to(dtype))


def behind(layer, adapter):
    """Send what leaves a layer through an adapter."""

    def change(module, arguments, output):
        if isinstance(output, tuple):
            return (adapter(output[0]), *output[1:])
        return adapter(output)

    layer.register_forward_hook(change)


def add_adapters(model):
    """Adapters as the configuration has them, on the layers of a model."""
    facts = model.config.chainctl
    adapters = {
        str(layer): Bottleneck(model.config.hidden_size, facts["bottleneck"], facts["activation"])
        for layer in facts["adapter_layers"]
    }
    layers = model.get_submodule(facts["layers"])
    for layer, adapter in adapters.items():
        behind(layers[int(layer)], adapter)
    return nn.ModuleDict(adapters)
'''

OWN_HEAD = Template('''

class $name($base):
    """$base with adapters."""

    def __init__(self, config):
        super().__init__(config)
        self.chainctl_adapters = add_adapters(self)
        self.post_init()
''')

MEAN_HEAD = Template('''

class $name($base):
    """$base with adapters; the mean of the real tokens goes through a linear layer."""

    _keep_in_fp32_modules_strict = {"classifier"}

    def __init__(self, config):
        super().__init__(config)
        self.chainctl_adapters = add_adapters(self)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, labels=None, **arguments):
        if attention_mask is None:
            attention_mask = input_ids.new_ones(input_ids.shape)
        hidden = super().forward(input_ids, attention_mask=attention_mask, **arguments).last_hidden_state.float()
        mask = attention_mask.unsqueeze(-1).float()
        logits = self.classifier((hidden * mask).sum(1) / mask.sum(1))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
''')
MEAN_IMPORT = "from transformers.modeling_outputs import SequenceClassifierOutput\n"


def source(base: str, name: str, *, mean_head: bool) -> str:
    """The file for a class `name` on transformers' class `base`."""
    values = {"base": base, "name": name}
    imports = MEAN_IMPORT if mean_head else ""
    return HEADER.substitute(values) + imports + ADAPTER + (MEAN_HEAD if mean_head else OWN_HEAD).substitute(values)
