"""Names of parts and of options in other libraries, for the text of an error.

No part is found by them. They are compared without case and punctuation, with "p" for "+", and without "Scheduler"
behind or "sample_" before them: 'DPM2 a', 'dpm_2_a' and 'sample_dpm_2_a' are one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

ALIASES: dict[str, dict[str, str]] = {
    "schedule": {
        "cosine": "squaredcos_cap_v2 cos cosine_beta_schedule",
        "linear": "vp linear_beta_schedule",
        "log_linear": "ve exp exponential",
        "shifted_cosine": "simple_diffusion cosine_shifted",
        "sigmoid": "sigmoid_beta_schedule",
        "zero_snr": "zero_terminal_snr rescale_betas_zero_snr rescale_zero_terminal_snr",
        "diffkit-diffusers:diffusers_betas": "diffusers_betas scaled_linear trained_betas",
        "diffkit-edm:edm_karras": "edm_karras edm karras",
        "diffkit-flow:flow_linear": "flow_linear flow flow_matching rectified_flow",
    },
    "mean": {
        "eps": "epsilon noise pred_noise pred_eps predict_epsilon",
        "x_start": "sample x0 pred_x0 pred_x_start start_x original_sample",
        "v": "v_prediction pred_v",
        "x_prev": "previous_x",
        "score": "score_prediction grad_log_prob",
        "diffkit-edm:edm": "edm edm_precond",
        "diffkit-flow:flow": "flow flow_prediction rectified_flow",
        "diffkit-flow:velocity": "velocity velocity_prediction",
    },
    "var": {
        "fixed_small": "fixed_small_log sigma_small posterior",
        "fixed_large": "fixed_large_log beta",
        "learned_range": "learn_sigma",
        "analytic": "analytic_dpm",
    },
    "loss": {
        "simple": "mse l2 l_simple",
        "hybrid": "rescaled_mse l_hybrid",
        "vlb": "kl rescaled_kl elbo l_vlb",
        "huber": "pseudo_huber smooth_l1",
        "p2": "p2_weighting",
        "snr_plus_one": "snr+1",
        "soft_min_snr": "soft_min_snr_gamma",
        "diffkit-edm:edm_loss": "edm_loss edm",
        "diffkit-flowmap:consistency": "consistency consistency_training consistency_distillation ict",
        "diffkit-flowmap:distill": "distill progressive_distillation",
        "diffkit-flowmap:mean_flow": "mean_flow",
        "diffkit-flowmap:shortcut": "shortcut shortcut_model",
        "diffkit-minsnr:minsnr": "min_snr min_snr_gamma snr_gamma min_snr_5",
    },
    "timesteps": {
        "uniform": "uniform_sampler",
        "loss_second_moment": "loss_second_moment_resampler loss_aware importance importance_sampling",
        "stratified": "low_discrepancy",
        "diffkit-edm:edm_lognormal": "edm_lognormal edm lognormal rand_log_normal",
        "diffkit-flow:flow_logit_normal": "flow_logit_normal",
        "diffkit-flowmap:flowmap_level_pairs": "flowmap_level_pairs",
        "diffkit-flowmap:flowmap_pairs": "flowmap_pairs",
    },
    "sampler": {
        "ancestral": "ddpm p_sample",
        "ddim": "ddim_sample",
        "euler": "euler_discrete edm_euler",
        "euler_ancestral": "euler_a euler_ancestral_discrete",
        "heun": "heun_discrete edm",
        "churn": "edm_sampler karras_ve",
        "lms": "lms_discrete",
        "pndm": "plms ipndm",
        "predictor_corrector": "pc pc_sampler langevin langevin_corrector",
        "deis": "deis_multistep",
        "unipc": "uni_pc_bh2 unipc_multistep",
        "dpm2": "k_dpm_2 k_dpm_2_discrete",
        "dpm2_ancestral": "dpm_2_a k_dpm_2_a k_dpm_2_ancestral k_dpm_2_ancestral_discrete",
        "dpm_solver_2": "dpm_solver",
        "dpmpp_2m": "dpm_solver++ dpm_solver_multistep edm_dpm_solver_multistep",
        "dpmpp_2s": "dpm_solver_singlestep",
        "dpmpp_2s_ancestral": "dpmpp_2s_a",
        "dpmpp_sde": "dpm_solver_sde",
        "rk4": "runge_kutta runge_kutta_4 rk",
        "sa_solver": "stochastic_adams",
        "sde_dpmpp_2m": "dpmpp_2m_sde sde_dpm_solver++",
        "sde_dpmpp_3m": "dpmpp_3m_sde",
        "diffkit-diffusers:diffusers_lcm": "diffusers_lcm lcm",
        "diffkit-diffusers:diffusers_tcd": "diffusers_tcd tcd",
        "diffkit-diffusers:diffusers_ddim": "diffusers_ddim",
        "diffkit-diffusers:diffusers_multistep": "diffusers_multistep",
        "diffkit-diffusers:diffusers_pndm": "diffusers_pndm",
        "diffkit-diffusers:diffusers_singlestep": "diffusers_singlestep",
        "diffkit-diffusers:diffusers_unipc": "diffusers_unipc",
        "diffkit-edm:edm_heun": "edm_heun",
        "diffkit-edm:edm_stochastic": "edm_stochastic",
        "diffkit-flowmap:flow_map": "flow_map consistency_multistep",
        "diffkit-flow:flow_euler": "flow_euler flow_match_euler flow_match_euler_discrete rectified_flow",
        "diffkit-flow:flow_heun": "flow_heun flow_match_heun flow_match_heun_discrete",
    },
    "backbone": {
        "unet": "unet_model adm",
        "dit": "dit_xl_2 dit_l_2 dit_b_2 dit_s_2",
        "diffkit-diffusers:diffusers_unet2d": "diffusers_unet2d unet2d unet2d_model",
        "diffkit-diffusers:diffusers_unet2dcondition": "diffusers_unet2dcondition unet2d_condition_model",
        "diffkit-diffusers:diffusers_dit": "diffusers_dit dit_transformer_2d dit_transformer_2d_model",
    },
    "guidance": {
        "apg": "adaptive_projected_guidance",
        "cfg": "classifier_free classifier_free_guidance",
        "cfg_zero": "cfg_zero_star",
        "classifier": "classifier_guidance",
        "dynamic_threshold": "dynamic_thresholding",
        "gradient": "cond_fn",
        "dps": "diffusion_posterior_sampling",
        "mmps": "moment_matching",
        "pigdm": "pseudoinverse_guidance",
    },
    "spacing": {
        "karras": "use_karras_sigmas karras_sigmas get_sigmas_karras sigmas_karras edm_sigmas",
        "exponential": "lu use_lu_lambdas exponential_sigmas use_exponential_sigmas get_sigmas_exponential "
        "polyexponential get_sigmas_polyexponential uniform_lambda",
        "beta": "use_beta_sigmas beta_sigmas",
        "diffkit-diffusers:diffusers": "diffusers",
    },
    "codec": {
        "diffkit-diffusers:diffusers_kl": "diffusers_kl autoencoder_kl",
    },
    "optimizer": {
        "adamw": "adamw_torch adamw_torch_fused decoupled_adam",
        "sgd": "momentum",
        "muon": "muon_with_aux_adam",
    },
    "lr_schedule": {
        "constant": "constant_with_warmup none",
        "linear": "linear_with_warmup",
        "cosine": "cosine_annealing cosine_with_warmup half_cosine",
        "rsqrt": "inverse_sqrt",
        "wsd": "warmup_stable_decay trapezoidal",
    },
}
"""Kind -> our name, or "distribution:name" for a part of our plugins -> other names of it."""


SAMPLING_ALIASES = {
    "callback": "System.trajectory, which yields every step",
    "callback_on_step_end": "System.trajectory, which yields every step",
    "classifier_free_guidance": "guidance=diffkit.guidance.ClassifierFree(scale)",
    "clip_denoised": "clip=",
    "cond_fn": "guidance=diffkit.guidance.GradientGuidance(log_prob)",
    "cond_scale": "guidance=diffkit.guidance.ClassifierFree(scale)",
    "denoised_fn": "x_transform=",
    "eta": "sampler=('ddim', {'eta': 0.5})",
    "generator": "seed=",
    "guidance_scale": "guidance=diffkit.guidance.ClassifierFree(scale)",
    "model_kwargs": "keywords of their own, such as y=labels",
    "num_inference_steps": "steps=",
    "num_sampling_steps": "steps=",
    "num_steps": "steps=",
    "timestep_respacing": "steps=",
}
"""Name of a sampling option in other libraries -> its name here."""


TRAINING_ALIASES = {
    "adam_weight_decay": "weight_decay",
    "checkpointing_steps": "save_every",
    "ema_decay": "ema",
    "ema_max_decay": "ema",
    "ema_rate": "ema",
    "fp16": "precision",
    "gradient_accumulation_steps": "microbatch",
    "gradient_clip_val": "grad_clip",
    "learning_rate": "lr",
    "log_interval": "log_every",
    "lr_anneal_steps": "anneal",
    "lr_scheduler": "lr_schedule",
    "lr_warmup_steps": "warmup",
    "max_grad_norm": "grad_clip",
    "max_steps": "steps",
    "max_train_steps": "steps",
    "mixed_precision": "precision",
    "num_train_steps": "steps",
    "num_warmup_steps": "warmup",
    "num_workers": "workers",
    "optim": "optimizer",
    "eval_interval": "val_every",
    "eval_steps": "val_every",
    "save_interval": "save_every",
    "train_batch_size": "batch_size",
    "use_fp16": "precision",
    "warmup_steps": "warmup",
}
"""Names of training options in other libraries, and their names here."""


def alias_of(kind: str, name: str, known: Iterable[str]) -> str | None:
    """Return our name for a name of another library, "distribution:name" for a part of a plugin; None if unknown.

    Args:
        kind: Kind of part.
        name: A name that no part has.
        known: Names of parts, which are compared in other spellings too.
    """
    plain = _plain(name)
    own = (one for one in known if _plain(one) == plain)
    theirs = (one for one, others in ALIASES.get(kind, {}).items() if plain in map(_plain, others.split()))
    return next(own, None) or next(theirs, None)


def _plain(name: str) -> str:
    spelled = name.strip().lower().replace("+", "p").removesuffix("scheduler")
    letters = re.sub(r"[^a-z0-9]", "", spelled)
    return letters.removeprefix("sample") or letters
