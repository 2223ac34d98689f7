"""NIST's nonlinear regressions (StRD) as normal likelihoods, from both starts: what is reached, and with which status.

    python benchmarks/nist.py FOLDER [NAME …]

FOLDER holds the .dat files (folder NIST_STRD of the source distribution of `lmfit`;
https://www.itl.nist.gov/div898/strd/). The parameters are NIST's and log σ, which starts at the residual standard
deviation of the start. Reached: the certified values to 6 digits. Falsely converged: a success elsewhere that is not
another maximum of the same height.
"""

import argparse
import pathlib
import re

import harness
import jax
import jax.numpy as jnp
import numpy as np

import fisher_jax as fj

jax.config.update("jax_enable_x64", True)


def rational(b, x, above):
    return jnp.polyval(b[:above][::-1], x) / (1.0 + x * jnp.polyval(b[above:][::-1], x))


def gauss(b, x):
    bumps = b[2] * jnp.exp(-(((x - b[3]) / b[4]) ** 2)) + b[5] * jnp.exp(-(((x - b[6]) / b[7]) ** 2))
    return b[0] * jnp.exp(-b[1] * x) + bumps


def enso(b, x):
    def wave(period, cosine, sine):
        return cosine * jnp.cos(2 * jnp.pi * x / period) + sine * jnp.sin(2 * jnp.pi * x / period)

    return b[0] + wave(12.0, b[1], b[2]) + wave(b[3], b[4], b[5]) + wave(b[6], b[7], b[8])


MEANS = {
    "Bennett5": lambda b, x: b[0] * (b[1] + x) ** (-1 / b[2]),
    "BoxBOD": lambda b, x: b[0] * (1 - jnp.exp(-b[1] * x)),
    "Chwirut1": lambda b, x: jnp.exp(-b[0] * x) / (b[1] + b[2] * x),
    "Chwirut2": lambda b, x: jnp.exp(-b[0] * x) / (b[1] + b[2] * x),
    "DanWood": lambda b, x: b[0] * x ** b[1],
    "ENSO": enso,
    "Eckerle4": lambda b, x: b[0] / b[1] * jnp.exp(-0.5 * ((x - b[2]) / b[1]) ** 2),
    "Gauss1": gauss,
    "Gauss2": gauss,
    "Gauss3": gauss,
    "Hahn1": lambda b, x: rational(b, x, 4),
    "Kirby2": lambda b, x: rational(b, x, 3),
    **{f"Lanczos{k}": lambda b, x: sum(b[i] * jnp.exp(-b[i + 1] * x) for i in (0, 2, 4)) for k in (1, 2, 3)},
    "MGH09": lambda b, x: b[0] * (x**2 + x * b[1]) / (x**2 + x * b[2] + b[3]),
    "MGH10": lambda b, x: b[0] * jnp.exp(b[1] / (x + b[2])),
    "MGH17": lambda b, x: b[0] + b[1] * jnp.exp(-x * b[3]) + b[2] * jnp.exp(-x * b[4]),
    "Misra1a": lambda b, x: b[0] * (1 - jnp.exp(-b[1] * x)),
    "Misra1b": lambda b, x: b[0] * (1 - (1 + b[1] * x / 2) ** -2),
    "Misra1c": lambda b, x: b[0] * (1 - (1 + 2 * b[1] * x) ** -0.5),
    "Misra1d": lambda b, x: b[0] * b[1] * x / (1 + b[1] * x),
    "Nelson": lambda b, x: b[0] - b[1] * x[0] * jnp.exp(-b[2] * x[1]),
    "Rat42": lambda b, x: b[0] / (1 + jnp.exp(b[1] - b[2] * x)),
    "Rat43": lambda b, x: b[0] / (1 + jnp.exp(b[1] - b[2] * x)) ** (1 / b[3]),
    "Roszman1": lambda b, x: b[0] - b[1] * x - jnp.arctan(b[2] / (x - b[3])) / jnp.pi,
    "Thurber": lambda b, x: rational(b, x, 4),
}


def read(path):
    """Both starts, the certified values, y and x."""
    text = path.read_text()
    rows = re.findall(r"^\s*b\d+\s*=\s*(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\s*$", text, re.MULTILINE)
    values = np.array(rows, float)
    lines = text.splitlines()[60:]
    data = np.array([[float(number) for number in line.split()] for line in lines if line.strip()])
    y, x = data[:, 0], data[:, 1:].squeeze()
    return values[:, 0], values[:, 1], values[:, 2], np.log(y) if path.stem == "Nelson" else y, x


def main(folder, names):
    counts, rows = {"reached": 0, "converged elsewhere": 0, "fits": 0}, []
    for name in names or MEANS:
        first, second, certified, y, x = read(pathlib.Path(folder) / f"{name}.dat")
        mean = MEANS[name]

        def log_density(params, y, x, mean=mean):
            z = (y - mean(params["b"], x)) * jnp.exp(-params["log_sigma"])
            return -0.5 * z * z - params["log_sigma"] - 0.5 * jnp.log(2 * jnp.pi)

        best = float(np.log(np.mean((y - jax.vmap(mean, (None, 0))(certified, x)) ** 2))) * -0.5 * len(y)
        for which, start in enumerate((first, second), start=1):
            spread = 0.5 * jnp.log(jnp.mean((y - jax.vmap(mean, (None, 0))(jnp.asarray(start), x)) ** 2))
            params = {"b": start, "log_sigma": float(spread)}
            seconds, fit = harness.stopwatch(
                lambda log_density=log_density, params=params, y=y, x=x: fj.fit(log_density, params, y, given=x)
            )
            estimate = np.asarray(fit.params["b"])
            digits = float(-np.log10(np.max(np.abs(estimate / certified - 1)) + 1e-16))
            height = float(-0.5 * len(y) * (1 + np.log(2 * np.pi)) + best)
            counts["fits"] += 1
            counts["reached"] += digits >= 6
            counts["converged elsewhere"] += fit.converged and digits < 6
            below = height - float(fit.log_likelihood)
            numbers = (f"{digits:.1f}", f"{below:.3g}", f"{float(fit.decrement):.1e}", f"{seconds:.1f}")
            rows.append([f"{name}, start {which}", str(fit.status), str(int(fit.num_steps)), *numbers])
    harness.table("NIST StRD", ["status", "steps", "digits", "below by, nats", "decrement", "seconds"], rows)
    print(counts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="of the .dat files")
    parser.add_argument("names", nargs="*", help="of the regressions; all by default")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.names)
