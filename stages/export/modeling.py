"""The code that is exported with a model: a transformers class, with an adapter after each layer.

People read it before they load the folder with `trust_remote_code=True`, so it is short and imports nothing of ours.
"""

from string import Template

FILE = "modeling_chainctl.py"

HEADER = Template('''"""$base with bottleneck adapters, as exported by chainctl.

An adapter is applied to the output of a layer: A(h) = h + W_up f(W_down h).  The base model and the adapters are in
this folder; nothing else is needed but torch and transformers.
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


def apply_after(layer, adapter):
    """Apply an adapter to the output of a layer."""

    def change(module, arguments, output):
        if isinstance(output, tuple):
            return (adapter(output[0]), *output[1:])
        return adapter(output)

    layer.register_forward_hook(change)


def add_adapters(model):
    """Adapters after the layers that the configuration names."""
    facts = model.config.chainctl
    adapters = {
        str(layer): Bottleneck(model.config.hidden_size, facts["bottleneck"], facts["activation"])
        for layer in facts["adapter_layers"]
    }
    layers = model.get_submodule(facts["layers"])
    for layer, adapter in adapters.items():
        apply_after(layers[int(layer)], adapter)
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
    """$base with adapters, and a linear layer on the mean over real tokens."""

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
    """The source of a class `name` that derives from transformers' class `base`."""
    values = {"base": base, "name": name}
    imports = MEAN_IMPORT if mean_head else ""
    return HEADER.substitute(values) + imports + ADAPTER + (MEAN_HEAD if mean_head else OWN_HEAD).substitute(values)
