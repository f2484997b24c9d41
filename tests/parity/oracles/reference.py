"""Loss, gradients and training steps by transformers and PEFT: what the engine is compared with."""

import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy

import cases

ADAMW = {"learning_rate": 1e-3, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01}
STEPS = 5


def loss_sum(model, document):
    logits = model(input_ids=torch.tensor([document["tokens"]])).logits[0]
    return cross_entropy(logits, torch.tensor(document["labels"]), ignore_index=cases.IGNORE,
                         reduction="sum"), logits


def labelled(document):
    return sum(label != cases.IGNORE for label in document["labels"])


def mean_loss(model, documents):
    """Each document by itself (no padding, no packing), over all labelled tokens of all of them."""
    return sum(loss_sum(model, d)[0] for d in documents) / sum(labelled(d) for d in documents)


def load_with_adapter(model_dir, adapter_dir, dtype, trainable=False):
    model = PeftModel.from_pretrained(cases.load_model(model_dir, torch.float32), adapter_dir,
                                      is_trainable=trainable)
    cases.compute_in(model, dtype)
    return model


def trainable(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad}


def train(model, documents, steps=STEPS):
    """AdamW steps on the same batch, no clipping; no weight decay on norms and biases.

    Returns losses (each before its update) and global gradient norms.
    """
    parameters = list(trainable(model).values())
    optimizer = torch.optim.AdamW(
        [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": ADAMW["weight_decay"]},
         {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0}],
        lr=ADAMW["learning_rate"], betas=(ADAMW["beta1"], ADAMW["beta2"]), eps=ADAMW["epsilon"])
    losses, norms = [], []
    for _ in range(steps):
        loss = mean_loss(model, documents)
        optimizer.zero_grad()
        loss.backward()
        losses.append(loss.item())
        norms.append(torch.stack([p.grad.norm() for p in parameters]).norm().item())
        optimizer.step()
    return losses, norms
