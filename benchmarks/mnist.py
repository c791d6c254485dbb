"""The tables of docs/recipes/vae.md and docs/recipes/bayesian_classifier.md: fits on MNIST, scored on its 10,000 test images.

python benchmarks/mnist.py --folder FOLDER                        everything, about half an hour on one thread
python benchmarks/mnist.py --folder FOLDER --only dynamic-20      one job; --list names them
python benchmarks/mnist.py --epochs 1                             quickly; MNIST is fetched where no folder is given
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

import pyrovi
from pyrovi.data import pixels
from pyrovi.guides import bayesian_classifier as classifier_guide
from pyrovi.guides import vae as encoder
from pyrovi.models import bayesian_classifier, vae
from pyrovi.networks import bayesian_perceptron

PLAIN = {"widths": (400,), "nonlinearity": "softplus"}
"""784-400-z-400-784, as in the table of published and measured numbers."""
BURDA = {"widths": (200, 200), "nonlinearity": "tanh", "latent": 50}
"""784-200-200-50 of Burda et al. (2016)."""
AT = (1, 5, 10, 20, 30)

AUTOENCODERS = {
    "grey-2": ({**PLAIN, "latent": 2, "likelihood": "grey"}, {"batch_size": 128, "epochs": 30}),
    "dynamic-2": ({**PLAIN, "latent": 2}, {"batch_size": 128, "epochs": 30}),
    "dynamic-20": ({**PLAIN, "latent": 20}, {"batch_size": 128, "epochs": 30}),
    "burda-vae": (BURDA, {"batch_size": 100, "epochs": 50}),
    "burda-iwae-5": (BURDA, {"batch_size": 100, "epochs": 30, "objective": "importance_weighted", "particles": 5}),
    "document-0": ({"latent": 2, "widths": (512, 256)}, {"batch_size": 100, "epochs": 10}),
    "document-1": ({"latent": 2, "widths": (100,)}, {"batch_size": 100, "epochs": 10}),
}
SINGLE = {"lr": 0.01, "batch_size": 100, "epochs": 10}
HIDDEN = {"lr": 3e-3, "batch_size": 200, "epochs": 60, "schedule": "cosine"}
CLASSIFIERS = {
    "softmax": ({}, None, SINGLE),
    "softmax-kl-76.5": ({}, None, {**SINGLE, "kl_weight": 60_000 / 784}),
    "softmax-relu": ({}, None, SINGLE),
    "hidden-pixels": ({"widths": (400,), "prior_scale": 0.3}, None, {**HIDDEN, "epochs": 20}),
    "hidden": ({"widths": (400,), "prior_scale": 0.3}, 100, HIDDEN),
    "hidden-two": ({"widths": (400, 400), "prior_scale": 0.3}, 100, HIDDEN),
}
"""Arguments of the model, the number of principal axes (pixels where None), and settings."""


def autoencoder(name: str, folder: str | None, epochs: int | None, seed: int) -> None:
    given, settings = AUTOENCODERS[name]
    settings = {"objective": "mean_field", "lr": 1e-3, **settings}
    if epochs is not None:
        settings["epochs"] = epochs
    images, test = (pixels("mnist", split, folder).images for split in ("train", "test"))
    per_epoch = -(-len(images) // settings["batch_size"])
    kept = {}

    def keep(step):
        if step.number % per_epoch == 0 and step.number // per_epoch in AT:
            kept[step.number // per_epoch] = step.parameters()

    guide = functools.partial(encoder.guide, spread="softplus") if name == "document-1" else encoder.guide
    began = time.process_time()
    fit = pyrovi.fit(
        vae.model, guide, {"images": images, **given}, transform=vae.binarize, stop=None, seed=seed,
        callbacks=keep, **settings,
    )  # fmt: skip
    spent = f"{fit.settings['steps']:,} steps, {fit.seconds:.0f} s, {time.process_time() - began:.0f} s of one core"
    print(f"{name}: {spent}, the mean of {fit.settings['averaged_steps']:,} iterates", flush=True)
    for epoch, parameters in kept.items():
        last = dataclasses.replace(fit, unconstrained=parameters)  # Bernoulli pixels: no parameter is constrained
        print(f"  ELBO an image on the test set after {epoch} epochs, last iterate: {per_image(last.on({'images': test}))}")
    tested = fit.on({"images": test})
    print(f"  as reported: {per_image(tested)}", flush=True)
    began = time.perf_counter()
    bound = tested.estimate_bound(50)
    print(f"  bound, k = 50: {bound.value / len(test):.2f}, {time.perf_counter() - began:.0f} s", flush=True)
    if name.startswith("burda"):
        some = test[:1_000]
        began = time.perf_counter()
        bound, fifty = (fit.on({"images": some}).estimate_bound(k) for k in (5_000, 50))
        print(
            f"  the first {len(some):,} test images: bound, k = 5,000: {bound.value / len(some):.2f}, k = 50: "
            f"{fifty.value / len(some):.2f}, {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    if name == "dynamic-20":
        binary = np.random.default_rng(0).binomial(1, test[:20]).astype(np.float32)
        gap = vae.amortization_gap(fit, binary, steps=500, draws=1_000)
        lost = gap.own - gap.amortised
        print(f"  amortization gap of 20 test images: mean {lost.mean():.2f} nats, {lost.min():.2f} to {lost.max():.2f}")
        noise(fit, test)


def per_image(fit: pyrovi.Fit, draws: int = 5) -> str:
    elbo, n = fit.estimate_elbo(draws), len(fit.problem.data["images"])
    return f"{elbo.value / n:.2f}"


def noise(fit: pyrovi.Fit, test: np.ndarray) -> None:
    """The spread of one step's estimate of the ELBO, with the KL sampled and in closed form, on one batch of 128 images."""
    with fit.on({"images": np.random.default_rng(0).binomial(1, test[:128]).astype(np.float32)}).loaded() as problem:
        for objective in (Trace_ELBO(), TraceMeanField_ELBO()):
            values = [-objective.loss(problem.model, problem.guide, **problem.data) / 128 for _ in range(500)]
            print(f"  {type(objective).__name__}: ELBO {np.mean(values):.3f} an image, sd {np.std(values):.4f}")


def rectified(images, labels=None, classes=10):
    """The document's: a ReLU on the logits."""
    logits = bayesian_perceptron(images, "net", (classes,)).relu()
    with pyro.plate("image", len(images)):
        pyro.sample("label", dist.Categorical(logits=logits), obs=labels)


def classifier(name: str, folder: str | None, epochs: int | None, seed: int) -> None:
    given, components, settings = CLASSIFIERS[name]
    if epochs is not None:
        settings = {**settings, "epochs": epochs}
    train, test = (bayesian_classifier.load("mnist", split, folder, components) for split in ("train", "test"))
    guide = functools.partial(classifier_guide.guide, scale=0.01)
    began = time.process_time()
    model = rectified if name == "softmax-relu" else bayesian_classifier.model
    fit = pyrovi.fit(model, guide, {**train, **given}, stop=None, seed=seed, **settings)
    spent = time.process_time() - began
    found = bayesian_classifier.evaluate(fit, **test, draws=50)
    print(
        f"{name}: accuracy {found.accuracy:.2%}, log score {found.log_score:.4f}, ECE {found.calibration_error:.2%}, "
        f"objective {fit.elbo[0, -300:].mean() / 60_000:.4f} an image, {fit.seconds:.0f} s, {spent:.0f} s of one core",
        flush=True,
    )


def main() -> None:
    jobs = {**dict.fromkeys(AUTOENCODERS, autoencoder), **dict.fromkeys(CLASSIFIERS, classifier)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="of MNIST's IDX files")
    parser.add_argument("--only", nargs="+", metavar="JOB", choices=list(jobs), default=list(jobs))
    parser.add_argument("--epochs", type=int, help="instead of each job's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="name the jobs and stop")
    options = parser.parse_args()
    if options.list:
        print("\n".join(jobs))
        return
    torch.set_num_threads(1)
    for name in options.only:
        jobs[name](name, options.folder, options.epochs, options.seed)


if __name__ == "__main__":
    main()
