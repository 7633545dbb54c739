"""Fit a line with NumPy alone: this program computes gradients, the server at OPTIMD_URL does the rest."""

import numpy as np

from optimd import Client

x = np.linspace(-1, 1, 50)
y = 3 * x + 1

with Client() as client:
    session = client.create_session("adam", params={"w": np.zeros(1), "b": np.zeros(1)}, lr=0.1, name="quickstart")
    params = session.pull()
    for _ in range(200):
        error = params["w"] * x + params["b"] - y
        grads = {"w": [2 * np.mean(error * x)], "b": [2 * np.mean(error)]}
        params = session.step(grads, loss=np.mean(error**2)).params

    print(f"y = {params['w'][0]:.3f} x + {params['b'][0]:.3f}")
    for step in session.history():
        if step.step in {1, 10, 100, 200}:
            print(f"step {step.step:3}  loss {step.loss:.2e}  grad_norm {step.grad_norm:.2e}")
