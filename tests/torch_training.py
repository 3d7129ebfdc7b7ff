"""How the PyTorch teachers of the tests are trained."""

import copy
import time

TIMES, BATCH_SIZE, CLIP_NORM, EMA_DECAY = 1000, 64, 1.0, 0.999


def fit(name, parameters, loss_of, updates, learning_rate, after=lambda update: None):
    """Adam with a linear decay of its rate; `loss_of()` draws its own batch."""
    import torch

    started, parameters = time.time(), list(parameters)
    optimizer = torch.optim.Adam(parameters, learning_rate)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, updates)
    for update in range(1, updates + 1):
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM)
        optimizer.step()
        decay.step()
        after(update)
        if update % 200 == 0:
            seconds = time.time() - started
            print(f"{name}: {update}/{updates}  {loss:.4f}  {seconds:.0f} s", flush=True)


def fit_denoiser(name, net, x, eps_of, updates, learning_rate):
    """Fits a denoiser on scaled-linear betas; returns the average of its weights.

    Args:
      x: tensor `[N, C, H, W]`.
      eps_of: `(rows of the batch, z, index) -> ε̂`, which tells the network what each row is.
    """
    import torch

    from guided_distill.diffusion.known_schedules import read_schedule

    alphas_bar = torch.tensor(read_schedule("scaled_linear").spec["alphas_bar"]).float()
    average = copy.deepcopy(net).eval()

    def loss_of():
        rows = torch.randint(len(x), (BATCH_SIZE,))
        index, eps = torch.randint(TIMES, (BATCH_SIZE,)), torch.randn_like(x[rows])
        alpha_bar = alphas_bar[index][:, None, None, None]
        z = alpha_bar.sqrt() * x[rows] + (1.0 - alpha_bar).sqrt() * eps
        return (eps_of(rows, z, index) - eps).square().mean()

    def keep_average(update):
        with torch.no_grad():
            for kept, new in zip(average.parameters(), net.parameters(), strict=True):
                kept.lerp_(new, 1.0 - min(EMA_DECAY, update / (update + 10.0)))

    fit(name, net.parameters(), loss_of, updates, learning_rate, keep_average)
    return average
