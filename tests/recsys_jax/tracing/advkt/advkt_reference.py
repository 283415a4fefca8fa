"""AdvKT once more, in NumPy float64, one student and one step at a time.

Written from the description of the method (spec sections 1.3 and 1.4), not from the package.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - np.max(x))
    return e / e.sum()


def dense(params, name, x):
    return x @ params[f"{name}_kernel"] + params[f"{name}_bias"]


def mlp(params, name, x):
    hidden = sum(key.startswith(f"{name}_") and key.endswith("_kernel") for key in params) - 1
    for i in range(hidden):
        x = np.maximum(dense(params, f"{name}_{i}", x), 0)
    return dense(params, f"{name}_{hidden}", x)


def features(params, question, concepts, divisor):
    dim = params["concepts"].shape[1]
    total, count, empty = np.zeros(dim), 0, 0
    variation = np.zeros(dim)
    for concept in concepts:
        if concept == 0:
            empty += 1
        else:
            total += params["concepts"][concept - 1]
            count += 1
            if "variations" in params:
                variation += params["variations"][concept - 1]
    by = (count if divisor == "fixed" else empty) or 1
    if not question:
        own = np.zeros(dim)
    elif "variations" in params:
        own = params["difficulties"][question - 1, 0] * variation / by
    else:
        own = params["questions"][question - 1]
    return np.concatenate([total / by, own])


def gru_torch(params, x, h):
    """The equations in torch.nn.GRUCell's documentation."""
    r = sigmoid(dense(params, "gru_ir", x) + dense(params, "gru_hr", h))
    z = sigmoid(dense(params, "gru_iz", x) + dense(params, "gru_hz", h))
    n = np.tanh(dense(params, "gru_in", x) + r * dense(params, "gru_hn", h))
    return (1 - z) * n + z * h


def generator(params, questions, concepts, responses, *, divisor, question_mlp=True, cut=0):
    """Logits (T,), states before each step (T, D), question logits (T, P + 1) of one student.

    responses: (T,), numbers to feed back, or None to feed back 1[p > 0.5].
    """
    dim = params["concepts"].shape[1]
    h = np.zeros(dim)
    first = mlp_width(params) if question_mlp else 2 * dim
    keys, values = [np.zeros(first)], [np.zeros(dim)]
    logits, states, asked = [], [], []
    for t, question in enumerate(questions):
        v = features(params, question, concepts[t], divisor)
        if question_mlp:
            v = mlp(params, "question_vector", v)
        weights = softmax(np.array([v @ key for key in keys]) / np.sqrt(2 * dim))
        a = sum(w * value for w, value in zip(weights, values, strict=True))
        logit = mlp(params, "predict", np.concatenate([v, h, a]))[0]
        r = float(logit > 0) if responses is None else responses[t]
        logits.append(logit)
        states.append(h)
        asked.append(mlp(params, "ask", np.concatenate([h * r, h * (1 - r)])))
        x = np.concatenate([a, v])
        new = gru_torch(params, np.concatenate([x * r, x * (1 - r)]), h)
        keys.append(v)
        values.append(new)
        h = np.zeros(dim) if cut and t > 0 and t % cut == 0 else new
    return np.array(logits), np.array(states), np.array(asked)


def mlp_width(params):
    return params["question_vector_1_kernel"].shape[1]


def attention(params, name, query, keys, values, dim):
    """One query vector over lists of key and value vectors, then FFN, residual and LayerNorm."""
    z = np.zeros(dim)
    for head in range(params[f"{name}_heads"].shape[0]):
        q = query @ params[f"{name}_query"][head]
        k = np.array([x @ params[f"{name}_key"][head] for x in keys])
        v = np.array([x @ params[f"{name}_value"][head] for x in values])
        z += params[f"{name}_heads"][head] * (softmax(k @ q / np.sqrt(dim)) @ v)
    z = z + mlp(params, f"{name}_ffn", z)
    z = (z - z.mean()) / np.sqrt(z.var() + 1e-5)
    return z * params["norm_scale"] + params["norm_bias"]


def discriminator_last(params, questions, concepts, responses):
    """(logit, state) of the last step of one prefix; steps attend to themselves and before."""
    dim = params["questions"].shape[1]
    q = [features(params, *pair, "fixed") for pair in zip(questions, concepts, strict=True)]
    rows = [2 * a + b for a, b in zip(questions, responses, strict=True)]
    r = [params["responses"][row] for row in rows]
    asked = [
        attention(params, "question", q[t], q[: t + 1], q[: t + 1], dim) for t in range(len(q))
    ]
    answered = attention(params, "response", r[-1], r, r, dim)
    both = [np.concatenate(pair) for pair in zip(q, r, strict=True)]
    decoded = attention(params, "final", answered, asked, both, dim)
    state = np.concatenate([decoded, q[-1]])
    return mlp(params, "score", state)[0], state


def discriminator_unmasked(params, questions, concepts, rows, divisor):
    """Logits (T,) with every step, padding included, visible to every other."""
    dim = params["questions"].shape[1]
    q = [features(params, *pair, divisor) for pair in zip(questions, concepts, strict=True)]
    r = [params["responses"][row] for row in rows]
    asked = [attention(params, "question", x, q, q, dim) for x in q]
    answered = [attention(params, "response", x, r, r, dim) for x in r]
    both = [np.concatenate(pair) for pair in zip(q, r, strict=True)]
    logits = []
    for t in range(len(q)):
        decoded = attention(params, "final", answered[t], asked, both, dim)
        logits.append(mlp(params, "score", np.concatenate([decoded, q[t]]))[0])
    return np.array(logits)
