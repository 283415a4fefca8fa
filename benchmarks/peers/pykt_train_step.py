"""Training steps of pyKT's DKT, SAKT or AKT in PyTorch on the CPU, eager or by torch.compile.

Runs inside an environment of its own (see docs/tracing_speed.md); called by
benchmarks/tracing_train_step.py, which says what a step is. Model, forward pass and loss are those
of pykt-toolkit (`pykt.models.train_model.model_forward`); the loop around them is its training
loop's. Loads the initial weights of --weights, trains on the batches of --batches round and round.
Prints one RESULT line after the warm-up steps, then one per line on its input, a number of steps
to time. With a negative number, passes without gradients in evaluation mode are timed instead.
"""

import pykt_side
from timed_turns import answer_turns, tell, warm_up

parser = pykt_side.parser()
parser.add_argument("--batches", required=True, help="npz: questions, concepts, responses.")
parser.add_argument("--weights", required=True, help="npz: state dict by pyKT's names.")
parser.add_argument("--compile", action="store_true")
parser.add_argument("--warm_up", type=int, required=True)
arguments = parser.parse_args()
model = pykt_side.build(arguments)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from pykt.models.train_model import model_forward  # noqa: E402

with np.load(arguments.weights) as stored:
    state = model.state_dict()
    for name in stored.files:
        if state[name].shape != stored[name].shape:
            raise SystemExit(f"{name}: {tuple(state[name].shape)} here, {stored[name].shape} there")
        state[name] = torch.from_numpy(stored[name])
    model.load_state_dict(state)
with np.load(arguments.batches) as stored:
    arrays = {name: torch.from_numpy(stored[name]).long() for name in stored.files}


def batch_of(index):
    """The dictionary of pyKT's data loader; its ids run from 0."""
    q, c, r = (arrays[name][index] for name in ("questions", "concepts", "responses"))
    real = torch.ones_like(q[:, 1:], dtype=torch.bool)
    batch = {"masks": real, "smasks": real}
    for name, x in (("qseqs", q - 1), ("cseqs", c - 1), ("rseqs", r), ("tseqs", r)):
        batch |= {name: x[:, :-1], f"shft_{name}": x[:, 1:]}
    return batch


batches = [batch_of(index) for index in range(len(arrays["questions"]))]
optimizer = pykt_side.build_optimizer(arguments, model)
model.eval()
check = model_forward(model, batches[0])
check.backward()
# Of the two biases of PyTorch's LSTM, whose gradients are equal, we have one.
compared = [p.grad for name, p in model.named_parameters() if "bias_hh" not in name]
norm = torch.stack([gradient.norm() for gradient in compared if gradient is not None]).norm()
used = sum(p.numel() for p in model.parameters() if p.grad is not None)
parameters = sum(p.numel() for p in model.parameters())
model.train()
if arguments.compile:
    model.compile()
done = 0


def train_step():
    global done
    model.train()
    batch = batches[done % len(batches)]
    done += 1
    loss = model_forward(model, batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@torch.no_grad()
def evaluate():
    model.eval()
    return model_forward(model, batches[0]).item()


losses, first = warm_up(train_step, arguments.warm_up)
tell(
    {
        "versions": pykt_side.versions(),
        "parameters": parameters,
        "parameters_with_gradient": used,
        "check_loss": check.item(),
        "check_gradient_norm": norm.item(),
        "first_step_seconds": first,
        "losses": losses,
    }
)
answer_turns(train_step, evaluate)
