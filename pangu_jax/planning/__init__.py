"""What a training step would cost on machines that are not here: memory, communication, time."""

from pangu_jax.planning.communication import Collective, step_collectives
from pangu_jax.planning.cost import Prediction, predict
from pangu_jax.planning.differences import Difference, collective_differences
from pangu_jax.planning.execution import Efficiencies, Execution, PlanError
from pangu_jax.planning.hlo import HloCollective, HloCollectives, hlo_collectives
from pangu_jax.planning.memory import MemoryPlan, memory_plan, units_in_flight

__all__ = [
    "Collective",
    "Difference",
    "Efficiencies",
    "Execution",
    "HloCollective",
    "HloCollectives",
    "MemoryPlan",
    "PlanError",
    "Prediction",
    "collective_differences",
    "hlo_collectives",
    "memory_plan",
    "predict",
    "step_collectives",
    "units_in_flight",
]
