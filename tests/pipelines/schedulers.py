"""Every scheduler that is tested in a whole pipeline, by the name that the support table uses."""

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    SASolverScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from iec.runtime import SpacedDDIMScheduler

SMALL = {"beta_end": 2e-3}  # a few steps leave the latents near [-1, 1]

SCHEDULERS = {
    "DDIM": lambda: DDIMScheduler(**SMALL, clip_sample=False),
    "DDIM, eta 1": lambda: DDIMScheduler(**SMALL, clip_sample=False),
    "DDIM, clipping": lambda: DDIMScheduler(clip_sample=True),
    "DDIM, thresholding": lambda: DDIMScheduler(clip_sample=False, thresholding=True),
    "DDIM, v-prediction": lambda: DDIMScheduler(**SMALL, clip_sample=False, prediction_type="v_prediction"),
    "DDIM, sample prediction": lambda: DDIMScheduler(**SMALL, clip_sample=False, prediction_type="sample"),
    "DDIM, the paper's spacing (ours)": lambda: SpacedDDIMScheduler(**SMALL),
    "DDPM": lambda: DDPMScheduler(**SMALL, clip_sample=False),
    "DDPM, clipping": lambda: DDPMScheduler(),
    "PNDM (PLMS)": lambda: PNDMScheduler(**SMALL, skip_prk_steps=True),
    "PNDM (PRK)": lambda: PNDMScheduler(**SMALL),
    "LMS": lambda: LMSDiscreteScheduler(**SMALL),
    "Euler": lambda: EulerDiscreteScheduler(**SMALL),
    "Euler, Karras sigmas": lambda: EulerDiscreteScheduler(**SMALL, use_karras_sigmas=True),
    "Euler ancestral": lambda: EulerAncestralDiscreteScheduler(**SMALL),
    "Heun": lambda: HeunDiscreteScheduler(**SMALL),
    "KDPM2": lambda: KDPM2DiscreteScheduler(**SMALL),
    "KDPM2 ancestral": lambda: KDPM2AncestralDiscreteScheduler(**SMALL),
    "DPM-Solver++ 2M": lambda: DPMSolverMultistepScheduler(**SMALL),
    "SDE-DPM-Solver++ 2M": lambda: DPMSolverMultistepScheduler(**SMALL, algorithm_type="sde-dpmsolver++"),
    "DPM-Solver++ singlestep": lambda: DPMSolverSinglestepScheduler(**SMALL),
    "UniPC": lambda: UniPCMultistepScheduler(**SMALL),
    "DEIS": lambda: DEISMultistepScheduler(**SMALL),
    "iPNDM": lambda: IPNDMScheduler(),
    "SA-Solver": lambda: SASolverScheduler(**SMALL),
    "LCM": lambda: LCMScheduler(**SMALL),
    "TCD": lambda: TCDScheduler(**SMALL),
}
#: Rectified-flow schedulers belong to other pipelines.
FLOW_MATCHING = {
    "flow matching Euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow matching Heun": lambda: FlowMatchHeunDiscreteScheduler(shift=3.0),
}
ETA = {"DDIM, eta 1": 1.0, "TCD": 0.3}
CLIPPING = {"DDIM, clipping", "DDIM, thresholding", "DDPM, clipping"}
NOISY = {
    "DDIM, eta 1",
    "DDPM",
    "DDPM, clipping",
    "Euler ancestral",
    "KDPM2 ancestral",
    "SDE-DPM-Solver++ 2M",
    "SA-Solver",
    "LCM",
    "TCD",
}
