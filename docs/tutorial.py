# %% [markdown]
# # From kernel regression to the neural tangent kernel
#
# Every claim below stands beside the line that computes it and an assertion that checks it; the file is run by the
# tests. `python docs/tutorial.py --figures FOLDER` writes the figures and the report too. Symbols are those of
# `notation.md`; t is the time of gradient flow on the loss averaged over the N examples.

# %%
import argparse
import math
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
from sklearn.datasets import load_diabetes, load_digits
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_ridge import KernelRidge

import tangency as tg

parser = argparse.ArgumentParser()
parser.add_argument("--figures", type=Path, metavar="FOLDER", help="write figures and the report there")
FIGURES = parser.parse_args().figures


def claim(text, holds):
    """Print what was checked, and stop if it does not hold."""
    assert holds, text
    print(f"✓ {text}")


def draw(name, plot):
    """Call `plot(axes)` and write the figure, if figures are wanted."""
    if FIGURES is not None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        plot(figure.subplots())
        FIGURES.mkdir(parents=True, exist_ok=True)
        figure.savefig(FIGURES / f"{name}.png", dpi=120)


# %% [markdown]
# ## 1. Kernel regression
#
# A kernel says how alike two examples are. Given targets y, kernel regression returns the function of smallest norm
# (in the kernel's space of functions) that fits them, f(x) = K(x, X) (K + λI)⁻¹ y. Any kernel will do, scikit-learn's
# included; the data are 150 diabetes patients.

# %%
data, progression = load_diabetes(return_X_y=True)
data, progression = data / data.std(axis=0), (progression - progression.mean()) / progression.std()
x, y, x_test, y_test = data[:150], progression[:150], data[150:250], progression[150:250]

rbf = RBF(length_scale=4.0)
regression = tg.kernel_flow(rbf, x, y, ridge=3.0)
sklearn = KernelRidge(kernel=lambda a, b: rbf(a[None], b[None])[0, 0], alpha=3.0).fit(x, y)
claim("kernel regression is scikit-learn's", np.allclose(regression(x_test), sklearn.predict(x_test), atol=1e-8))
r2 = 1 - np.mean((regression(x_test) - y_test) ** 2) / np.var(y_test)
claim(f"it explains {r2:.0%} of the variance of unseen patients", r2 > 0.35)

# %% [markdown]
# ## 2. The kernel gradient
#
# Training need not jump to the solution: it can descend. A cost C(f) on functions has a gradient in the kernel's space,
# ∇_K C|_f = 1/N Σ_i K(·, x_i) d_i with d_i the derivative of example i's loss, and it is again a function. It is what a
# gradient must be: C changes along any g at the rate ⟨∇_K C, g⟩_K.

# %%
zero = tg.kernel_gradient(rbf, "squared", x, 0 * y)  # the zero function, as one of the space
gradient = tg.kernel_gradient(rbf, "squared", x, y, zero)
direction = tg.kernel_gradient(rbf, "squared", x, np.sin(x[:, 0]))


def cost(f):
    return np.mean((f(x) - y) ** 2) / 2


step = 1e-5
slope = (cost(step * direction) - cost(-step * direction)) / (2 * step)
claim("dC(f)[g] = ⟨∇C, g⟩", abs(slope - gradient.inner(direction)) < 1e-8 * abs(slope))
claim("one small step downhill lowers the cost", cost(-0.1 * gradient) < cost(zero))

# %% [markdown]
# ## 3. Descent and flow
#
# Repeating the step is kernel gradient descent; with infinitely small steps it is a flow, which for the squared loss
# has a closed form at every time. Descent with rate η follows the flow at t = η · step with an error proportional to η,
# and the flow ends at kernel regression. On the way the error along each eigenvector of K decays at its own rate, its
# eigenvalue over N: smooth directions are learned first.

# %%
flow = tg.kernel_flow(rbf, x, y)
horizon, errors = 40.0, []
for rate in (0.8, 0.4, 0.2):
    descent = tg.kernel_descent(rbf, x, y, learning_rate=rate, steps=round(horizon / rate))
    errors.append(np.abs(descent.train() - flow.train(horizon)).max())
ratios = np.array(errors[:-1]) / errors[1:]
claim(f"half the learning rate, half the error ({ratios[0]:.2f}, {ratios[1]:.2f})", np.all(np.abs(ratios - 2) < 0.3))

mode = flow.eigen.eigenvectors[:, -2]
decay = np.exp(-flow.eigenvalues[-2] * horizon / len(x))
claim("a mode decays as exp(−μt/N)", np.isclose(mode @ (y - flow.train(horizon)), decay * (mode @ y), atol=1e-9))
claim("t = ∞ is kernel regression", np.allclose(flow.with_ridge(3.0)(x_test), regression(x_test), atol=1e-9))
times = np.geomspace(0.1, 1e4, 50)
draw("flow", lambda ax: ax.semilogx(times, np.mean((flow(x_test, t=times) - y_test) ** 2, axis=1)))

# %% [markdown]
# ## 4. Random functions
#
# Draw P random functions and train a linear combination of them, f_θ = P^{−1/2} Σ_p θ_p f⁽ᵖ⁾, by gradient descent on θ.
# In function space that *is* kernel descent, with the kernel K̃_P = 1/P Σ_p f⁽ᵖ⁾ ⊗ f⁽ᵖ⁾, and as P grows K̃_P tends to
# K = E[f ⊗ f] at the rate P^{−1/2}. For random cosines K is the RBF kernel.

# %%
cosines = tg.RandomFunctions.fourier(200, length_scale=4.0, key=jax.random.key(0))
features = cosines.features(x) / math.sqrt(200)
descent = tg.kernel_descent(cosines, x, y, learning_rate=0.5, steps=100)
theta = np.zeros(200)
for _ in range(100):
    theta -= 0.5 / len(x) * features.T @ (features @ theta - y)
claim("training θ is kernel descent with K̃_P", np.allclose(features @ theta, descent.train(), atol=1e-12))

counts = 100 * 4 ** np.arange(5)
sample = tg.RandomFunctions.fourier(int(counts[-1]), length_scale=4.0, key=jax.random.key(1)).features(x)
distances = [np.linalg.norm(sample[:, :p] @ sample[:, :p].T / p - rbf(x)) for p in counts]
rate_of_p = np.polyfit(np.log(counts), np.log(distances), 1)[0]
claim(f"K̃_P tends to K as P to the power {rate_of_p:.2f}", abs(rate_of_p + 0.5) < 0.15)
draw("random-functions", lambda ax: ax.loglog(counts, distances, "o-"))

# %% [markdown]
# ## 5. The neural tangent kernel
#
# A network is not linear in its parameters. But near its initial parameters it nearly is, and there the derivatives
# ∂_p F play the part of the random functions: Θ = Σ_p η_p ∂_p F ⊗ ∂_p F. This kernel is random, and moves as the
# network trains. The theorem of Jacot, Gabriel and Hongler: as the width grows it tends to a fixed kernel, and training
# no longer moves it. `empirical` gives Θ of a network, `limit` derives the limit from the network's own code.


# %%
def make_network(width):
    def init(key):
        first, second, third = jax.random.split(key, 3)
        return (
            jax.random.normal(first, (width, 64)) / 8,
            jax.random.normal(second, (width, width)) / math.sqrt(width),
            jax.random.normal(third, (10, width)) / math.sqrt(width),
        )

    def apply(weights, image):
        first, second, third = weights
        return third @ jax.lax.erf(second @ jax.lax.erf(first @ image))

    return init, apply


images, labels = load_digits(return_X_y=True)
images, one_hot = images / 8 - 1, np.eye(10)[labels] - 0.1
limit = tg.limit(make_network(256), input_shape=(64,))
print(limit.explain())
finite = tg.empirical(make_network(2048), key=jax.random.key(0), scale="init")
distance = np.linalg.norm(finite(images[:20]) - limit(images[:20])) / np.linalg.norm(limit(images[:20]))
claim(f"the NTK of one network of width 2,048 is {distance:.1%} away from the limit", distance < 0.1)

# %% [markdown]
# ## 6. Does a finite network do what its kernel says?
#
# `verify` trains networks of several widths by gradient descent, and beside each, from the same start, its
# linearisation, descent with its own kernel and descent with the limit. The linearised network *is* descent with its
# own NTK; the limit is what wide networks approach; and the NTK moves less the wider they are: that is lazy training.

# %%
verification = tg.verify(
    make_network, images[:30], one_hot[:30], x_test=images[30:60], widths=(32, 512), seeds=3, steps=100
)
print(*verification.verdict(), sep="\n")
linear = verification.gap("linearised network")
own = verification.gap("descent, empirical NTK")
claim("a linearised network is descent with its own NTK", np.abs(linear - own).max() < 1e-8)
fit = verification.limit_error_fit
claim(f"the NTK approaches its limit as width to the power {fit.slope:.2f}", fit.low < -0.5 < fit.high)
drift = verification.drift.mean(axis=1)
claim("the wider the network, the less its NTK moves", np.all(np.diff(drift) < 0))
gaps = verification.gap("descent, limit NTK").max(axis=2).mean(axis=1)
claim(f"and the closer it keeps to the limit: {gaps[0]:.0%} at width 32, {gaps[-1]:.0%} at 512", gaps[-1] < gaps[0] / 2)
if FIGURES is not None:
    from tangency.report import verification_html

    FIGURES.mkdir(parents=True, exist_ok=True)
    (FIGURES / "verification.html").write_text(verification_html(verification, title="Digits"), encoding="utf-8")

# %% [markdown]
# ## 7. All of training at once
#
# If the kernel stands still, training is section 3 with K = Θ. So the infinitely wide network can be trained for any
# time by one eigendecomposition: mean, and spread over random initialisations.

# %%
flow = tg.kernel_flow(limit, images[:400], one_hot[:400])
mean = flow(images[400:600], t=np.array([1.0, 100.0, 1e4]))
accuracy = np.mean(mean.argmax(axis=2) == labels[None, 400:600], axis=1)
claim(
    f"accuracy on unseen digits over time: {', '.join(f'{a:.0%}' for a in accuracy)}",
    np.all(np.diff(accuracy) > 0) and accuracy[-1] > 0.85,
)
spread = np.sqrt(flow.variance(images[400:402], t=np.array([0.0, 100.0])))
claim("training narrows the ensemble", np.all(spread[1] < spread[0]))

# %% [markdown]
# ## 8. What the kernel cannot see, and Fourier features
#
# The NTK of a dense network on raw coordinates has eigenvalues that fall fast with frequency: it learns slow waves and
# not fast ones. Mapping the coordinate by γ(v) = [cos 2πBv, sin 2πBv] first makes the kernel stationary, and the scale
# of B sets which frequencies it learns.

# %%
coordinate = np.linspace(0, 1, 128, endpoint=False)[:, None]
signal = np.sin(2 * np.pi * 3 * coordinate[:, 0]) + np.sin(2 * np.pi * 20 * coordinate[:, 0])
train, test = slice(0, None, 2), slice(1, None, 2)
mapping = tg.FourierFeatures.gaussian(1, 64, 10.0, key=jax.random.key(0))


def make_coordinate_network(inputs):
    return lambda key: eqx.nn.MLP(inputs, "scalar", 128, 2, activation=jax.nn.relu, key=key)


plain = tg.limit(make_coordinate_network(1))
mapped = tg.limit(make_coordinate_network(128)).of(mapping)
inside = tg.limit(mapping.into(make_coordinate_network(128)))
claim("mapping inputs or putting γ into the network is the same", np.allclose(mapped(coordinate), inside(coordinate)))
mistakes = []
for kernel in (plain, mapped):
    trained = tg.kernel_flow(kernel, coordinate[train], signal[train])
    mistakes.append(np.mean((trained(coordinate[test], t=1e5) - signal[test]) ** 2) / np.var(signal))
claim(f"left unexplained: {mistakes[0]:.0%} without Fourier features, {mistakes[1]:.1%} with them",
      mistakes[1] < mistakes[0] / 5)  # fmt: skip
