"""What the scheduler classes of diffusers compute, step by step, on the model's own sigmas and recorded velocities.

The multistep classes run in float64 on float32 sigmas: near sigma 1 the float32 of DEIS cancels to three digits, which would
say more about float32 than about the rule. DEIS divides by zero at its end (sigma 0, from 15 steps on), so its last sigma is
1e-12 up to 14 steps, where the class falls back to first order, and its last step is left out from there on.
"""

import torch
from diffusers import (
    DEISMultistepScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

SHIFT = 3.0
STEPS = (1, 2, 3, 8, 20)
SHAPE = (2, 4, 3, 5)
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": SHIFT}
MULTISTEP = {
    "unipc": lambda: UniPCMultistepScheduler(**FLOW),
    "deis": lambda: DEISMultistepScheduler(**FLOW),
    "dpm-solver++": lambda: DPMSolverMultistepScheduler(**FLOW),
}


def model_sigmas(steps: int) -> torch.Tensor:
    """As ZImagePipeline asks for them: 1 first, 0 last."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(steps, sigmas=torch.linspace(1.0, 1 / steps, steps).tolist(), mu=1.0)
    return scheduler.sigmas


def multistep(name: str, steps: int, generator: torch.Generator) -> dict:
    scheduler = MULTISTEP[name]()
    scheduler.set_timesteps(steps)
    sigmas = model_sigmas(steps).double()
    # UniPC's own way around the logarithm of 0.
    sigmas[0] = torch.tensor(1 - 1e-6, dtype=torch.float32).double()
    if name == "unipc":
        own = UniPCMultistepScheduler(**FLOW)
        own.set_timesteps(sigmas=torch.linspace(1.0, 1 / steps, steps).double().numpy())
        assert torch.allclose(own.sigmas.double(), sigmas, atol=2e-7), (own.sigmas, sigmas)
    if name == "deis":
        sigmas[-1] = 1e-12
    scheduler.sigmas = sigmas
    scheduler.set_begin_index(0)
    compared = steps - 1 if name == "deis" and steps >= 15 else steps
    sample = torch.randn(SHAPE, generator=generator)
    velocities = torch.randn((steps, *SHAPE), generator=generator)
    out = {"start": sample, "velocities": velocities, "sigmas": sigmas.float()}
    sample, samples = sample.double(), []
    for velocity, time in zip(velocities[:compared].double(), scheduler.timesteps):
        sample = scheduler.step(velocity, time, sample).prev_sample
        samples.append(sample.float())
    return {**out, "samples": torch.stack(samples)}


def heun(steps: int, generator: torch.Generator) -> dict:
    """Two velocities a step, the second one at the end of the step; the last step has one."""
    sigmas = model_sigmas(steps)
    doubled = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    scheduler = FlowMatchHeunDiscreteScheduler(shift=SHIFT)
    scheduler.set_timesteps(steps)
    assert len(doubled) == len(scheduler.sigmas), (doubled, scheduler.sigmas)
    scheduler.sigmas = doubled
    scheduler.set_begin_index(0)
    sample = torch.randn(SHAPE, generator=generator)
    velocities = torch.randn((2 * steps - 1, *SHAPE), generator=generator)
    out, samples = {"start": sample, "velocities": velocities, "sigmas": sigmas}, []
    for velocity in velocities:
        sample = scheduler.step(velocity, scheduler.timesteps[0], sample).prev_sample
        samples.append(sample)
    return {**out, "samples": torch.stack(samples)}


def fixtures() -> dict:
    generator = torch.Generator("cpu").manual_seed(4)
    out = {}
    for steps in STEPS:
        for name in MULTISTEP:
            out.update({f"{name}.{steps}.{key}": value for key, value in multistep(name, steps, generator).items()})
        out.update({f"heun.{steps}.{key}": value for key, value in heun(steps, generator).items()})
    return out
