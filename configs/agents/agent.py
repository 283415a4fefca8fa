"""An agent with local tools (calculator, dates, units, files, documents) on forty tasks of ours.

    python launch.py --config=configs/agents/agent.py:debug --workdir=runs/agent_debug
    python launch.py --config=configs/agents/agent.py --config.model=local:smollm2
    python launch.py --config=configs/agents/agent.py --config.model=http://HOST:8000/v1#NAME
    python launch.py --config=configs/agents/agent.py --mode=chat

Policies (whether to call) and refiners (of what is called) by name: --config.policy=never. See
docs/agent_loop.md. A local model needs the `weights` and `agents` extras.
"""

import dataclasses

from agents_jax.tools.agent.config import AgentConfig
from agents_jax.tools.agent.settings import LoopSettings
from pangu_jax.config.catalogue import Variant
from pangu_jax.config.flags import as_config_dict

VARIANTS = {
    "native": Variant("tools by the model's own protocol", "not measured", "docs/agent_loop.md"),
    "prompted": Variant("tools in the prompt, calls read from text", "not measured", "the same"),
    "debug": Variant("a script in place of a model", "4 s", "all 40 tasks solved"),
}


def get_config(variant: str = "native"):
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
    config = AgentConfig()
    if variant == "prompted":
        config = dataclasses.replace(config, loop=LoopSettings(style="prompted"))
    if variant == "debug":
        config = dataclasses.replace(config, model="oracle")
    return as_config_dict(config)
