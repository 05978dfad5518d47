"""Slow, obvious oracles for the model half: one document at a time through plain `transformers`."""

import math

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM


def load_plainly(folder):
    """A checkpoint as any user of `transformers` would open it, with none of this project's code."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def document_logits(lm, document):
    """`[N, V]` of one document by itself."""
    return lm(input_ids=torch.tensor([[int(token) for token in document]]), use_cache=False).logits[0]


def token_log_likelihoods(lm, document):
    """`[N - 1]` log-probability in nats of each token after the first."""
    following = [int(token) for token in document[1:]]
    return document_logits(lm, document)[:-1].log_softmax(-1)[range(len(following)), following]


def document_log_likelihood(lm, document, skipped=0):
    """Summed log-probability in nats of the tokens after the first, the first `skipped` of them left out."""
    with torch.no_grad():
        scores = document_logits(lm, document).double().log_softmax(-1)
    return math.fsum(
        float(scores[position, int(document[position + 1])]) for position in range(skipped, len(document) - 1)
    )


def mean_loss(lm, documents):
    """Nats a predicted token, over all documents."""
    total = math.fsum(-document_log_likelihood(lm, document) for document in documents)
    return total / sum(len(document) - 1 for document in documents)


def summed_gradients(lm, documents):
    """Name → gradient of the summed loss of all documents, each passed through by itself."""
    lm.zero_grad()
    for document in documents:
        (-token_log_likelihoods(lm, document).sum()).backward()
    return {name: weight.grad.clone() for name, weight in lm.named_parameters()}


def accuracy(lm, pairs):
    """The share of `(better, worse)` documents whose better side has the higher mean log-likelihood."""
    points = 0.0
    for better, worse in pairs:
        first = document_log_likelihood(lm, better) / (len(better) - 1)
        second = document_log_likelihood(lm, worse) / (len(worse) - 1)
        points += 1.0 if first > second else 0.5 if first == second else 0.0
    return points / len(pairs)


def train(lm, batches, rates, *, betas, clip):
    """AdamW, one document at a time: the mean loss over a batch's predicted tokens, before each update."""
    optimizer = torch.optim.AdamW(lm.parameters(), lr=0.0, betas=betas, weight_decay=0.0)
    lm.train()
    losses = []
    for batch, rate in zip(batches, rates, strict=True):
        predicted = sum(len(document) - 1 for document in batch)
        total = 0.0
        for document in batch:
            targets = torch.tensor([int(token) for token in document[1:]])
            loss = (
                functional.cross_entropy(document_logits(lm, document)[:-1], targets, reduction="sum")
                / predicted
            )
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(lm.parameters(), clip)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses
