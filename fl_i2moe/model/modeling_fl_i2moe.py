"""
FL-I²MoE: one expert per kind of modality interaction, on the feature sequences of frozen encoders.

Shapes: B samples · M modalities · T features of a sequence (T_m of modality m) · D encoder width · H hidden width ·
E experts · V views · P pseudo-patches · C classes.
"""

import re
from dataclasses import dataclass
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from .configuration_fl_i2moe import FILLS, FLI2MoEConfig, did_you_mean
from .cpu_training import dropout
from .fusion import init_grouped_weights
from .inputs import (
    ModalityStem,
    View,
    as_bool,
    check_inputs,
    check_is_whole,
    check_mask_shape,
    check_names,
    check_tensors,
    complete_inputs,
    join_masks,
    keep_completed,
    replaced_slices,
)
from .objective import Step, Term, task_loss, weigh
from .objectives import create_objective
from .pinned_encoders import PinnedEncoders, Repository, check_folders
from .regularisers import regularise
from .weights import check_fit, refuse_non_finite, refuse_pickles


@dataclass
class FLI2MoEOutput(ModelOutput):
    """
    Args:
        loss (`torch.Tensor`, scalar, with `labels`):
            What a training step minimises: the task loss and what objective, regulariser and fusion add to it.
        losses (`dict[str, torch.Tensor]`):
            What the loss is made of, by name: `task_loss` (with `labels`), of the mixture's logits;
            `interaction_loss/<expert>` and, of specialised experts, `fitted_loss/<expert>`, in training mode or when
            asked for; `regulariser_loss`, at the same time, where there is one; `auxiliary_loss`, the mean over the
            experts of what their fusion adds (the balance loss of Switch and MoE++).
        logits (`torch.Tensor` of shape `(B, C)`):
            `Σ_e expert_weights[:, e] · expert_logits[:, e]`.
        expert_logits (`torch.Tensor` of shape `(B, E, C)`):
            What each expert says on the full input: its own prediction; of specialised experts a part of the mixture's.
        expert_weights (`torch.Tensor` of shape `(B, E)`):
            Weights of the experts; every row sums to 1.
    """

    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None
    expert_logits: torch.Tensor | None = None
    expert_weights: torch.Tensor | None = None


class Reweighting(nn.Module):
    """
    How much each expert counts for a sample (I²MoE, section 3.3.1): a softmax over scores that an MLP makes of the
    modalities' means; or one learned vector for all samples.
    """

    def __init__(self, config: FLI2MoEConfig):
        super().__init__()
        self.config = config
        if config.reweighting == "global":
            self.global_scores = nn.Parameter(torch.zeros(config.num_experts))
            return
        sizes = [
            config.num_modalities * config.hidden_size,
            *[config.reweighting_hidden_size] * (config.num_reweighting_layers - 1),
            config.num_experts,
        ]
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))

    def forward(self, means: torch.Tensor) -> torch.Tensor:
        """(B, M, H) → (B, E), rows that sum to 1."""
        if self.config.reweighting == "global":
            scores = self.global_scores.expand(means.shape[0], -1)
        else:
            scores = means.flatten(1)
            for layer in self.layers[:-1]:
                scores = dropout(F.relu(layer(scores)), self.config.reweighting_dropout, self.training)
            scores = self.layers[-1](scores)
        return (scores.float() / self.config.reweighting_temperature).softmax(dim=-1)


class FLI2MoEPreTrainedModel(PreTrainedModel):
    config: FLI2MoEConfig
    config_class = FLI2MoEConfig
    base_model_prefix = "fl_i2moe"
    main_input_name = "features"
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.zeros_(module.bias)
        elif isinstance(module, ModalityStem):
            init.zeros_(module.positions)
            if self.config.keeps_means:
                init.constant_(module.feature_mean, torch.nan)
        elif isinstance(module, Reweighting) and self.config.reweighting == "global":
            init.zeros_(module.global_scores)
        else:
            init_grouped_weights(module, self.config.identical_experts_init)


class FLI2MoEModel(FLI2MoEPreTrainedModel):
    """
    Mixture of interaction experts over the feature sequences of frozen encoders (FL-I²MoE, arXiv 2603.13326; I²MoE,
    arXiv 2505.19190), and its dense baseline.

    A step runs every expert on the full input and, for the interaction losses, on views in which one modality is
    replaced. Inference runs the full input alone.
    """

    def __init__(self, config: FLI2MoEConfig):
        super().__init__(config)
        self.stems = nn.ModuleList(ModalityStem(config, name) for name in config.modality_order)
        self.objective = create_objective(config)
        self.experts = self.objective.create_fusion()
        self.reweighting = Reweighting(config) if config.architecture == "moe" else None
        self.raw_inputs = PinnedEncoders(config.encoders)  # no module: frozen encoders are not the model's weights
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """
        As transformers', from safetensors alone.

        Raises:
            ValueError: tensors are missing, left over, of other sizes (unless `ignore_mismatched_sizes` is given), NaN
                or infinite; the file is damaged, or no safetensors.
            OSError: there is no such model.
        """
        name = pretrained_model_name_or_path
        if kwargs.setdefault("use_safetensors", True) is not True:
            raise ValueError("`use_safetensors` must be True: pickles can run code and are not read.")
        with_info = kwargs.pop("output_loading_info", False)
        may_be_resized = kwargs.pop("ignore_mismatched_sizes", False)
        if name is not None:
            refuse_pickles(name, kwargs)
        try:
            # sizes are checked below, in one sentence
            model, loading = super().from_pretrained(
                name, *args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
            )
        except OSError as error:
            if not re.search("(no|have a) file named model", str(error)):
                raise
            raise OSError(f"{name} has no model.safetensors; pickles can run code and are not read.") from error
        except (SafetensorError, RuntimeError) as error:  # a damaged file; sizes beyond all memory, for one
            raise ValueError(
                f"The weights in {name} cannot be read ({error}): get or train the model again."
            ) from error
        check_fit(name, loading, may_be_resized)
        refuse_non_finite(name, model)
        model.raw_inputs.repository = Repository.from_arguments(name, kwargs)
        return (model, loading) if with_info else model

    def load_encoders(self, folders: dict[str, str] | None = None, trust_remote_code: bool = False) -> None:
        """
        Fetches the frozen encoders now, which raw inputs otherwise do on first use.

        Args:
            folders: modality → a local copy of its encoder, where it is not to be fetched.
            trust_remote_code: allows encoders to bring their own code.

        Raises:
            ValueError: an encoder cannot be found or read, or is not the one that the features of the training come
                from.
        """
        check_names(folders or {}, "folders", self.config)
        check_folders(folders or {}, self.raw_inputs.identities)
        for name in self.config.modality_order:
            self.raw_inputs.load(name, (folders or {}).get(name), trust_remote_code)

    def forward(
        self,
        features: dict[str, torch.Tensor] | None = None,
        feature_masks: dict[str, torch.Tensor] | None = None,
        labels: torch.Tensor | None = None,
        with_interaction_losses: bool | None = None,
        fill_missing: str | None = None,
        missing_lengths: dict[str, int] | None = None,
        keep: dict[str, torch.Tensor] | None = None,
        is_whole: torch.Tensor | None = None,
        regulariser_scale: float = 1.0,
        **kwargs,
    ) -> FLI2MoEOutput:
        r"""
        Args:
            features: modality → (B, T_m, D_m), of any float type; pooled models also take (B, D_m).
            feature_masks: modality → (B, T_m), true (or 1) where a feature is real. A modality without a mask has no
                padding.
            labels: (B, C) multi-hot, (B,) class indexes, or (B, C) real numbers, by `config.problem_type`.
            with_interaction_losses: whether to make the objective's terms of the loss, which may need further views;
                by default in training mode, where the objective's weights are not 0. So with the regulariser's.
            fill_missing: what stands for a modality that a sample lacks, `"random"` (noise, as in the perturbed views),
                `"zero"` or `"mean"` (of the training set, of models that keep it); `config.fill_missing` if not given,
                and without both every sample must have all. A sample lacks a modality that is not in `features`, one
                without a true value in its mask, and a pooled vector (B, D) that is NaN throughout.
            missing_lengths: modality → features that stand for a missing sequence; `max_features` if not given.
            keep: modality → (B, T_m), false where a feature is zeroed, as for [`run_experts`].
            is_whole: (B, M), false where a sample shows only a part of a modality, from which a specialised objective
                lets no other modality learn. All are whole if not given.
            regulariser_scale: factor of `config.regulariser_weight`, by which training raises it.
            kwargs: instead of `features`, the raw values by the modalities' names: pictures (paths, PIL images, uint8
                arrays), texts, arrays (D,) or (T, D), columns of a table (column → value), one or a list each, or what
                the processor made of them. A list of numbers is one array. A modality that is left out or None is
                missing, in a list None stands for one that a sample lacks. The frozen encoders that `config.encoders`
                names are fetched on first use.

        Raises:
            ValueError: an argument or a modality is unknown; a modality is missing or no tensor; the batch is empty; a
                width, length, mask shape or label is wrong; outside training also a row without a real feature, or one
                that is not finite; a raw value or an encoder cannot be read; with `fill_missing` a sample has no
                modality, or there are no means.
        """
        if fill_missing is None:
            fill_missing = self.config.fill_missing
        if kwargs or features is None:
            self._check_arguments(kwargs, takes_raw=features is None)
        if features is None:
            if feature_masks is not None:
                raise ValueError("`feature_masks` belong to `features`, which are not given.")
            features, feature_masks = self._encode(kwargs, may_lack=fill_missing is not None)
        missing: dict[str, torch.Tensor] = {}
        if fill_missing is not None:
            given = features
            features, feature_masks, missing = complete_inputs(
                given, feature_masks, fill_missing, missing_lengths, self.config
            )
            if keep is not None:
                keep = keep_completed(keep, given, features, self.config)
        masks = check_inputs(features, feature_masks, self.config, with_values=not self.training)
        if is_whole is not None:
            check_is_whole(is_whole, len(features[self.config.modality_order[0]]), self.config)
        regularises = self.training if with_interaction_losses is None else with_interaction_losses
        if with_interaction_losses is None:
            with_interaction_losses = self.training and self.objective.adds_loss
        projected = self._embed(features, masks)
        if keep is not None:
            projected = self._zero(projected, keep)
        for name, rows in missing.items():
            filled = self._replacement(name, projected[name], fill_missing)
            projected[name] = torch.where(rows[:, None, None], filled, projected[name])
            if is_whole is None:
                is_whole = rows.new_ones(len(rows), self.config.num_modalities)
            is_whole = is_whole.clone()
            is_whole[:, self.config.modality_order.index(name)] &= ~rows
        full = (projected, dict.fromkeys(masks) if self.config.level == "pooled" else masks)
        replaced, others = self.objective.views(self, full) if with_interaction_losses else ([], [])
        x, feature_mask, readout = self.join([full, *others])
        # dropout on embeddings makes all views differ everywhere
        differs_everywhere = self.training and self.config.embedding_dropout > 0
        slices = None if differs_everywhere else replaced_slices(projected, self.config.modality_order, replaced)
        logits, extra = self.experts(x, feature_mask, readout, replaced=slices)
        view_logits = logits.float().unflatten(0, (1 + len(others), -1))
        output = self._mix(view_logits[0], projected, readout[: view_logits.shape[1]])
        if labels is not None:
            task_logits = self.objective.task_logits(output.expert_weights, view_logits[0])
            output.loss = output.losses["task_loss"] = task_loss(task_logits, labels, self.config)
        terms = []
        if with_interaction_losses:
            step = Step(full, labels, is_whole, replaced, view_logits, extra)
            terms += self.objective.terms(self, step)
        if regularises and self.config.regulariser is not None:
            loss = regularise(extra.latents[:, : view_logits.shape[1]], self.config.regulariser)
            terms.append(Term(regulariser_scale * self.config.regulariser_weight * loss, {"regulariser_loss": loss}))
        if extra.auxiliary_loss is not None:
            auxiliary = extra.auxiliary_loss.mean()
            terms.append(Term(self.config.balance_loss_weight * auxiliary, {"auxiliary_loss": auxiliary}))
        for term in terms:
            output.losses.update(term.losses)
            if labels is not None:
                output.loss = output.loss + term.total
        return output

    def embed(
        self, features: dict[str, torch.Tensor], feature_masks: dict[str, torch.Tensor] | None = None
    ) -> dict[str, torch.Tensor]:
        """
        Projects each modality to the hidden space: what masking, integrated gradients and games work on.

        Returns:
            modality → (B, T_m, H), before positions; (B, P, H) in pooled mode.

        Raises:
            ValueError: as [`forward`].
        """
        masks = check_inputs(features, feature_masks, self.config, with_values=not self.training)
        return self._embed(features, masks)

    def project(self, name: str, features: torch.Tensor) -> torch.Tensor:
        """One modality's sequences without padding (B, T_m, D_m) in the hidden space, (B, T_m, H), as [`embed`]."""
        check_names([name], "name", self.config)
        return self._stem(name)(features.to(self.dtype), None)

    def replace_modality(
        self, projected: dict[str, torch.Tensor], name: str, by: str = "random"
    ) -> dict[str, torch.Tensor]:
        """
        The input without one modality: every feature of it replaced, as in the perturbed views.

        Args:
            projected: modality → (B, T_m, H), from [`embed`].
            by: `"random"`, `"zero"` or `"mean"`.

        Raises:
            ValueError: for an unknown modality or replacement, or means that the model does not keep.
        """
        check_names([name], "name", self.config)
        if by not in FILLS:
            raise ValueError(f"`by` must be one of {', '.join(map(repr, FILLS))}, got {by!r}.")
        return {**projected, name: self._replacement(name, projected[name], by)}

    def run_experts(
        self,
        projected: dict[str, torch.Tensor],
        feature_masks: dict[str, torch.Tensor] | None = None,
        keep: dict[str, torch.Tensor] | None = None,
        experts: list[str] | None = None,
        output_attentions: bool = False,
    ) -> Any:
        """
        Runs experts on projected sequences, with some features zeroed.

        Args:
            projected: modality → (B, T_m, H), from [`embed`]; or (number of experts, B, T_m, H), an input of its own
                for each expert.
            feature_masks: modality → (B, T_m), true where a feature is real. Pooled models, whose pseudo-patches are
                all real, take none.
            keep: modality → (B, T_m), false where a feature is zeroed. Sequence length and attention mask stay. A
                modality that is not named is kept whole.
            experts: names from `config.expert_names`; all by default.
            output_attentions: also return the attention probabilities, on the graph. Needs eager attention.

        Returns:
            Logits (B, number of experts, C), in the order of `experts`. With `output_attentions` also a tuple of L
            tensors (number of experts · B, A, T, T), experts first, over the joint sequence in `modality_order`.

        Raises:
            ValueError: for an unknown modality or expert, an input or mask of the wrong shape, or attentions that the
                attention implementation does not give.
        """
        if output_attentions and (self.training or self.config._attn_implementation != "eager"):
            raise ValueError(
                "Attention probabilities need `eval()` and `set_attn_implementation('eager')`; this model runs "
                f"{self.config._attn_implementation!r} in {'training' if self.training else 'evaluation'} mode."
            )
        names = self.config.expert_names
        if unknown := set(experts or ()) - set(names):
            raise ValueError(f"Unknown experts {sorted(unknown)}; this model has {names}.")
        num_experts = len(names if experts is None else experts)
        check_tensors(projected, "projected", self.config)
        for name, x in projected.items():
            if x.dim() == 4 and x.shape[0] != num_experts:
                raise ValueError(f"`projected[{name!r}]` has inputs for {x.shape[0]} experts, {num_experts} run.")
        projected, masks = self._keep(projected, feature_masks, keep)
        indexes = None if experts is None else [names.index(name) for name in experts]
        attentions: list[torch.Tensor] | None = [] if output_attentions else None
        joined = self.join([(projected, masks)], indexes)
        logits, _ = self.experts(*joined, experts=indexes, attentions=attentions)
        logits = logits.float()
        return logits if attentions is None else (logits, tuple(attentions))

    def run_mixture(
        self,
        projected: dict[str, torch.Tensor],
        feature_masks: dict[str, torch.Tensor] | None = None,
        keep: dict[str, torch.Tensor] | None = None,
    ) -> FLI2MoEOutput:
        """
        The whole model on projected sequences, with some features zeroed: the experts and their weights see it.

        Args:
            projected: modality → (B, T_m, H), from [`embed`].
            feature_masks, keep: as for [`run_experts`].

        Returns:
            `logits`, `expert_logits` and `expert_weights`, without losses.

        Raises:
            ValueError: for an unknown modality or a mask of the wrong shape.
        """
        projected, masks = self._keep(projected, feature_masks, keep)
        x, feature_mask, readout = self.join([(projected, masks)])
        logits, _ = self.experts(x, feature_mask, readout)
        return self._mix(logits.float(), projected, readout)

    def modality_shares(self, experts: list[str] | None = None) -> torch.Tensor:
        """How much of an expert's readout each modality is, (number of experts, M), rows that sum to 1."""
        shares = self.experts.modality_shares().to(self.device)
        return shares if experts is None else shares[[self.config.expert_names.index(name) for name in experts]]

    def set_feature_means(self, means: dict[str, torch.Tensor]) -> None:
        """
        Stores the training set's mean features, modality → (D_m,), which `perturbation="mean"` puts in a view and
        `fill_missing="mean"` in the place of a missing modality.

        Raises:
            ValueError: a modality is missing or unknown, or the configuration keeps no means.
        """
        if not self.config.keeps_means:
            raise ValueError("This model keeps no mean features; configure it with `keep_feature_means=True`.")
        check_tensors(means, "means", self.config, complete=True)
        for name, mean in means.items():
            self._stem(name).feature_mean.copy_(mean)

    def _stem(self, name: str) -> ModalityStem:
        return self.stems[self.config.modality_order.index(name)]  # type: ignore[return-value]

    def _check_arguments(self, given: dict, takes_raw: bool) -> None:
        """Raises `ValueError` for arguments that are neither `forward`'s own nor raw inputs."""
        order = self.config.modality_order
        own = [name for name in signature(FLI2MoEModel.forward).parameters if name not in ("self", "kwargs")]
        known = own + order * takes_raw
        unknown = [name for name in given if name not in order]
        hint = "".join(did_you_mean(name, known) for name in unknown)
        if takes_raw and len(unknown) == len(given):
            found = sorted(given) or "neither"
            raise ValueError(f"Give `features`, or raw inputs of {order} by name; got {found}.{hint}")
        if unknown:
            raise ValueError(f"Unknown argument `{unknown[0]}`.{hint} There are {', '.join(known)}.")
        if not takes_raw:
            raise ValueError(f"With `features` there are no raw inputs; got {sorted(given)}, too.")

    def _encode(self, given: dict, may_lack: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Features and masks of raw inputs, by modality; one that all samples lack is left out, if they may lack it."""
        raw = {name: given[name] for name in self.config.modality_order if given.get(name) is not None}
        if not may_lack and len(raw) < self.config.num_modalities:
            check_names(raw, "inputs", self.config, complete=True)
        encoded = {name: self.raw_inputs.encode(name, x, self.device, self.dtype) for name, x in raw.items()}
        for name, (_, mask) in encoded.items():
            if not may_lack and (lacking := (~mask.any(dim=1)).nonzero().flatten().tolist()):
                raise ValueError(
                    f"`{name}` has no feature in rows {lacking}; `fill_missing` says what stands for a missing "
                    "modality."
                )
        return {name: x for name, (x, _) in encoded.items()}, {name: mask for name, (_, mask) in encoded.items()}

    def _embed(
        self, features: dict[str, torch.Tensor], masks: dict[str, torch.Tensor | None]
    ) -> dict[str, torch.Tensor]:
        projected = {}
        for name in self.config.modality_order:
            x, mask = features[name].to(self.dtype), masks[name]
            if mask is not None:
                x = x.masked_fill(~mask.unsqueeze(-1), 0)  # whatever stands in the padding, NaN too
            projected[name] = self._stem(name)(x, mask)
        return projected

    def _keep(
        self,
        projected: dict[str, torch.Tensor],
        feature_masks: dict[str, torch.Tensor] | None,
        keep: dict[str, torch.Tensor] | None,
    ) -> View:
        """Zeroes what is not kept, after checks; also a boolean mask, or `None`, for every modality."""
        feature_masks = {} if feature_masks is None else feature_masks
        check_tensors(projected, "projected", self.config, complete=True)
        check_tensors(feature_masks, "feature_masks", self.config)
        if feature_masks and self.config.level == "pooled":
            raise ValueError("A pooled model's pseudo-patches are all real: give no `feature_masks` here.")
        for name, mask in feature_masks.items():
            check_mask_shape(f"feature_masks[{name!r}]", mask, projected[name])
        masks = {name: as_bool(feature_masks.get(name)) for name in self.config.modality_order}
        return self._zero(projected, {} if keep is None else keep), masks

    def _zero(self, projected: dict[str, torch.Tensor], keep: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        check_tensors(keep, "keep", self.config)
        for name, mask in keep.items():
            check_mask_shape(f"keep[{name!r}]", mask, projected[name])
        zeroed = {name: projected[name] * mask.unsqueeze(-1).to(projected[name].dtype) for name, mask in keep.items()}
        return {**projected, **zeroed}

    def _mix(
        self, expert_logits: torch.Tensor, projected: dict[str, torch.Tensor], readout: torch.Tensor
    ) -> FLI2MoEOutput:
        """Weighs the experts: (B, E, C), the full view and its readout (B, M, T) → an output without losses."""
        if self.reweighting is None:
            expert_weights = torch.ones_like(expert_logits[:, :, 0])
        else:
            joint = torch.cat([projected[name] for name in self.config.modality_order], dim=1)
            expert_weights = self.reweighting(torch.bmm(readout, joint))
        logits = weigh(expert_weights, expert_logits)
        return FLI2MoEOutput(losses={}, logits=logits, expert_logits=expert_logits, expert_weights=expert_weights)

    def without(self, index: int, view: View, perturbation: str) -> View:
        """The view in which modality `index` is replaced, by `config.perturbation`. One draw serves all experts."""
        projected, masks = view
        name = self.config.modality_order[index]
        x, mask = projected[name], masks[name]
        if perturbation == "shuffle" and x.shape[0] > 1:
            shift = int(torch.randint(1, x.shape[0], ()))
            x, mask = x.roll(shift, 0), None if mask is None else mask.roll(shift, 0)
        else:
            x = self._replacement(name, x, "random" if perturbation == "shuffle" else perturbation)
        return {**projected, name: x}, {**masks, name: mask}

    def _replacement(self, name: str, x: torch.Tensor, by: str) -> torch.Tensor:
        """What stands for a modality's features (B, T, H)."""
        match by:
            case "zero":
                return torch.zeros_like(x)
            case "mean":
                return self._stem(name).project_mean().to(x.dtype).expand_as(x)
            case _:
                return torch.randn_like(x)

    def join(
        self, views: list[View], experts: list[int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """
        Views → joint sequences (V·B, T, H), their mask (V·B, T) or `None`, and the readout (V·B, M, T).

        An expert axis in front stays in front; positions of each expert's own put one there, for `experts`.
        """
        order = self.config.modality_order
        sequences = [
            [
                x[name] + self._stem(name).position_embeddings(x[name].shape[-2], experts).to(x[name].dtype)
                for name in order
            ]
            for x, _ in views
        ]
        x = torch.cat([torch.cat(parts, dim=-2) for parts in sequences], dim=-3)
        x = dropout(x, self.config.embedding_dropout, self.training)
        return x, *join_masks(views, order, x)


__all__ = ["FLI2MoEModel", "FLI2MoEOutput", "FLI2MoEPreTrainedModel"]
