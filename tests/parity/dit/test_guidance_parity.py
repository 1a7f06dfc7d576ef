import torch

from models.dit import guidance
from tests.parity.golden import read_case


def test_plain_guidance_is_the_references() -> None:
    case = read_case("cfg")
    seen = guidance.cfg(case.inputs["pred_cond"][0], case.inputs["pred_uncond"][0], case.parameters["guidance_scale"])
    case.check("guided", seen[None])


def test_projected_guidance_is_the_references() -> None:
    case = read_case("apg_no_momentum")
    scale = case.parameters["guidance_scale"]
    seen, _ = guidance.apg(case.inputs["pred_cond"][0, 0], case.inputs["pred_uncond"][0, 0], scale, None)
    case.check("guided", seen[None, None])


def test_projected_guidance_with_momentum_is_the_references() -> None:
    case = read_case("apg_momentum")
    momentum, guided, running = None, [], []
    for cond, null in zip(case.inputs["pred_cond"], case.inputs["pred_uncond"], strict=True):
        velocity, momentum = guidance.apg(cond[0], null[0], case.parameters["guidance_scale"], momentum)
        guided.append(velocity)
        running.append(momentum)
    case.check("guided", torch.stack(guided)[:, None])
    case.check("momentum_running_average", torch.stack(running)[:, None])


def test_angle_guidance_is_the_references() -> None:
    case = read_case("adg")
    for key, scale in (("guided", "guidance_scale"), ("guided_low", "guidance_scale_low")):
        seen = [
            guidance.adg(x[0], cond[0], null[0], float(t), case.parameters[scale])
            for x, cond, null, t in zip(
                case.inputs["latents"],
                case.inputs["noise_pred_cond"],
                case.inputs["noise_pred_uncond"],
                case.inputs["sigma"],
                strict=True,
            )
        ]
        case.check(key, torch.stack(seen)[:, None])
